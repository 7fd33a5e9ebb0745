"""A store on a file system of this machine: temporary file, fsync, rename, fsync of the folder."""

import fcntl
import os
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path

from thresher.data.store.atomic import AtomicFile, make_folder, partial_name
from thresher.data.store.layout import LOCK
from thresher.errors import StoreError
from thresher.files import sync_folder


class LocalStorage:
    """The folder `root`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def locate(self, path: str = "") -> str:
        """The full name of a file."""
        return str(self._root / path)

    def size(self, path: str) -> int | None:
        """Bytes of a file, None when it is not there."""
        try:
            return (self._root / path).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def list_files(self, folder: str) -> Iterator[str]:
        """The files in a folder and below, in order."""
        for parent, subfolders, names in os.walk(self._root / folder):
            subfolders.sort()
            for name in sorted(names):
                yield (Path(parent) / name).relative_to(self._root).as_posix()

    def read(self, path: str) -> bytes:
        """All of a small file."""
        return (self._root / path).read_bytes()

    def open(self, path: str) -> "LocalFile":
        """Open a file for reading at any place."""
        return LocalFile(self._root / path)

    def create(self, path: str) -> AtomicFile:
        """Begin a file."""
        return AtomicFile(self._root / path)

    def replace(self, path: str, content: bytes) -> None:
        """Replace a small file in one step, without waiting for the disk."""
        target = self._root / path
        make_folder(target.parent)
        partial = partial_name(target)
        partial.write_bytes(content)
        partial.replace(target)

    def sync(self, path: str) -> None:
        """Make durable what `replace` wrote."""
        with (self._root / path).open("rb") as file:
            os.fsync(file.fileno())
        sync_folder((self._root / path).parent)

    def delete(self, path: str) -> None:
        """Remove a file."""
        (self._root / path).unlink(missing_ok=True)

    def delete_folder(self, folder: str) -> None:
        """Remove a folder with all that is in it."""
        if (self._root / folder).exists():
            shutil.rmtree(self._root / folder)

    def zarr_store(self, path: str) -> str:
        """What zarr-python opens to read the array or group at `path`."""
        return self.locate(path)

    def lock(self) -> "WriterLock":
        """Make the folder if it is missing and become its only writer."""
        self._root.mkdir(parents=True, exist_ok=True)
        return WriterLock(self._root, fcntl.LOCK_EX)

    def join(self) -> "WriterLock":
        """Become one of several writers."""
        return WriterLock(self._root, fcntl.LOCK_SH)


class LocalFile:
    """A file that is open for reading."""

    def __init__(self, path: Path, flags: int = 0) -> None:
        """`flags` of open(2) beside those of every such file."""
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
        self._descriptor = descriptor
        self._close = weakref.finalize(self, os.close, descriptor)
        self.size = os.fstat(descriptor).st_size

    def read_into(self, offset: int, target: memoryview) -> int:
        """Fill `target` with the bytes from `offset` on."""
        done = 0
        while done < len(target):
            n_read = os.preadv(self._descriptor, [target[done:]], offset + done)
            if n_read == 0:
                break
            done += n_read
        return done

    def close(self) -> None:
        """Give back the descriptor."""
        self._close()


class WriterLock:
    """A flock on the file `.lock`: exclusive, or shared among the writers of one harvest."""

    def __init__(self, root: Path, kind: int) -> None:
        self._root = root
        self._descriptor = os.open(root / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._take(kind)

    def share(self) -> None:
        """Let in the writers that `join`."""
        self._take(fcntl.LOCK_SH)

    def release(self) -> None:
        """Let another writer in."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _take(self, kind: int) -> None:
        try:
            fcntl.flock(self._descriptor, kind | fcntl.LOCK_NB)
        except OSError as error:
            self.release()
            raise StoreError(
                f"{self._root}: another harvest is writing this store; wait for it, or choose another `out`"
            ) from error
