"""Local copies of what was read of a store in a bucket: bounded, checked, shared by several processes."""

import fcntl
import hashlib
import os
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import crc32c
import numpy as np

from thresher.config import config
from thresher.data.store.storage import ReadFile
from thresher.errors import ConfigError
from thresher.progress import log

BLOCK_BYTES = 4 << 20
"""What is fetched and kept at once: worth a request to a server."""
PAGE_BYTES = 256 << 10
"""What has a checksum of its own: little more than what was asked for is read from the disk."""
RUN_BLOCKS = 8
"""Neighbouring blocks that are fetched by one read at most."""
ROOM = 0.9
"""Of the bound, what is left after the oldest copies went: making room looks at every file."""


@config
class CacheConfig:
    """Copies that are kept on this machine of what is read of a store in a bucket."""

    folder: Path | None = None
    """Where they are kept, of all stores together; when not given, `thresher` in XDG_CACHE_HOME or ~/.cache."""
    gigabytes: float = 50.0
    """Most that they may take, in 1e9 bytes; what was not used for longest goes first. 0 keeps none."""

    def __post_init__(self) -> None:
        if self.gigabytes < 0:
            raise ConfigError(f"cache.gigabytes={self.gigabytes}: 0 for no cache, or more")


class BlockCache:
    """Files of checked blocks in a folder, never more than `max_bytes` of them. Safe to use from several processes."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder, self._max_bytes = folder, max_bytes
        self._is_usable = True

    def read(self, key: str, n_bytes: int, start: int, target: memoryview) -> bool:
        """Fill `target` with the bytes from `start` on of a block of `n_bytes`; False when there is no sound copy of it."""
        path = self._locate(key)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            first, last = start // PAGE_BYTES, -(-(start + len(target)) // PAGE_BYTES)
            stop = min(last * PAGE_BYTES, n_bytes)
            pages = memoryview(os.pread(descriptor, stop - first * PAGE_BYTES, first * PAGE_BYTES))
            sums = os.pread(descriptor, 4 * (last - first), n_bytes + 4 * first)
            if len(pages) == stop - first * PAGE_BYTES and _sum_pages(pages) == sums:
                target[:] = pages[start - first * PAGE_BYTES :][: len(target)]
                os.utime(descriptor)
                return True
        except OSError as error:
            log(f"{path}: cannot be read ({error.strerror}); it is fetched again")
        finally:
            os.close(descriptor)
        path.unlink(missing_ok=True)
        return False

    def write(self, key: str, block: memoryview) -> None:
        """Keep a copy of a block, if need be instead of others. A disk that refuses ends the keeping, not the reading."""
        sums = _sum_pages(block)
        size, path = len(block) + len(sums), self._locate(key)
        if size > self._max_bytes or not self._is_usable:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with self._exclusive() as ledger:
                if path.exists():
                    return
                used = self._read_used(ledger)
                if used + size > self._max_bytes:
                    used = self._make_room(min(int(ROOM * self._max_bytes), self._max_bytes - size))
                os.pwrite(ledger, f"{used + size:020d}".encode(), 0)  # first: a kill must not leave a file uncounted
                partial = path.with_suffix(".partial")
                with partial.open("wb") as file:
                    file.writelines([block, sums])
                partial.replace(path)
        except OSError as error:
            self._is_usable = False
            log(f"{self._folder}: cannot keep copies of what is read ({error.strerror}); reading on without")

    def _locate(self, key: str) -> Path:
        return self._folder / "blocks" / key[:2] / key

    @contextmanager
    def _exclusive(self) -> Generator[int, None, None]:
        """One process at a time; gives the file that says how many bytes are kept."""
        descriptor = os.open(self._folder / "used", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield descriptor
        finally:
            os.close(descriptor)

    def _read_used(self, ledger: int) -> int:
        try:
            return int(os.pread(ledger, 20, 0))
        except ValueError:
            return self._make_room(self._max_bytes)

    def _make_room(self, limit: int) -> int:
        """Delete what killed processes left, then the oldest copies until `limit` is kept; gives what is kept."""
        found: list[tuple[int, int, Path]] = []
        for path in (self._folder / "blocks").glob("*/*"):
            if path.suffix == ".partial":
                path.unlink(missing_ok=True)
                continue
            try:
                status = path.stat()
            except FileNotFoundError:  # damaged, and just dropped by a reader
                continue
            found.append((status.st_mtime_ns, status.st_size, path))
        used = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if used <= limit:
                break
            path.unlink(missing_ok=True)
            used -= size
        return used


class _Piece(NamedTuple):
    """What a read needs of one block."""

    block: int
    start: int
    """In the block."""
    target: memoryview


class CachedFile:
    """A file that is read block by block, from the cache where it has them."""

    def __init__(self, cache: BlockCache, name: str, size: int, open_file: Callable[[], ReadFile]) -> None:
        self.size = size
        self._cache, self._name, self._open_file = cache, name, open_file
        self._file: ReadFile | None = None

    def read_into(self, offset: int, target: memoryview) -> int:
        """Fill `target` with the bytes from `offset` on."""
        target = target.cast("B")
        n = max(0, min(len(target), self.size - offset))
        missing: list[_Piece] = []
        for piece in _cut(offset, target[:n]):
            if self._cache.read(self._key(piece.block), self._bytes_of(piece.block), piece.start, piece.target):
                self._fetch(missing)
                missing = []
            else:
                missing.append(piece)
            if len(missing) == RUN_BLOCKS:
                self._fetch(missing)
                missing = []
        self._fetch(missing)
        return n

    def close(self) -> None:
        """Give back what it holds open."""
        if self._file is not None:
            self._file.close()

    def _fetch(self, pieces: list[_Piece]) -> None:
        """Read neighbouring blocks, keep them, and fill what is asked of them."""
        if not pieces:
            return
        first, last = pieces[0].block, pieces[-1].block
        buffer = memoryview(bytearray((last - first) * BLOCK_BYTES + self._bytes_of(last)))
        if self._file is None:
            self._file = self._open_file()
        n_read = self._file.read_into(first * BLOCK_BYTES, buffer)
        if n_read < len(buffer):
            raise OSError(5, f"ends after {first * BLOCK_BYTES + n_read} bytes, expected {self.size}", self._name)
        for piece in pieces:
            block = buffer[(piece.block - first) * BLOCK_BYTES :][: self._bytes_of(piece.block)]
            piece.target[:] = block[piece.start :][: len(piece.target)]
            self._cache.write(self._key(piece.block), block)

    def _bytes_of(self, block: int) -> int:
        return min(BLOCK_BYTES, self.size - block * BLOCK_BYTES)

    def _key(self, block: int) -> str:
        return hashlib.sha256(f"{self._name}/{block}".encode()).hexdigest()[:40]


def open_cache(settings: CacheConfig) -> BlockCache:
    """The cache of this machine."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return BlockCache(settings.folder or home / "thresher", int(settings.gigabytes * 1e9))


def _cut(offset: int, target: memoryview) -> Iterator[_Piece]:
    done = 0
    while done < len(target):
        block, start = divmod(offset + done, BLOCK_BYTES)
        n = min(len(target) - done, BLOCK_BYTES - start)
        yield _Piece(block, start, target[done : done + n])
        done += n


def _sum_pages(pages: memoryview) -> bytes:
    sums = [crc32c.crc32c(pages[start : start + PAGE_BYTES]) for start in range(0, len(pages), PAGE_BYTES)]
    return np.array(sums, "<u4").tobytes()
