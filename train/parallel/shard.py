"""Which atoms of a dictionary a process has, and what is asked of the processes that have the others."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from thresher.train.kernels import Codes
from thresher.train.parallel.group import Group, sum_over
from thresher.train.parallel.rows import take_share

DRAWN_ROWS = 4096
"""Atoms drawn at once: a multiple of 16, in groups of which torch draws normal numbers on a CPU."""


class Best(NamedTuple):
    """For each row its best atom over the whole dictionary."""

    number: Int[Tensor, "row"]
    """Of the atom in the whole dictionary."""
    value: Float[Tensor, "row"]
    """Its inner product with the row."""
    atom: Float[Tensor, "row d_in"]


class Shard:
    """A stretch of the atoms of a dictionary; the processes of `group` have all of them, and see the same rows."""

    def __init__(self, n_atoms: int, group: Group) -> None:
        mine = take_share(n_atoms, group.place, group.size)
        self.n_atoms, self.first, self.stop = n_atoms, mine.start, mine.stop
        self.group = group

    @property
    def n_own(self) -> int:
        """Atoms of this process."""
        return self.stop - self.first

    def own(self, codes: Codes) -> Codes:
        """The same codes with all but the own atoms turned into padding, indices counted within the shard."""
        is_own = (codes.indices >= self.first) & (codes.indices < self.stop)
        return Codes(torch.where(is_own, codes.indices - self.first, 0), torch.where(is_own, codes.values, 0))

    def fetch(self, indices: Int[Tensor, "n"], own: Float[Tensor, "own d_in"]) -> Float[Tensor, "n d_in"]:
        """Atoms by their number in the whole dictionary; no gradient."""
        places = indices - self.first
        is_own = (places >= 0) & (places < self.n_own)
        found = own.index_select(0, torch.where(is_own, places, 0))
        return self.group.add_up(found.masked_fill_(~is_own[:, None], 0))

    def find_best(
        self,
        picks: Int[Tensor, "row"],
        values: Float[Tensor, "row"],
        keys: Float[Tensor, "row"],
        own: Float[Tensor, "own d_in"],
    ) -> Best:
        """The pick of largest key over all processes, of equal ones that of the lowest index.

        `picks` are the best own atoms, counted within the shard, `values` their inner products, which `keys` compares.
        Exchanges 24 bytes and an atom per row.
        """
        sent = torch.stack([keys.double(), values.double(), (picks + self.first).double()])
        found = torch.stack(self.group.gather(sent))
        owner = found[:, 0].argmax(0)
        _, value, index = found.gather(0, owner.expand(1, 3, -1))[0]
        return Best(index.long(), value.to(values.dtype), self.fetch(index.long(), own))

    def merge_topk(self, scores: Float[Tensor, "row own"], k: int) -> tuple[Int[Tensor, "row k"], Float[Tensor, "row k"]]:
        """The k atoms of largest score in the whole dictionary, largest first, and their scores; no gradient.

        Of equal scores of different processes the lower index goes first. Exchanges 12 k bytes per row and process.
        """
        n_rows, width = scores.shape[0], min(k, self.n_atoms)
        values, places = scores.detach().topk(min(width, self.n_own), dim=1)
        # Shards can differ by an atom; all send what the largest can have.
        most = min(width, -(-self.n_atoms // self.group.size))
        missing = most - values.shape[1]
        values = torch.cat([values, values.new_full((n_rows, missing), -torch.inf)], 1)
        places = torch.cat([places + self.first, places.new_zeros(n_rows, missing)], 1)
        everything = torch.cat(self.group.gather(values), 1)
        order = everything.sort(dim=1, descending=True, stable=True).indices[:, :width]
        return torch.cat(self.group.gather(places), 1).gather(1, order), everything.gather(1, order)

    def sum(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The sum of what each process has computed with its atoms."""
        return sum_over(x, self.group)

    def join(self, part: Shaped[Tensor, "own *rest"]) -> Shaped[Tensor, "n_atoms *rest"]:
        """The whole of a tensor with a row per atom, in all processes; no gradient."""
        return self._cat(self.group.gather(self._pad(part)))

    def collect(self, part: Shaped[Tensor, "own *rest"], on_host: Group) -> Tensor | None:
        """The same in the first process only; `on_host` are the same processes for tensors of the host."""
        found = on_host.collect(self._pad(part))
        return None if found is None else self._cat(found)

    def _pad(self, part: Tensor) -> Tensor:
        """With rows to the number that the largest shard has: what is exchanged has one shape."""
        missing = -(-self.n_atoms // self.group.size) - part.shape[0]
        return torch.cat([part, part.new_zeros(missing, *part.shape[1:])]) if missing else part

    def _cat(self, parts: list[Tensor]) -> Tensor:
        counts = [len(range(*take_share(self.n_atoms, place, len(parts)).indices(self.n_atoms))) for place in range(len(parts))]
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def draw_atoms(d_sae: int, d_in: int, generator: torch.Generator, first: int, stop: int) -> Float[Tensor, "own d_in"]:
    """Rows `first` to `stop` of `torch.randn(d_sae, d_in)` with this generator, to the last bit, without the other rows.

    torch draws normal numbers in sixteens, and the last sixteen anew when a few are left; so pieces of sixteens give the
    same numbers when the last piece has sixteen at least.
    """
    wanted = torch.empty(stop - first, d_in)
    starts = list(range(0, d_sae, DRAWN_ROWS))
    if len(starts) > 1 and (d_sae - starts[-1]) * d_in < 16:
        starts.pop()
    for start, end in zip(starts, [*starts[1:], d_sae], strict=True):
        drawn = torch.randn(end - start, d_in, generator=generator)
        low, high = max(start, first), min(end, stop)
        if low < high:
            wanted[low - first : high - first] = drawn[low - start : high - start]
    return wanted
