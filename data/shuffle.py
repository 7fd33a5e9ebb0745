"""The training rows of one hook point in a shuffled order that never ends, whatever the size of the store."""

import functools
import itertools
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Shaped
from torch import Tensor

from thresher.data.store import Store
from thresher.data.store.schema import TORCH_DTYPE

UNIT_BYTES = 1 << 20
"""Rows are read in runs of at most this size: from here on random order costs a disk next to nothing."""
UNITS_PER_POOL = 64
"""At least so many runs, from all over the file, are mixed in a pool."""
READERS = 4
"""Threads that read at once."""
COUNTED_ROWS = 1 << 20
"""Rows whose items are looked at in one go when training rows are counted."""


class _Pool(NamedTuple):
    """Rows in memory and the order in which they are handed out."""

    key: tuple[int, int]
    rows: Tensor
    order: Tensor
    first: int
    """Where its first row stands in the epoch."""


class ShuffledRows:
    """Endless epochs over the rows of a hook point that are not held out; each epoch has every row once.

    Runs of neighbouring rows are drawn in random order into a pool, and leave it one by one in random order, while the next
    pool is being read; each pool is half of `pool_rows`. When all rows fit into `pool_rows` they are read once, and each
    epoch is a uniform permutation. The order is a pure function of the store, `seed`, `stream` and the held-out items.
    """

    def __init__(
        self, store: Store, hook_point: str, *, held_out: Bool[np.ndarray, "item"], pool_rows: int, seed: int, stream: int
    ) -> None:
        info = store.hook_points[hook_point]
        self.dtype = TORCH_DTYPE[info.dtype]
        self.width = info.width
        self._store, self._hook_point, self._held_out = store, hook_point, held_out
        self._seed, self._stream = seed, stream
        self._unit_rows = max(1, min(UNIT_BYTES // (info.width * self.dtype.itemsize), pool_rows // (2 * UNITS_PER_POOL)))
        self._counts = self._count_training_rows(info.rows)
        self.n_rows = int(self._counts.sum())
        """Training rows."""
        self._n_pools = 1 if self.n_rows <= pool_rows else -(-2 * self.n_rows // pool_rows)
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="stream-read")
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="stream-load")
        self._current: _Pool | None = None
        self._next: tuple[tuple[int, int], Future[_Pool]] | None = None
        self._plan = functools.lru_cache(2)(self._plan_epoch)

    def take_into(self, position: int, out: Shaped[Tensor, "row width"]) -> None:
        """Fill `out` with the rows at `position` and after it, counted from the start of the first epoch."""
        done = 0
        while done < len(out):
            epoch, offset = divmod(position + done, self.n_rows)
            pool = self._pool(epoch, offset)
            order = pool.order[offset - pool.first :][: len(out) - done]
            target = out[done : done + len(order)]
            if target.dtype == pool.rows.dtype:
                torch.index_select(pool.rows, 0, order, out=target)
            else:
                target.copy_(pool.rows.index_select(0, order))
            done += len(order)

    def close(self) -> None:
        """End the reading threads."""
        self._loader.shutdown(cancel_futures=True)
        self._readers.shutdown(cancel_futures=True)

    def _count_training_rows(self, n_rows: int) -> npt.NDArray[np.int64]:
        """Run -> number of its rows that are not held out."""
        starts = np.arange(0, n_rows, self._unit_rows)
        if not self._held_out.any():
            return np.diff(starts, append=n_rows)
        counts = np.zeros(len(starts), np.int64)
        for start in range(0, n_rows, COUNTED_ROWS):
            stop = min(n_rows, start + COUNTED_ROWS)
            rows = start + np.flatnonzero(self._is_training(start, stop))
            counts += np.bincount(rows // self._unit_rows, minlength=len(starts))
        return counts

    def _is_training(self, start: int, stop: int) -> npt.NDArray[np.bool_]:
        return ~self._held_out[self._store.read_items_of(self._hook_point, start, stop)]

    def _plan_epoch(self, epoch: int) -> tuple[list[npt.NDArray[np.int64]], npt.NDArray[np.int64]]:
        """For each pool of an epoch its runs, and where each pool begins in the epoch."""
        units = np.arange(len(self._counts))
        if self._n_pools > 1:
            units = self._random(epoch, 0).permutation(units)
        pools = [pool for pool in np.array_split(units, self._n_pools) if self._counts[pool].sum()]
        return pools, np.cumsum([0, *(self._counts[pool].sum() for pool in pools)])

    def _pool(self, epoch: int, offset: int) -> _Pool:
        """The pool that holds the row at `offset` of an epoch; starts to read the one after it."""
        pools, firsts = self._plan(epoch)
        key = (epoch, int(np.searchsorted(firsts, offset, side="right")) - 1)
        if self._current is not None and self._current.key == key:
            return self._current
        if self._next is not None and self._next[0] == key:
            self._current = self._next[1].result()
        else:
            self._current = self._load(key)
        after = (epoch, key[1] + 1) if key[1] + 1 < len(pools) else (epoch + 1, 0)
        self._next = (after, self._loader.submit(self._load, after)) if self._n_pools > 1 else None
        return self._current

    def _load(self, key: tuple[int, int]) -> _Pool:
        pools, firsts = self._plan(key[0])
        units, first = pools[key[1]], int(firsts[key[1]])
        order = self._random(key[0], 1 + key[1]).permutation(int(self._counts[units].sum()))
        if self._n_pools == 1 and self._current is not None:
            return _Pool(key, self._current.rows, torch.from_numpy(order), first)
        rows = torch.empty((len(order), self.width), dtype=self.dtype)
        ends = itertools.accumulate(self._counts[units].tolist())
        list(self._readers.map(self._read_unit, units.tolist(), ends, itertools.repeat(rows)))
        return _Pool(key, rows, torch.from_numpy(order), first)

    def _read_unit(self, unit: int, end: int, rows: Tensor) -> None:
        """Read the training rows of a run to where they end in the pool."""
        start = unit * self._unit_rows
        stop = min(start + self._unit_rows, self._store.rows(self._hook_point))
        count = int(self._counts[unit])
        target = rows[end - count : end]
        if count == stop - start:
            self._store.read_into(self._hook_point, start, target)
        elif count:
            kept = torch.from_numpy(np.flatnonzero(self._is_training(start, stop)))
            torch.index_select(self._store.read(self._hook_point, start, stop), 0, kept, out=target)

    def _random(self, epoch: int, purpose: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, self._stream, epoch, purpose])
