"""Where tensors are computed."""

import torch

from thresher.errors import ConfigError
from thresher.ranks import find_local_rank


def find_device(name: str) -> torch.device:
    """The torch device of a configuration's word: `auto` (a GPU if there is one), `cpu`, `cuda` or `cuda:<i>`.

    Of several processes that were launched together on a machine, each gets a GPU of its own for `auto` and `cuda`.
    Raises ConfigError for another word and for a GPU that this machine does not have.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    local_rank = find_local_rank()
    if name == "cuda" and local_rank is not None and torch.cuda.is_available():
        name = f"cuda:{local_rank % torch.cuda.device_count()}"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device={name!r}: expected auto, cpu, cuda or cuda:<i>") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device={name!r}: expected auto, cpu, cuda or cuda:<i>")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device={name!r}: this machine has {torch.cuda.device_count()} CUDA devices; use auto or cpu")
    return device
