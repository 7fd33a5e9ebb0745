"""Memory for rows on the host, and the way from a pool of them into a batch."""

import contextlib
import importlib.util
import math
import mmap
import os
import queue
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

GATHERERS = 4
"""Threads that fill a batch, at most; no more than there are processors."""
BLOCK_BYTES = 1 << 19
"""Rows that are gathered before they are converted: few enough to be still in the processor's cache."""
COMPILED_ELEMENTS = 1 << 24
"""From a pool of so many on, and with numba installed, rows are gathered and converted in one pass by a compiled loop that
writes past the cache: 0.14 instead of 0.34 CPU seconds per GB of bfloat16. To compile it takes some seconds, once on a
machine."""
HUGE_PAGE = 2 << 20
"""Bytes of one; of a system with larger ones, whatever it makes of a request."""
LINE_BYTES = 64
"""Of a line of the processor's cache: where batches begin, so that they can be written past it."""
LINE_VALUES = LINE_BYTES // 4
"""Of a batch in such a line."""
SERIAL_ELEMENTS = (1 << 15) - 1
"""Torch converts so many elements in the calling thread. Of more it would make a team of OpenMP threads for each of ours, whose
waiting took ten times the processor time of the work on a machine with other things to do."""


class _Block(NamedTuple):
    """Memory between gathering and conversion."""

    bits: npt.NDArray[Any]
    rows: Tensor
    """The same memory in the dtype of the pool."""
    pieces: Sequence[Tensor]
    """The same memory in runs that torch converts in one thread."""


class Gatherer:
    """Fills batches with rows of one pool on the host, by several threads."""

    def __init__(self, rows: Float[Tensor, "row width"]) -> None:
        self._rows, self._bits = rows, view_bits(rows)
        width = rows.shape[1]
        self._block_rows = max(1, BLOCK_BYTES // (width * rows.element_size()))
        self._piece_rows = max(1, SERIAL_ELEMENTS // width)
        self._helpers = min(GATHERERS, os.cpu_count() or 1) - 1
        self._threads = ThreadPoolExecutor(max(1, self._helpers), thread_name_prefix="stream-gather")
        self._own = threading.local()
        self._stream: Callable[..., None] | None = None
        is_large = rows.shape[1] % LINE_VALUES == 0 and rows.numel() >= COMPILED_ELEMENTS
        if is_large and importlib.util.find_spec("numba") is not None:
            from thresher.data.widening import KINDS, compile_streaming  # Only here: numba takes a second to import.

            kind = KINDS[str(rows.dtype).removeprefix("torch.")]
            self._stream, self._kinds = compile_streaming(kind), self._bits.view(kind)

    def gather(self, places: Int64[np.ndarray, "row"], out: Float[Tensor, "row width"]) -> None:
        """Fill `out`, of the dtype of the pool or float32, with rows of the pool."""
        n_blocks = -(-len(places) // self._block_rows)
        share = -(-n_blocks // (self._helpers + 1)) * self._block_rows
        shares = [slice(start, start + share) for start in range(0, len(places), max(share, 1))]
        filling = [self._threads.submit(self.fill, places[each], out[each]) for each in shares[1:]]
        if shares:
            self.fill(places[shares[0]], out[shares[0]])
        # All are waited for before the first error is raised: they write to the batch.
        errors = [each.exception() for each in filling]
        for error in errors:
            if error is not None:
                raise error

    def fill(self, places: Int64[np.ndarray, "row"], out: Float[Tensor, "row width"]) -> None:
        """`gather` in the calling thread alone."""
        bits = view_bits(out)
        if self._stream is not None and out.dtype == torch.float32 and bits.ctypes.data % LINE_BYTES == 0:
            self._stream(self._kinds, places, bits.view(np.uint32))
        elif out.dtype == self._rows.dtype:
            np.take(self._bits, places, axis=0, out=bits, mode="clip")
        else:
            self._fill_by_blocks(places, out)

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown()

    def _fill_by_blocks(self, places: npt.NDArray[np.int64], out: Tensor) -> None:
        block = self._find_block()
        for part, target in zip(_cut(places, self._block_rows), out.split(self._block_rows), strict=True):
            np.take(self._bits, part, axis=0, out=block.bits[: len(part)], mode="clip")
            is_whole = len(part) == self._block_rows
            pieces = block.pieces if is_whole else block.rows[: len(part)].split(self._piece_rows)
            for piece, converted in zip(pieces, target.split(self._piece_rows), strict=True):
                converted.copy_(piece)

    def _find_block(self) -> _Block:
        """The block of the calling thread."""
        if not hasattr(self._own, "block"):
            rows = torch.empty((self._block_rows, self._rows.shape[1]), dtype=self._rows.dtype)
            self._own.block = _Block(view_bits(rows), rows, rows.split(self._piece_rows))
        block: _Block = self._own.block
        return block


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
            memory = allocate_lines(self._shape)
        # The storage of the tensor keeps this view alive, and with it every tensor that shares the storage.
        lent = memory.view()
        weakref.finalize(lent, self._free.put, memory)
        return torch.from_numpy(lent)


def allocate_rows(shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Float[Tensor, "row width"]:
    """Memory of any values; on the host it begins with a page, as reads past the page cache want it.

    In huge pages where the system has them: gathering from them is 1.4 times as fast (6.6 instead of 4.7 GB/s from 0.9 GB in
    rows of 1.5 KB, one core of an EPYC), and reads past the page cache into them 2.4 times.
    """
    if device.type == "cuda":
        return torch.empty(shape, dtype=dtype, device=device)
    n_values = math.prod(shape)
    n_bytes = max(1, n_values * dtype.itemsize)
    is_large = n_bytes >= HUGE_PAGE // 4 and hasattr(mmap, "MADV_HUGEPAGE")
    # The system gives only what begins with a huge page and has all of it.
    room = (-(-n_bytes // HUGE_PAGE) + 1) * HUGE_PAGE if is_large else n_bytes
    memory = mmap.mmap(-1, room, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    values = np.dtype(np.int32 if dtype.itemsize == 4 else np.int16)
    first = 0
    if is_large:
        with contextlib.suppress(OSError):  # A kernel without them.
            memory.madvise(mmap.MADV_HUGEPAGE)
        first = -np.frombuffer(memory, np.uint8).ctypes.data % HUGE_PAGE
    bits = np.frombuffer(memory, values, n_values, first)
    return torch.from_numpy(bits.reshape(shape)).view(dtype)


def allocate_lines(shape: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Memory of any values that begins with a line of the processor's cache; `shape` [row, width]."""
    n_bytes = math.prod(shape) * 4
    memory = np.empty(n_bytes + LINE_BYTES, np.uint8)
    first = -memory.ctypes.data % LINE_BYTES
    return memory[first : first + n_bytes].view(np.float32).reshape(shape)


def view_bits(x: Tensor) -> npt.NDArray[Any]:
    """The memory of a CPU tensor as integers of the same size: numpy has no bfloat16."""
    return x.view(torch.int32 if x.dtype.itemsize == 4 else torch.int16).numpy()


def _cut(places: npt.NDArray[np.int64], size: int) -> list[npt.NDArray[np.int64]]:
    return [places[start : start + size] for start in range(0, len(places), size)]
