"""Data-parallel training: every process has an equal share of the rows of each batch."""

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from thresher.train.arch.batch import WholeBatch
from thresher.train.parallel.group import Group, mean_over


class SharedBatch(WholeBatch):
    """The rows of a batch in order, an equal stretch of them in each process of a group."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self.n_parts = group.size

    def mean(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """See `WholeBatch`."""
        return mean_over(x, self._group)

    def average(self, parts: Mapping[str, Float[Tensor, ""]]) -> dict[str, Tensor]:
        """See `WholeBatch`; all parts in one exchange."""
        total = self._group.add_up(torch.stack([part.float() for part in parts.values()])) / self.n_parts
        return dict(zip(parts, total.unbind(), strict=True))

    def add_up(self, x: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        """See `WholeBatch`."""
        return self._group.add_up(x)

    def any(self, mask: Bool[Tensor, "*shape"]) -> Bool[Tensor, "*shape"]:
        """See `WholeBatch`."""
        return self._group.maximum(mask)

    def minimum(self, x: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """See `WholeBatch`."""
        return self._group.minimum(x)

    def gather(self, rows: Shaped[Tensor, "row *rest"]) -> Shaped[Tensor, "all_rows *rest"]:
        """See `WholeBatch`."""
        return torch.cat(self._group.gather(rows))

    def pick(self, rows: Float[Tensor, "row width"], wanted: Int[Tensor, "n"]) -> Float[Tensor, "n width"]:
        """See `WholeBatch`. Each process sends the rows that it has, and zeros for the others."""
        places = wanted - self._group.place * rows.shape[0]
        is_here = (places >= 0) & (places < rows.shape[0])
        found = rows.index_select(0, torch.where(is_here, places, 0))
        return self._group.add_up(torch.where(is_here[:, None], found, 0))

    def keep_largest(self, values: Float[Tensor, "n"], n_kept: int) -> Float[Tensor, "n"]:
        """See `WholeBatch`. Gathers the values of all processes."""
        everything = torch.stack(self._group.gather(values.detach()))
        is_kept = torch.zeros_like(everything, dtype=torch.bool).flatten()
        is_kept[everything.flatten().topk(n_kept, sorted=False).indices] = True
        return torch.where(is_kept.view_as(everything)[self._group.place], values, 0)


class Synchronize:
    """What `Learner` calls between the backward pass and clipping."""

    def __init__(self, rows: Group, atoms: Group, split: frozenset[int] = frozenset()) -> None:
        """`rows` have the same atoms, `atoms` the same rows; `split` are the ids of parameters that `atoms` have parts of."""
        self._rows, self._atoms, self._split = rows, atoms, split

    def __call__(self, parameters: Sequence[nn.Parameter]) -> Float[Tensor, ""]:
        """Average the gradients over the shares of the batch, in place; the norm of the whole gradient."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        self._rows.add_up_in_place(gradients)
        if self._rows.size > 1:
            for gradient in gradients:
                gradient.mul_(1 / self._rows.size)
        if self._atoms.size == 1:
            return get_total_norm(gradients)
        own = [parameter.grad for parameter in parameters if parameter.grad is not None and id(parameter) in self._split]
        shared = [parameter.grad for parameter in parameters if parameter.grad is not None and id(parameter) not in self._split]
        return (self._atoms.add_up(_square(own)) + _square(shared)).sqrt()


def take_share(n: int, place: int, size: int) -> slice:
    """The stretch of `n` things that one of `size` processes has; they differ by one at most."""
    return slice(n * place // size, n * (place + 1) // size)


def nearest_multiples(n: int, size: int) -> tuple[int, int]:
    """The multiples of `size` around `n`; the lower one is at least `size`."""
    return max(n // size, 1) * size, math.ceil(n / size) * size


def _square(gradients: Sequence[Tensor]) -> Tensor:
    return get_total_norm(gradients).square()
