"""The training rows of one hook point in a shuffled order that never ends, whatever the size of the store."""

import functools
import itertools
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from thresher.data.pool import Pool
from thresher.data.readable import Readable
from thresher.data.store.schema import TORCH_DTYPE

UNIT_BYTES = 1 << 20
"""Rows are read in runs of at most this size: from here on random order costs a disk next to nothing."""
STAGES = 64
"""Groups that each stratum draws from; fewer in a pool of few rows."""
AHEAD = 2
"""Groups that are read before they are needed."""
UNITS_PER_POOL = 128
"""At least so many units, from all over the file, are mixed."""
GROUP_ROWS = 32
"""Groups of a small pool have at least so many rows, and are fewer."""
COUNTED_ROWS = 1 << 20
"""Rows whose items are looked at in one go when training rows are counted."""


class _Plan(NamedTuple):
    """The order of one epoch, but for the choice among the rows of a group."""

    groups: list[npt.NDArray[np.int64]]
    """For each group its units."""
    counts: npt.NDArray[np.int64]
    """For each group its training rows."""
    firsts: npt.NDArray[np.int64]
    """For each stratum the rows of the epoch before it; then the rows of the epoch."""


class _Stratum(NamedTuple):
    """Rows that leave the pool together, in random order."""

    epoch: int
    first: int
    """Where its first row stands in the epoch."""
    places: npt.NDArray[np.int64]
    """Where its rows are in the pool."""


