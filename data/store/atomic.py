"""A file that is written beside its place and takes it when it is whole and durable; what is large goes past the page cache.

A write through the cache costs a processor a copy and the pages to hold it, 0.3 to 2 ns a byte on a busy machine; one past it
almost nothing, the disk reads the memory itself. The bytes in the file are the same.
"""

import contextlib
import ctypes
import errno
import fcntl
import functools
import mmap
import os
from collections.abc import Callable
from pathlib import Path

import crc32c
import numpy as np
import numpy.typing as npt

from thresher.data.store.storage import StoredFile
from thresher.files import sync_folder

ALIGNMENT = 4096
"""Of places in the file and in memory: what every disk and file system in use is content with."""
REFUSALS = (errno.EINVAL, errno.EOPNOTSUPP)
"""What a file system answers that cannot go past the page cache."""
DIRECT_BYTES = 1 << 20
"""From so many bytes at once it is worth waiting for the disk."""
WRITEBACK_BYTES = 8 << 20
"""Bytes of a file after which the disk is asked to begin with those that are in the page cache."""
SYNC_FILE_RANGE_WRITE = 2
"""Of sync_file_range(2): begin to write, do not wait."""


class AtomicFile:
    """A file that appears under its name when it is whole and durable; until then it is `.<name>.partial` beside it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._partial = partial_name(path)
        self._bytes = self._begun = 0
        self._crc = 0
        self._is_direct = False
        self._may_be_direct = hasattr(os, "O_DIRECT")
        self._folders = [path.parent, *make_folder(path.parent)]
        self._descriptor = os.open(self._partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)

    @property
    def checksum(self) -> str:
        """Of all that was appended."""
        return f"{self._crc:08x}"

    def append(self, buffer: memoryview | bytes) -> None:
        """Write a contiguous buffer behind what is there; past the page cache where it is large and consists of whole pages."""
        left = memoryview(buffer).cast("B")
        self._crc = crc32c.crc32c(left, self._crc)
        self._choose(left)
        self._bytes += len(left)
        while left:
            left = left[self._write(left) :]
        if self._is_direct:
            self._begun = self._bytes
        elif self._bytes - self._begun >= WRITEBACK_BYTES:
            begin_writeback(self._descriptor, self._begun, self._bytes - self._begun)
            self._begun = self._bytes

    def commit(self) -> StoredFile:
        """Make it durable and give it its name."""
        os.fsync(self._descriptor)
        self._close()
        self._partial.replace(self.path)
        for folder in self._folders:
            sync_folder(folder)
        return StoredFile(self._bytes, self.checksum)

    def discard(self) -> None:
        """Forget it; nothing of it stays. Must not follow `commit`."""
        with contextlib.suppress(OSError):
            self._close()
        with contextlib.suppress(OSError):
            self._partial.unlink(missing_ok=True)

    def _write(self, left: memoryview) -> int:
        """Write what can be written at once; gives how many bytes that was."""
        try:
            return os.write(self._descriptor, left)
        except OSError as error:
            if not (self._is_direct and error.errno in REFUSALS):
                raise
        # Also of the rest of a write that a limit has cut inside a page.
        self._may_be_direct = False
        self._choose(left)
        return 0

    def _choose(self, left: memoryview) -> None:
        """Go past the page cache if that is worth it and can be done, else through it."""
        is_large = self._may_be_direct and len(left) >= DIRECT_BYTES
        is_direct = is_large and self._bytes % ALIGNMENT == 0 and _is_paged(left)
        if is_direct == self._is_direct:
            return
        flags = fcntl.fcntl(self._descriptor, fcntl.F_GETFL)
        try:
            fcntl.fcntl(self._descriptor, fcntl.F_SETFL, flags ^ os.O_DIRECT)
        except OSError as error:
            if error.errno not in REFUSALS:
                raise
            self._may_be_direct = False
            return
        self._is_direct = is_direct

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def allocate_pages(n_bytes: int) -> npt.NDArray[np.uint8]:
    """Zeros that begin with a page; in huge pages where the system has them, of which a disk takes more at once."""
    memory = mmap.mmap(-1, max(1, n_bytes), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # A kernel without them.
            memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8, n_bytes)


def begin_writeback(descriptor: int, offset: int, n_bytes: int) -> None:
    """Let the disk begin with what was written, so that fsync finds less to do; nothing where the system has no such call."""
    call = _find_sync_file_range()
    if call is not None:
        call(descriptor, offset, n_bytes, SYNC_FILE_RANGE_WRITE)


@functools.cache
def _find_sync_file_range() -> Callable[[int, int, int, int], int] | None:
    call = getattr(ctypes.CDLL(None), "sync_file_range", None)
    if call is not None:
        call.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    return call


def partial_name(path: Path) -> Path:
    """What a file is called while it is being written."""
    return path.with_name(f".{path.name}.partial")


def make_folder(path: Path) -> list[Path]:
    """Create a folder and its parents; gives the folders that must be synced to make that durable."""
    if path.is_dir():
        return []
    changed = make_folder(path.parent)
    path.mkdir(exist_ok=True)
    return [path.parent, *changed]


def _is_paged(buffer: memoryview) -> bool:
    return len(buffer) % ALIGNMENT == 0 and np.frombuffer(buffer, np.uint8).ctypes.data % ALIGNMENT == 0
