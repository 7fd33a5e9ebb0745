"""The processes of one launch (`accelerate launch`, `torchrun`, a batch system): who they are, and how they agree."""

import datetime
import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch.distributed as dist

from thresher.errors import ConfigError, ThresherError
from thresher.ranks import count_ranks

T = TypeVar("T")

PATIENCE = datetime.timedelta(days=30)
"""How long one process waits for the others, who may be at work for long; a process that dies is noticed at once."""


class Team:
    """The processes of a launch. They exchange small things only, over gloo, whatever device they compute on."""

    def __init__(self, rank: int, n_ranks: int, group: Any) -> None:
        self.rank = rank
        """Which of them this is."""
        self.n_ranks = n_ranks
        """How many there are."""
        self._group = group

    @property
    def is_first(self) -> bool:
        """Whether this is the one that decides and speaks for all."""
        return self.rank == 0

    @property
    def label(self) -> str:
        """What this process adds to its progress."""
        return f" (process {self.rank + 1} of {self.n_ranks})" if self.n_ranks > 1 else ""

    def agree(self, decide: Callable[[], T]) -> T:
        """What `decide` returns in the first process, in all of them; where it raises one of our errors, all stop."""
        outcome: list[Any] = [None, None]
        error: ThresherError | None = None
        if self.is_first:
            try:
                outcome = [decide(), None]
            except ThresherError as caught:
                error, outcome = caught, [None, str(caught)]
        if self.n_ranks > 1:
            _wait_for(lambda: dist.broadcast_object_list(outcome, group=self._group, group_src=0))
        if error is not None:
            raise error
        if outcome[1] is not None:
            raise ThresherError(f"process {self.rank} of the launch stops because process 0 did: {outcome[1]}")
        return cast(T, outcome[0])

    def gather(self, value: T) -> list[T]:
        """The values of all processes, in their order. Raises ThresherError when one of them has ended."""
        values: list[Any] = [value] * self.n_ranks
        if self.n_ranks > 1:
            _wait_for(lambda: dist.all_gather_object(values, value, group=self._group))
        return values

    def wait(self) -> None:
        """Return when all of them have come here. Raises ThresherError when one of them has ended."""
        if self.n_ranks > 1:
            _wait_for(lambda: dist.barrier(group=self._group))


@contextmanager
def open_team() -> Generator[Team, None, None]:
    """The processes that were launched together; only this one where nothing says otherwise.

    Reads RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, or uses the process group of the caller's own program.
    """
    if dist.is_initialized():
        group = dist.new_group(backend="gloo", timeout=PATIENCE)
        yield Team(dist.get_rank(), dist.get_world_size(), group)
        return
    n_ranks = count_ranks()
    if n_ranks == 1:
        yield Team(0, 1, None)
        return
    try:
        dist.init_process_group("gloo", timeout=PATIENCE)
    except (ValueError, RuntimeError) as error:
        raise ConfigError(
            f"WORLD_SIZE={n_ranks}, but the processes cannot find each other ({error}); start them with accelerate launch or "
            "torchrun, or unset WORLD_SIZE"
        ) from error
    try:
        yield Team(dist.get_rank(), n_ranks, None)
    finally:
        dist.destroy_process_group()


def _wait_for(exchange: Callable[[], object]) -> None:
    """Do what waits for other processes in a thread, so that a signal still stops this one."""
    done: Future[None] = Future()

    def work() -> None:
        try:
            exchange()
            done.set_result(None)
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        done.result()
    except RuntimeError as error:
        raise ThresherError(
            "another process of this launch has ended; what was committed is kept: rerun the same command to go on from there"
        ) from error
