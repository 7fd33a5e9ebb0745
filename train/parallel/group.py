"""Processes that exchange tensors, and sums over them that gradients pass through."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float, Shaped
from torch import Tensor

from thresher.errors import ThresherError

T = TypeVar("T")

ENDED = "another process of this launch has ended; what was saved is kept: rerun the same command to go on from there"


class Group:
    """Some processes of a launch, in order. Every one of them must make the same calls; one alone exchanges nothing.

    Results are the same bits in all of them. Raises ThresherError when one of them has ended.
    """

    def __init__(self, ranks: Sequence[int], rank: int, handle: Any = None) -> None:
        self.size = len(ranks)
        """How many they are."""
        self.place = list(ranks).index(rank)
        """Which of them this is."""
        self._handle = handle

    def add_up(self, x: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        """The sum of the tensors of all."""
        return self._reduce(x, dist.ReduceOp.SUM)

    def maximum(self, x: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        """The largest of each number."""
        return self._reduce(x, dist.ReduceOp.MAX)

    def minimum(self, x: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        """The smallest of each number."""
        return self._reduce(x, dist.ReduceOp.MIN)

    def gather(self, x: Shaped[Tensor, "*shape"]) -> list[Tensor]:
        """The tensors of all, which have one shape, in their order."""
        if self.size == 1:
            return [x]
        found = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(self.size)]
        exchange(lambda: dist.all_gather(found, x.contiguous(), group=self._handle))
        return found

    def collect(self, x: Shaped[Tensor, "*shape"]) -> list[Tensor] | None:
        """The tensors of all, which have one shape, in the first of them; None in the others."""
        if self.size == 1:
            return [x]
        found = [torch.empty_like(x) for _ in range(self.size)] if self.place == 0 else None
        exchange(lambda: dist.gather(x.contiguous(), found, group=self._handle, group_dst=0))
        return found

    def add_up_in_place(self, tensors: Sequence[Tensor]) -> None:
        """Put the sum of all in the place of each tensor; the tensors are on their way together."""
        if self.size == 1:
            return
        works = exchange(lambda: [dist.all_reduce(each, group=self._handle, async_op=True) for each in tensors])
        for work in works:
            exchange(work.wait)

    def __deepcopy__(self, memo: object) -> "Group":
        return self

    def _reduce(self, x: Tensor, operation: Any) -> Tensor:
        if self.size == 1:
            return x
        # Not every backend reduces booleans.
        sent = x.to(torch.uint8) if x.dtype == torch.bool else x
        total = sent.detach().clone(memory_format=torch.contiguous_format)
        exchange(lambda: dist.all_reduce(total, operation, group=self._handle))
        return total.to(x.dtype)


def exchange(call: Callable[[], T]) -> T:
    """What a collective call returns. Raises ThresherError when another process has ended."""
    try:
        return call()
    except RuntimeError as error:
        raise ThresherError(f"{ENDED} ({str(error).splitlines()[0][:200]})") from error


def mean_over(x: Float[Tensor, "*shape"], group: Group) -> Float[Tensor, "*shape"]:
    """The mean over the processes. Its gradient is that of the own tensor as if it were the mean.

    So the mean over processes of gradients is the gradient of what is computed from the mean, whatever that is.
    """
    return x if group.size == 1 else _Combined.apply(x, group, 1 / group.size)  # pyright: ignore[reportReturnType]


def sum_over(x: Float[Tensor, "*shape"], group: Group) -> Float[Tensor, "*shape"]:
    """The sum of the parts of all processes, each of which then computes the same from it: the gradient of each part."""
    return x if group.size == 1 else _Combined.apply(x, group, 1.0)  # pyright: ignore[reportReturnType]


def spread_over(x: Float[Tensor, "*shape"], group: Group) -> Float[Tensor, "*shape"]:
    """The same tensor, of which each process uses another part: its gradient is the sum over processes."""
    return x if group.size == 1 else _Spread.apply(x, group)  # pyright: ignore[reportReturnType]


class _Combined(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group, factor: float) -> Tensor:
        total = group.add_up(x)
        return total if factor == 1 else total * factor

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0], None, None


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.group.add_up(gradients[0]), None
