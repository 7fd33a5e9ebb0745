"""HDF5 files on disks that may be full."""

import io
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py


class _Disk(io.FileIO):
    """A file that keeps its first error for later and lets all writes succeed."""

    error: OSError | None = None

    def write(self, data: Any, /) -> int:
        """Write all of it, or note why that failed."""
        left = memoryview(data).cast("B")
        n_bytes = len(left)
        try:
            while self.error is None and left:
                left = left[super().write(left) :]
        except OSError as error:
            self.error = error
        return n_bytes

    def truncate(self, size: int | None = None, /) -> int:
        """Cut off or extend it, or note why that failed."""
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = self.error or error
            return size or 0

    def raise_error(self) -> None:
        """Raise what has gone wrong, if anything has."""
        if self.error is not None:
            raise self.error


@contextmanager
def open_hdf5(path: Path) -> Generator[tuple[Any, Callable[[], None]], None, None]:
    """An HDF5 file to write to, new or with what it holds, and a function that raises OSError when the disk has failed.

    The end of the block raises that as well. HDF5 itself must not see it: a write that fails while it closes a file leaves it
    with what it cannot write, and the process crashes.
    """
    with _Disk(path, "r+" if path.exists() else "w+") as disk:
        with h5py.File(disk, "a") as file:
            yield file, disk.raise_error
        disk.raise_error()
