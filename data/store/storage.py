"""The seam between a store and what keeps its bytes: everything below this file knows paths relative to the store only."""

import io
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

SYNCS = 16
"""Files that are made durable at once; the disk merges them."""


class StoredFile(NamedTuple):
    """A file that is whole and durable."""

    bytes: int
    crc32c: str
    """Of all its bytes, 8 hex digits."""
    chunks: str = ""
    """Of a shard: for each chunk the CRC-32C of all bytes up to its end, 8 hex digits each."""


@runtime_checkable
class ReadFile(Protocol):
    """A file that is open for reading. Safe to use from several threads."""

    size: int
    """Bytes."""

    def read_into(self, offset: int, target: memoryview) -> int:
        """Fill `target` with the bytes from `offset` on; gives how many there were, fewer than asked for at the end only."""
        ...

    def close(self) -> None:
        """Give back what it holds open."""
        ...


@runtime_checkable
class NewFile(Protocol):
    """A file that appears under its name when it is whole and durable; nobody sees it before."""

    @property
    def checksum(self) -> str:
        """CRC-32C of all that was appended, 8 hex digits."""
        ...

    def append(self, buffer: memoryview | bytes) -> None:
        """Write a contiguous buffer behind what is there."""
        ...

    def commit(self) -> StoredFile:
        """Make it durable and give it its name."""
        ...

    def discard(self) -> None:
        """Forget it; nothing of it stays. Must not follow `commit`."""
        ...


@runtime_checkable
class Lock(Protocol):
    """Held until `release` or the end of the process, whatever ends it."""

    def share(self) -> None:
        """Let in the writers that `join`; nobody gets the lock alone before all of them have released theirs."""
        ...

    def release(self) -> None:
        """Let another writer in."""
        ...


@runtime_checkable
class Storage(Protocol):
    """A tree of files, each named by its path from the root, with `/`. OSError passes through, FileNotFoundError among them."""

    def locate(self, path: str = "") -> str:
        """The full name of a file, for messages and for other readers."""
        ...

    def size(self, path: str) -> int | None:
        """Bytes of a file, None when it is not there."""
        ...

    def list_files(self, folder: str) -> Iterator[str]:
        """The files in a folder and below, in order; none when there is no such folder."""
        ...

    def read(self, path: str) -> bytes:
        """All of a small file."""
        ...

    def open(self, path: str) -> ReadFile:
        """Open a file for reading at any place."""
        ...

    def create(self, path: str) -> NewFile:
        """Begin a file, replacing one of the same name once it is committed."""
        ...

    def replace(self, path: str, content: bytes) -> None:
        """Replace a small file in one step, without waiting for the disk: for what can be derived again after a power loss."""
        ...

    def sync(self, path: str) -> None:
        """Make durable what `replace` wrote."""
        ...

    def delete(self, path: str) -> None:
        """Remove a file; one that is not there is fine."""
        ...

    def delete_folder(self, folder: str) -> None:
        """Remove a folder with all that is in it; one that is not there is fine."""
        ...

    def zarr_store(self, path: str) -> Any:
        """What zarr-python opens to read the array or group at `path`."""
        ...

    def lock(self) -> Lock:
        """Make the root if it is missing and become its only writer. Raises StoreError when there is another one."""
        ...

    def join(self) -> Lock:
        """Become one of several writers whom the holder of the lock lets in. Raises StoreError when he does not."""
        ...


def write_file(storage: Storage, path: str, buffers: Iterable[memoryview | bytes]) -> StoredFile:
    """Write a whole file at once."""
    file = storage.create(path)
    try:
        for buffer in buffers:
            file.append(buffer)
        return file.commit()
    except OSError:
        file.discard()
        raise


class Stream(io.RawIOBase):
    """A stored file as Python's own kind of file, for libraries that read one; closes it at the end."""

    def __init__(self, file: ReadFile) -> None:
        self._file = file
        self._offset = 0

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """Where the next read begins."""
        return self._offset

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place, counted from the beginning, from here or from the end."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._offset, io.SEEK_END: self._file.size}[whence]
        self._offset = base + offset
        return self._offset

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` from here on; gives how many bytes there were."""
        n = self._file.read_into(self._offset, memoryview(buffer).cast("B"))
        self._offset += n
        return n

    def close(self) -> None:
        """Close the file below too."""
        if not self.closed:
            self._file.close()
        super().close()
