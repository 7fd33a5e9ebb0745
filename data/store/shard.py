"""Shards written chunk by chunk: rows as they are, then the index that zarr-python and tensorstore write, byte for byte."""

import contextlib
import os
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import crc32c
import numpy as np

from thresher.files import sync_folder

MISSING = 2**64 - 1
"""Offset and length that the index gives for a chunk that is not there."""
STORAGE: Mapping[str, str] = {
    "float32": "<f4",
    "float16": "<f2",
    "bfloat16": "<u2",
    "int64": "<i8",
    "int32": "<i4",
    "int16": "<i2",
    "int8": "|i1",
}
"""zarr data type -> numpy type of its bytes on disk; bfloat16 travels as its bits."""


class StoredFile(NamedTuple):
    """A file that is whole and durable."""

    bytes: int
    crc32c: str
    """Of all its bytes, 8 hex digits."""


def shard_index(n_chunks: int, chunks_per_shard: int, chunk_bytes: int) -> bytes:
    """Index of a shard whose first `n_chunks` chunks are there: (offset, length) as uint64 each, then their CRC-32C."""
    index = np.full((chunks_per_shard, 2), MISSING, "<u8")
    index[:n_chunks, 0] = np.arange(n_chunks, dtype="<u8") * chunk_bytes
    index[:n_chunks, 1] = chunk_bytes
    raw = index.tobytes()
    return raw + struct.pack("<I", crc32c.crc32c(raw))


class AtomicFile:
    """A file that appears under its name when it is whole and durable; until then it is `.<name>.partial` beside it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._partial = path.with_name(f".{path.name}.partial")
        self._bytes = 0
        self._crc = 0
        self._folders = [path.parent, *make_folder(path.parent)]
        self._descriptor = os.open(self._partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)

    def append(self, buffer: memoryview | bytes) -> None:
        """Write a contiguous buffer behind what is there."""
        left = memoryview(buffer).cast("B")
        self._bytes += len(left)
        self._crc = crc32c.crc32c(left, self._crc)
        while left:
            left = left[os.write(self._descriptor, left) :]

    def commit(self) -> StoredFile:
        """Make it durable and give it its name."""
        os.fsync(self._descriptor)
        self._close()
        self._partial.replace(self.path)
        for folder in self._folders:
            sync_folder(folder)
        return StoredFile(self._bytes, f"{self._crc:08x}")

    def discard(self) -> None:
        """Forget it; nothing of it stays. Must not follow `commit`."""
        with contextlib.suppress(OSError):
            self._close()
        with contextlib.suppress(OSError):
            self._partial.unlink(missing_ok=True)

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def make_folder(path: Path) -> list[Path]:
    """Create a folder and its parents; gives the folders that must be synced to make that durable."""
    if path.is_dir():
        return []
    changed = make_folder(path.parent)
    path.mkdir(exist_ok=True)
    return [path.parent, *changed]


def write_file(path: Path, buffers: Iterable[memoryview | bytes]) -> StoredFile:
    """Write a whole file at once."""
    file = AtomicFile(path)
    try:
        for buffer in buffers:
            file.append(buffer)
        return file.commit()
    except OSError:
        file.discard()
        raise


def replace_file(path: Path, content: bytes) -> None:
    """Replace a small file in one step, without waiting for the disk: for what can be derived again after a power loss."""
    make_folder(path.parent)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content)
    partial.replace(path)
