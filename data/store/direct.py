"""Reading past the page cache: for stores that are larger than it, where it would be filled for nothing.

Such reads cost a processor almost nothing, the disk writes to memory itself, but want whole blocks of the file and memory that
begins with a page. What is not like this goes through a small buffer that is.
"""

import errno
import mmap
import os
import threading
import warnings
from pathlib import Path

import numpy as np

from thresher.data.store.atomic import ALIGNMENT, REFUSALS
from thresher.data.store.local import LocalFile, LocalStorage

BUFFER_BYTES = 1 << 20
"""What is read at once where the caller's memory does not fit."""


class DirectStorage(LocalStorage):
    """The folder `root`, its files read past the page cache; through it, with one warning, where the file system cannot."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._buffers = Buffers()
        self._has_warned = False

    def open(self, path: str) -> LocalFile:
        """Open a file for reading at any place."""
        try:
            return DirectFile(self._root / path, self._buffers)
        except OSError as error:
            if error.errno not in REFUSALS:
                raise
            if not self._has_warned:
                self._has_warned = True
                warnings.warn(f"{self.locate(path)}: read through the page cache, O_DIRECT is refused ({error})", stacklevel=2)
            return AnnouncedFile(self._root / path)


class Buffers(threading.local):
    """One buffer for each thread."""

    def __init__(self) -> None:
        self.bytes = memoryview(mmap.mmap(-1, BUFFER_BYTES))


class DirectFile(LocalFile):
    """A file that is read past the page cache."""

    def __init__(self, path: Path, buffers: Buffers) -> None:
        """Raises OSError (EINVAL, EOPNOTSUPP) where the system or the file system has no such reads."""
        if not hasattr(os, "O_DIRECT"):
            raise OSError(errno.EOPNOTSUPP, "the system has no O_DIRECT", str(path))
        super().__init__(path, os.O_DIRECT)
        self._buffers = buffers
        # Some file systems open such a file and refuse to read it.
        os.preadv(self._descriptor, [buffers.bytes[:ALIGNMENT]], 0)

    def read_into(self, offset: int, target: memoryview) -> int:
        """Fill `target` with the bytes from `offset` on."""
        done = self._read_blocks(offset, target)
        while done < len(target):
            first = (offset + done) // ALIGNMENT * ALIGNMENT
            skipped = offset + done - first
            wanted = min(len(self._buffers.bytes), _round_up(skipped + len(target) - done))
            n_read = os.preadv(self._descriptor, [self._buffers.bytes[:wanted]], first)
            taken = min(n_read - skipped, len(target) - done)
            if taken <= 0:
                break
            target[done : done + taken] = self._buffers.bytes[skipped : skipped + taken]
            done += taken
        return done

    def _read_blocks(self, offset: int, target: memoryview) -> int:
        """Read the blocks that can go straight to `target`; gives how many bytes they have."""
        if offset % ALIGNMENT or np.frombuffer(target, np.uint8).ctypes.data % ALIGNMENT:
            return 0
        done, stop = 0, len(target) // ALIGNMENT * ALIGNMENT
        while done < stop:
            n_read = os.preadv(self._descriptor, [target[done:stop]], offset + done)
            done += n_read
            if n_read % ALIGNMENT or not n_read:
                break
        return done


class AnnouncedFile(LocalFile):
    """A file that is read through the page cache in large pieces from anywhere: the kernel learns of each as a whole."""

    def read_into(self, offset: int, target: memoryview) -> int:
        """Fill `target` with the bytes from `offset` on."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._descriptor, offset, len(target), os.POSIX_FADV_WILLNEED)
        return super().read_into(offset, target)


def _round_up(n: int) -> int:
    return -(-n // ALIGNMENT) * ALIGNMENT