class ShuffledRows:
    """Endless epochs over the rows of a hook point that are not held out; each epoch has every row once.

    Units, runs of neighbouring rows, are put into groups at random. The pool slides over the groups: stratum t takes from
    each of the last `stages` groups a random 1 / stages of its rows and mixes them; then the oldest group, all taken, makes
    room for the next one. So a row waits for a time that is uniform over the length of the pool, and a position needs no
    history: what stratum t holds follows from t. At both ends of an epoch, over half a pool each, fewer groups are mixed.
    When all rows fit into `pool_rows` they are read once, and each epoch is a uniform permutation. The order is a pure
    function of the store, `seed`, `stream`, `pool_rows` and the held-out items.
    """

    def __init__(
        self,
        store: Readable,
        hook_point: str,
        *,
        held_out: Bool[np.ndarray, "item"],
        pool_rows: int,
        seed: int,
        stream: int,
        device: torch.device,
        cuda_stream: "torch.cuda.Stream | None",
        reads: Literal["cached", "direct"],
    ) -> None:
        info = store.hook_points[hook_point]
        self._seed, self._stream = seed, stream
        self._is_whole = info.rows <= pool_rows
        n_slots = 1 if self._is_whole else min(STAGES + AHEAD, max(AHEAD + 1, pool_rows // GROUP_ROWS))
        group_rows = max(1, info.rows if self._is_whole else pool_rows // n_slots)
        # A power of two divides the chunks of the store and keeps reads on the boundaries of pages.
        row_bytes = info.width * TORCH_DTYPE[info.dtype].itemsize
        unit_rows = 1 << max(1, min(UNIT_BYTES // row_bytes, pool_rows // UNITS_PER_POOL)).bit_length() - 1
        self._units_per_group = -(-group_rows // unit_rows) if self._is_whole else max(1, group_rows // unit_rows)
        self._n_slots = n_slots
        self._pool = Pool(
            store,
            hook_point,
            held_out=held_out,
            unit_rows=unit_rows,
            units_per_group=self._units_per_group,
            n_slots=n_slots,
            device=device,
            cuda_stream=cuda_stream,
            reads=reads,
        )
        step = max(1, COUNTED_ROWS // unit_rows) * unit_rows
        counts = [self._pool.count_training_rows(start, min(start + step, info.rows)) for start in range(0, info.rows, step)]
        self._counts = np.concatenate([np.zeros(0, np.int64), *counts])
        self.n_rows = int(self._counts.sum())
        """Training rows."""
        self._units = np.flatnonzero(self._counts)
        self._n_groups = max(1, -(-len(self._units) // self._units_per_group))
        self._stages = 1 if self._is_whole else min(n_slots - AHEAD, self._n_groups)
        self._stratum: _Stratum | None = None
        self._plan = functools.lru_cache(3)(self._plan_epoch)
        self._shares: dict[int, list[npt.NDArray[np.int64]]] = {}
        """For each group in the pool, by number, the places of the rows that each stratum takes from it."""

    def take_into(self, position: int, out: Float[Tensor, "row width"]) -> None:
        """Fill `out` with the rows at `position` and after it, counted from the start of the first epoch."""
        done = 0
        while done < len(out):
            epoch, offset = divmod(position + done, self.n_rows)
            stratum = self._find_stratum(epoch, offset)
            places = stratum.places[offset - stratum.first :][: len(out) - done]
            self._pool.gather(places, out[done : done + len(places)])
            done += len(places)

    def find_rows(self, position: int, count: int) -> Int64[np.ndarray, "row"]:
        """Where the `count` rows at `position` and after it stand in the store."""
        found = [np.zeros(0, np.int64)]
        while (done := sum(map(len, found))) < count:
            epoch, offset = divmod(position + done, self.n_rows)
            stratum = self._find_stratum(epoch, offset)
            found.append(self._pool.locate(stratum.places[offset - stratum.first :][: count - done]))
        return np.concatenate(found)

    def close(self) -> None:
        """End the reading threads."""
        self._pool.close()

    def _plan_epoch(self, epoch: int) -> _Plan:
        units = self._units if self._is_whole else self._random(epoch, 0).permutation(self._units)
        groups = [units[start : start + self._units_per_group] for start in range(0, len(units), self._units_per_group)]
        counts = np.array([self._counts[group].sum() for group in groups])
        sizes = np.zeros(len(groups) + self._stages - 1, np.int64)
        for age in range(self._stages):
            sizes[age : age + len(groups)] += counts * (age + 1) // self._stages - counts * age // self._stages
        return _Plan(groups, counts, np.cumsum(np.concatenate([[0], sizes])))

    def _find_stratum(self, epoch: int, offset: int) -> _Stratum:
        """The stratum that holds the row at `offset` of an epoch; what comes after it is being read."""
        now = self._stratum
        if now is None or now.epoch != epoch or not 0 <= offset - now.first < len(now.places):
            firsts = self._plan(epoch).firsts
            number = int(np.searchsorted(firsts, offset, side="right")) - 1
            now = self._stratum = _Stratum(epoch, int(firsts[number]), self._mix(epoch, number))
        return now

    def _mix(self, epoch: int, number: int) -> npt.NDArray[np.int64]:
        """Where the rows of a stratum are in the pool, in random order."""
        oldest, newest = max(0, number - self._stages + 1), min(number, self._n_groups - 1)
        before = 0 if self._is_whole else epoch * self._n_groups
        self._advance(before + oldest)
        for group in range(oldest, newest + 1):
            if before + group not in self._shares:
                self._shares[before + group] = self._share_out(epoch, group)
        places = [self._shares[before + group][number - group] for group in range(oldest, newest + 1)]
        return self._random(epoch, 1 + number).permutation(np.concatenate(places))

    def _advance(self, first: int) -> None:
        """Let the pool hold the groups from number `first` on: the rest of an epoch, and the beginning of the next one."""
        self._pool.advance(first, self._find_units)
        # What leaves the pool and comes back, after a jump, is waited for again.
        for gone in [number for number in self._shares if not first <= number < first + self._n_slots]:
            del self._shares[gone]

    def _find_units(self, number: int) -> npt.NDArray[np.int64]:
        epoch, group = divmod(number, self._n_groups)
        return self._plan(epoch).groups[group]

    def _share_out(self, epoch: int, group: int) -> list[npt.NDArray[np.int64]]:
        """Where the rows of a group are in the pool, in random order, cut into the shares of the strata.

        A function of the number of the group, because its slot is. Waits until the group is read.
        """
        if self._is_whole:
            return [self._pool.find(0)]
        found = self._pool.find(epoch * self._n_groups + group)
        order = found[self._random(epoch, 0, group).permutation(len(found))]
        ends = (len(found) * np.arange(self._stages + 1) // self._stages).tolist()
        return [order[start:stop] for start, stop in itertools.pairwise(ends)]

    def _random(self, *purpose: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, self._stream, *purpose])
