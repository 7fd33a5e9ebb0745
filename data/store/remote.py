"""A store in a bucket: an object appears whole or not at all, and what decides is created once or not at all."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import crc32c

from thresher.data.store.cache import BlockCache, CachedFile
from thresher.data.store.header import read_header
from thresher.data.store.layout import MANIFEST, RUN, commit_path
from thresher.data.store.objects import PART_BYTES, Objects
from thresher.data.store.ownership import CLAIM_BYTES, JoinedLock, ObjectLock
from thresher.data.store.recovery import Blocks, read_committed
from thresher.data.store.storage import StoredFile
from thresher.errors import StoreError

REQUESTS = 4
"""Pieces of one read that are asked for at once."""


class RemoteStorage:
    """The objects below an address."""

    def __init__(self, url: str) -> None:
        self._objects = Objects(url)
        self._lock: ObjectLock | JoinedLock | None = None

    def locate(self, path: str = "") -> str:
        """The address of an object."""
        return self._objects.locate(path)

    def size(self, path: str) -> int | None:
        """Bytes of an object, None when it is not there."""
        try:
            found = self._objects.measure(path)[0]
        except FileNotFoundError:
            return None
        return None if _is_claim(path, found) else found

    def list_files(self, folder: str) -> Iterator[str]:
        """The objects in a folder and below, in order."""
        for path, size in self._objects.list(folder):
            if not _is_claim(path, size):
                yield path

    def read(self, path: str) -> bytes:
        """All of a small object."""
        content = self._objects.get(path)[0]
        if _is_claim(path, len(content)):
            raise FileNotFoundError(2, "no such object", self.locate(path))
        return content

    def open(self, path: str) -> "RemoteFile | CachedFile":
        """Open an object for reading at any place."""
        return RemoteFile(self._objects, path)

    def create(self, path: str) -> "Upload | Record":
        """Begin an object."""
        return Record(self, path) if _is_record(path) else Upload(self, path)

    def replace(self, path: str, content: bytes) -> None:
        """Replace a small object in one step."""
        self.check_owner()
        self._objects.put(path, content)

    def sync(self, path: str) -> None:
        """Nothing to do: an object that is there is durable."""

    def delete(self, path: str) -> None:
        """Remove an object."""
        self._objects.delete([path])

    def delete_folder(self, folder: str) -> None:
        """Remove all objects of a folder."""
        self._objects.delete([path for path, _ in self._objects.list(folder)])

    def lock(self) -> ObjectLock:
        """Become the only writer; from whom the store is taken over, he can commit nothing any more."""
        lock = ObjectLock(self._objects)
        try:
            if lock.has_taken_over:
                self._claim_open(lock)
        except BaseException:
            lock.release()
            raise
        self._lock = lock
        return lock

    def join(self) -> JoinedLock:
        """Become one of several writers."""
        self._lock = JoinedLock(self._objects)
        return self._lock

    def zarr_store(self, path: str) -> Any:
        """An array or group as zarr-python opens it."""
        from zarr.storage import ObjectStore

        return ObjectStore(Objects(self.locate(path)).backend, read_only=True)

    def check_owner(self) -> None:
        """Raise StoreError when this writer has lost the store to another one."""
        if self._lock is not None:
            self._lock.check()

    def create_once(self, path: str, content: bytes) -> None:
        """Create an object that nobody has created yet."""
        if self._lock is None:
            raise StoreError(f"{self.locate()}: only a writer that holds its lock can commit to a store")
        self._lock.create(path, content)

    def open_writer(self, path: str) -> Any:
        """Begin an upload."""
        return self._objects.open_writer(path)

    def writing(self, path: str) -> Any:
        """Where an upload is used."""
        return self._objects.writing(path)

    def _claim_open(self, lock: ObjectLock) -> None:
        """Claim every record that a writer who is not gone after all could create next. Until it is, what it commits counts."""
        while True:
            if self.size(RUN) is None:
                slots = [RUN]
            elif self.size(MANIFEST) is not None:
                return
            else:
                committed = read_committed(self, read_header(self).layout)
                slots = [path for space, blocks in committed.sequences.items() for path in _open_slots(space, blocks)]
            if all(lock.claim(path) for path in slots):
                return


class CachedStorage(RemoteStorage):
    """A complete store whose files are read through a cache."""

    def __init__(self, url: str, cache: BlockCache, fingerprint: str, files: Mapping[str, StoredFile]) -> None:
        super().__init__(url)
        self._cache, self._fingerprint, self._files = cache, fingerprint, files

    def open(self, path: str) -> "RemoteFile | CachedFile":
        """Open an object for reading at any place; nothing is asked of the server before it is needed."""
        if path not in self._files:
            return super().open(path)
        name, size = f"{self._fingerprint}/{path}", self._files[path].bytes
        return CachedFile(self._cache, name, size, lambda: RemoteFile(self._objects, path))


class RemoteFile:
    """An object that is open for reading."""

    def __init__(self, objects: Objects, path: str) -> None:
        self._objects, self._path = objects, path
        self.size = objects.measure(path)[0]

    def read_into(self, offset: int, target: memoryview) -> int:
        """Fill `target` with the bytes from `offset` on; large reads in several pieces at once."""
        target = target.cast("B")
        n = max(0, min(len(target), self.size - offset))
        starts = range(0, n, PART_BYTES)

        def fetch(start: int) -> None:
            stop = min(n, start + PART_BYTES)
            target[start:stop] = memoryview(self._objects.get_range(self._path, offset + start, offset + stop))

        if len(starts) <= 1:
            for start in starts:
                fetch(start)
            return n
        with ThreadPoolExecutor(REQUESTS, thread_name_prefix="store-read") as pool:
            list(pool.map(fetch, starts))
        return n

    def close(self) -> None:
        """Nothing is held open."""


class Upload:
    """An object of any size on its way, part by part; it appears when the last part is confirmed."""

    def __init__(self, storage: RemoteStorage, path: str) -> None:
        self._storage, self._path = storage, path
        self._writer: Any = storage.open_writer(path)
        self._bytes = self._crc = 0

    @property
    def checksum(self) -> str:
        """Of all that was appended."""
        return f"{self._crc:08x}"

    def append(self, buffer: memoryview | bytes) -> None:
        """Take a contiguous buffer, which may be changed afterwards."""
        content = memoryview(buffer).cast("B")
        self._bytes += len(content)
        self._crc = crc32c.crc32c(content, self._crc)
        with self._storage.writing(self._path):
            self._writer.write(bytes(content))  # obstore sends from the buffer itself, which is the caller's again now

    def commit(self) -> StoredFile:
        """Let it appear."""
        self._storage.check_owner()
        with self._storage.writing(self._path):
            self._writer.close()
        return StoredFile(self._bytes, self.checksum)

    def discard(self) -> None:
        """Forget it. Parts that the server has already are never seen; a rule of the bucket should make it drop them."""
        self._writer = None


class Record:
    """A small object that decides what exists: created in one step, by whoever holds the store, and never replaced."""

    def __init__(self, storage: RemoteStorage, path: str) -> None:
        self._storage, self._path = storage, path
        self._content = bytearray()

    @property
    def checksum(self) -> str:
        """Of all that was appended."""
        return f"{crc32c.crc32c(self._content):08x}"

    def append(self, buffer: memoryview | bytes) -> None:
        """Take a buffer."""
        self._content += buffer

    def commit(self) -> StoredFile:
        """Create the object."""
        self._storage.create_once(self._path, bytes(self._content))
        return StoredFile(len(self._content), self.checksum)

    def discard(self) -> None:
        """Forget it."""


def _is_record(path: str) -> bool:
    """Whether an object decides what exists. What a repair notes about blocks to be made again does not."""
    return path in (RUN, MANIFEST) or (path.startswith("commits/") and not path.endswith(".redo.json"))


def _is_claim(path: str, size: int) -> bool:
    return size <= CLAIM_BYTES and _is_record(path)


def _open_slots(space: str, blocks: Blocks) -> list[str]:
    top = max(blocks.records, default=-1)
    is_final = top >= 0 and blocks.records[top].final
    return [commit_path(space, block) for block in range(top + 1 + (not is_final)) if block not in blocks.records]
