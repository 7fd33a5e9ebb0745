"""Rows of one hook point in memory, on the host or on the device, that threads fill ahead of their use."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from thresher.data.gather import Gatherer, allocate_rows
from thresher.data.readable import Readable
from thresher.data.reads import open_reads
from thresher.data.staging import Staging
from thresher.data.store.schema import TORCH_DTYPE

READERS = 4
"""Threads that read at once, through the page cache: they copy."""
DIRECT_READERS = 8
"""Past it: they wait. On a busy machine (load 15 on two cores) 4 of them got 0.65 of what one got that reads in order, 8 got
0.91 of it; with more than 8 little changed."""
UNITS_PER_TASK = 2
"""Units that a thread reads before it looks for other work."""


class Pool:
    """A ring of `n_slots` groups of rows. A group is made of units: runs of neighbouring rows, each read by one call.

    A unit goes straight to its place, held-out rows and all, because leaving those out would cost a second copy. On CUDA it
    goes through pinned memory, and all work on the pool is queued on `cuda_stream`, so that a slot is never overwritten
    before what was gathered from it.
    """

    def __init__(
        self,
        store: Readable,
        hook_point: str,
        *,
        held_out: Bool[np.ndarray, "item"],
        unit_rows: int,
        units_per_group: int,
        n_slots: int,
        device: torch.device,
        cuda_stream: "torch.cuda.Stream | None",
        reads: Literal["cached", "direct"],
    ) -> None:
        self._store, self._hook_point = store, hook_point
        self._opened = open_reads(store, reads)
        self._held_out, self._holds_out = held_out, bool(held_out.any())
        self._unit_rows, self._slot_rows, self._n_slots = unit_rows, unit_rows * units_per_group, n_slots
        info = store.hook_points[hook_point]
        self._n_rows = info.rows
        self._shape, self._dtype = (self._slot_rows * n_slots, info.width), TORCH_DTYPE[info.dtype]
        self._device, self._cuda_stream = device, cuda_stream
        self._rows: Tensor | None = None
        self._gatherer: Gatherer | None = None
        self._n_readers = DIRECT_READERS if reads == "direct" else READERS
        self._readers = ThreadPoolExecutor(self._n_readers, thread_name_prefix="stream-read")
        self._reads: dict[int, list[Future[npt.NDArray[np.int64]]]] = {}
        self._units: dict[int, npt.NDArray[np.int64]] = {}
        self._staging: Staging | None = None

    def advance(self, first: int, units_of: Callable[[int], Int64[np.ndarray, "unit"]]) -> None:
        """Hold the `n_slots` groups from number `first` on, and forget all others; `units_of` gives the units of a group.

        Threads read those that are not there yet, in this order.
        """
        if self._rows is None:
            self._rows = allocate_rows(self._shape, self._dtype, self._device)
            if self._cuda_stream is not None:
                self._staging = Staging(self._n_readers, (self._unit_rows, self._shape[1]), self._dtype)
        window = range(first, first + self._n_slots)
        for stale in [number for number in self._reads if number not in window]:
            for read in self._reads.pop(stale):
                read.exception()  # Waits: its slot is read into next.
            del self._units[stale]
        for number in window:
            if number not in self._reads:
                units = self._units[number] = units_of(number)
                start = number % self._n_slots * self._slot_rows
                self._reads[number] = [
                    self._readers.submit(self._read_units, units[i : i + UNITS_PER_TASK], start + i * self._unit_rows)
                    for i in range(0, len(units), UNITS_PER_TASK)
                ]

    def find(self, number: int) -> Int64[np.ndarray, "row"]:
        """Where the training rows of a group are in the pool; waits until they are read."""
        return np.concatenate([read.result() for read in self._reads[number]])

    def gather(self, places: Int64[np.ndarray, "row"], out: Float[Tensor, "row width"]) -> None:
        """Fill `out`, on the pool's device, with rows of the pool."""
        assert self._rows is not None
        if self._device.type == "cuda":
            out.copy_(self._rows.index_select(0, torch.from_numpy(places).to(self._device)))
            return
        if self._gatherer is None:
            self._gatherer = Gatherer(self._rows)
        self._gatherer.gather(places, out)

    def locate(self, places: Int64[np.ndarray, "row"]) -> Int64[np.ndarray, "row"]:
        """Which rows of the store stand at these places of the pool."""
        units = np.zeros((self._n_slots, self._slot_rows // self._unit_rows), np.int64)
        for number, found in self._units.items():
            units[number % self._n_slots, : len(found)] = found
        slots, within = np.divmod(places, self._slot_rows)
        return units[slots, within // self._unit_rows] * self._unit_rows + within % self._unit_rows

    def count_training_rows(self, start: int, stop: int) -> Int64[np.ndarray, "unit"]:
        """For each unit from row `start` to `stop`, its training rows. `start` is where a unit begins."""
        starts = np.arange(start, stop, self._unit_rows)
        if not self._holds_out:
            return np.diff(starts, append=stop)
        return np.add.reduceat(self._is_training(start, stop), starts - start, dtype=np.int64)

    def close(self) -> None:
        """End the threads."""
        self._readers.shutdown(cancel_futures=True)
        if self._gatherer is not None:
            self._gatherer.close()
        if self._staging is not None:
            self._staging.close()

    def _is_training(self, start: int, stop: int) -> npt.NDArray[np.bool_]:
        return ~self._held_out[self._store.read_items_of(self._hook_point, start, stop)]

    def _read_units(self, units: npt.NDArray[np.int64], place: int) -> npt.NDArray[np.int64]:
        """Read units to `place` and behind it; gives where their training rows are."""
        starts = range(place, place + len(units) * self._unit_rows, self._unit_rows)
        return np.concatenate([self._read_unit(unit, start) for unit, start in zip(units.tolist(), starts, strict=True)])

    def _read_unit(self, unit: int, place: int) -> npt.NDArray[np.int64]:
        assert self._rows is not None
        start = unit * self._unit_rows
        stop = min(start + self._unit_rows, self._n_rows)
        target = self._rows[place : place + stop - start]
        if self._staging is None or self._cuda_stream is None:
            self._opened.read_into(self._hook_point, start, target)
        else:
            with self._staging.lend() as staged:
                self._read_through(staged[: len(target)], start, target, self._cuda_stream)
        if not self._holds_out:
            return np.arange(place, place + stop - start)
        return place + np.flatnonzero(self._is_training(start, stop))

    def _read_through(self, staged: Tensor, start: int, target: Tensor, cuda_stream: "torch.cuda.Stream") -> None:
        self._opened.read_into(self._hook_point, start, staged)
        with torch.cuda.stream(cuda_stream):
            target.copy_(staged, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record(cuda_stream)
        copied.synchronize()
