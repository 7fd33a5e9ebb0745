"""Memory on the host that rows pass through on their way to a CUDA device."""

import contextlib
import queue
import warnings
import weakref
from collections.abc import Generator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from thresher.data.gather import allocate_rows

PORTABLE = 1
"""Of cudaHostRegister: for every device of the process."""


class Staging:
    """Places for units, that a device copies from by itself (pinned), to be lent to threads one at a time.

    In huge pages where the system has them, which torch's own pinned memory need not be in: reads past the page cache into
    small ones come at 0.4 of the rate (1.3 instead of 3.1 GB/s, units of 768 KiB, 4 threads on two cores of an EPYC).
    """

    def __init__(self, n_places: int, shape: tuple[int, int], dtype: torch.dtype) -> None:
        """`shape` of a place [row, width]."""
        rows = allocate_rows((n_places * shape[0], shape[1]), dtype, torch.device("cpu"))
        self._release = weakref.finalize(self, _unpin, rows.data_ptr())
        self._release.atexit = False  # By then CUDA may be gone.
        if not _pin(rows):
            self._release.detach()
            rows = torch.empty_like(rows, pin_memory=True)
        self._free: queue.SimpleQueue[Tensor] = queue.SimpleQueue()
        for place in rows.split(shape[0]):
            self._free.put(place)

    @contextlib.contextmanager
    def lend(self) -> Generator[Float[Tensor, "row width"], None, None]:
        """A place that nobody else uses until this ends; waits for one."""
        place = self._free.get()
        try:
            yield place
        finally:
            self._free.put(place)

    def close(self) -> None:
        """Let the device forget the memory; none of it may be lent."""
        self._release()


def _pin(rows: Tensor) -> bool:
    """Let a device copy from memory that is there already; False, with a warning, where the driver refuses."""
    cudart: Any = torch.cuda.cudart()
    refusal = cudart.cudaHostRegister(rows.data_ptr(), rows.nbytes, PORTABLE)
    if refusal == cudart.cudaError.success:
        return True
    warnings.warn(
        f"rows go to the device through torch's pinned memory: CUDA does not register other ({refusal})", stacklevel=2
    )
    with contextlib.suppress(RuntimeError):
        torch.zeros(1, device="cuda")  # CUDA reports the refusal once more, to whoever uses it next.
    return False


def _unpin(address: int) -> None:
    cudart: Any = torch.cuda.cudart()
    cudart.cudaHostUnregister(address)
