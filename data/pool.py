"""Rows of one hook point in memory, on the host or on the device, that threads fill ahead of their use."""

import itertools
import queue
import threading
import weakref
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

from thresher.data.readable import Readable
from thresher.data.store.schema import TORCH_DTYPE

READERS = 4
"""Threads that read at once."""
CONVERTED_ROWS = 256
"""Rows that are gathered before they are converted: few enough to be still in the processor's cache."""


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
    ) -> None:
        self._store, self._hook_point = store, hook_point
        self._held_out, self._holds_out = held_out, bool(held_out.any())
        self._unit_rows, self._slot_rows, self._n_slots = unit_rows, unit_rows * units_per_group, n_slots
        info = store.hook_points[hook_point]
        self._shape, self._dtype = (self._slot_rows * n_slots, info.width), TORCH_DTYPE[info.dtype]
        self._device, self._cuda_stream = device, cuda_stream
        self._rows: Tensor | None = None
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="stream-read")
        self._reads: dict[int, list[Future[npt.NDArray[np.int64]]]] = {}
        self._found: dict[int, npt.NDArray[np.int64]] = {}
        self._units: Mapping[int, npt.NDArray[np.int64]] = {}
        self._staging = threading.local()

    def advance(self, upcoming: Mapping[int, npt.NDArray[np.int64]]) -> None:
        """Forget all groups but those of `upcoming`, at most `n_slots` consecutive numbers, each with its units.

        Threads read those that are not there yet, in this order.
        """
        self._units = upcoming
        stale = [number for number in self._reads if number not in upcoming]
        wait(list(itertools.chain.from_iterable(self._reads.pop(number) for number in stale)))
        self._found = {number: found for number, found in self._found.items() if number in upcoming}
        if self._rows is None:
            self._rows = _allocate(self._shape, self._dtype, self._device)
        for number, units in upcoming.items():
            if number not in self._reads:
                places = range(number % self._n_slots * self._slot_rows, self._shape[0], self._unit_rows)
                self._reads[number] = [
                    self._readers.submit(self._read_unit, int(unit), place) for unit, place in zip(units, places, strict=False)
                ]

    def find(self, number: int) -> Int64[np.ndarray, "row"]:
        """Where the training rows of a group are in the pool; waits until they are read."""
        if number not in self._found:
            self._found[number] = np.concatenate([read.result() for read in self._reads[number]])
        return self._found[number]

    def gather(self, places: Int64[np.ndarray, "row"], out: Float[Tensor, "row width"]) -> None:
        """Fill `out`, on the pool's device, with rows of the pool."""
        assert self._rows is not None
        if self._device.type == "cuda":
            out.copy_(self._rows.index_select(0, torch.from_numpy(places).to(self._device)))
        elif out.dtype == self._dtype:
            np.take(_bits(self._rows), places, axis=0, out=_bits(out), mode="clip")
        else:
            block = torch.empty((min(CONVERTED_ROWS, len(places)), self._shape[1]), dtype=self._dtype)
            for start in range(0, len(places), CONVERTED_ROWS):
                part = places[start : start + CONVERTED_ROWS]
                np.take(_bits(self._rows), part, axis=0, out=_bits(block[: len(part)]), mode="clip")
                out[start : start + len(part)].copy_(block[: len(part)])

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
        """End the reading threads."""
        self._readers.shutdown(cancel_futures=True)

    def _is_training(self, start: int, stop: int) -> npt.NDArray[np.bool_]:
        return ~self._held_out[self._store.read_items_of(self._hook_point, start, stop)]

    def _read_unit(self, unit: int, place: int) -> npt.NDArray[np.int64]:
        """Read a unit to `place`; gives where its training rows are."""
        assert self._rows is not None
        start = unit * self._unit_rows
        stop = min(start + self._unit_rows, self._store.rows(self._hook_point))
        target = self._rows[place : place + stop - start]
        if self._cuda_stream is None:
            self._store.read_into(self._hook_point, start, target)
        else:
            self._read_through_pinned(start, target, self._cuda_stream)
        if not self._holds_out:
            return np.arange(place, place + stop - start)
        return place + np.flatnonzero(self._is_training(start, stop))

    def _read_through_pinned(self, start: int, target: Tensor, cuda_stream: "torch.cuda.Stream") -> None:
        if not hasattr(self._staging, "rows"):
            self._staging.rows = torch.empty((self._unit_rows, self._shape[1]), dtype=self._dtype, pin_memory=True)
        staged: Tensor = self._staging.rows[: len(target)]
        self._store.read_into(self._hook_point, start, staged)
        with torch.cuda.stream(cuda_stream):
            target.copy_(staged, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record(cuda_stream)
        copied.synchronize()


class ReusedMemory:
    """Float32 tensors of one shape; on the host the memory of those that nobody holds any more is used again.

    Fresh memory costs the kernel a fault for each page: with it the batches of a CPU come at 0.8 of the rate.
    """

    def __init__(self, shape: tuple[int, int], device: torch.device) -> None:
        self._shape, self._device = shape, device
        self._free: queue.SimpleQueue[npt.NDArray[np.float32]] = queue.SimpleQueue()

    def take(self) -> Float32[Tensor, "row d_in"]:
        """A tensor of any values."""
        if self._device.type == "cuda":
            return torch.empty(self._shape, device=self._device)
        try:
            memory = self._free.get_nowait()
        except queue.Empty:
            memory = np.empty(self._shape, np.float32)
        # The storage of the tensor keeps this view alive, and with it every tensor that shares the storage.
        lent = memory.view()
        weakref.finalize(lent, self._free.put, memory)
        return torch.from_numpy(lent)


def _allocate(shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
    if device.type == "cuda":
        return torch.empty(shape, dtype=dtype, device=device)
    # numpy asks the kernel for huge pages where torch does not: gathering from them is 1.4 times as fast (6.6 instead of
    # 4.7 GB/s from 0.9 GB in rows of 1.5 KB, one core of an EPYC).
    bits: npt.NDArray[Any] = np.empty(shape, np.int32 if dtype.itemsize == 4 else np.int16)
    return torch.from_numpy(bits).view(dtype)


def _bits(x: Tensor) -> npt.NDArray[Any]:
    """The memory of a CPU tensor as integers of the same size: numpy has no bfloat16."""
    return x.view(torch.int32 if x.dtype.itemsize == 4 else torch.int16).numpy()
