"""Which of several processes this is that were launched together (`accelerate launch`, `torchrun`, a batch system)."""

import os

from thresher.errors import ConfigError


def count_ranks() -> int:
    """How many processes were launched together with this one, itself included."""
    return _read_number("WORLD_SIZE", 1)


def count_local_ranks() -> int:
    """How many of them are on this machine."""
    return _read_number("LOCAL_WORLD_SIZE", 1)


def is_first_process() -> bool:
    """Whether this process speaks for those that were launched with it."""
    return _read_number("RANK", 0) == 0


def find_local_rank() -> int | None:
    """Which of the processes on this machine this is; None when it was started alone."""
    return _read_number("LOCAL_RANK", 0) if "LOCAL_RANK" in os.environ else None


def _read_number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdigit():
        raise ConfigError(f"{name}={text!r}: expected a number, as accelerate launch and torchrun set it")
    return int(text)
