"""A shard: its chunks one after the other, then the index that zarr-python and tensorstore write, byte for byte."""

import struct
from collections.abc import Mapping, Sequence

import crc32c
import numpy as np

from thresher.data.store.storage import Storage
from thresher.errors import StoreError

MISSING = 2**64 - 1
"""Offset and length that the index gives for a chunk that is not there."""
STORAGE: Mapping[str, str] = {
    "float32": "<f4",
    "float16": "<f2",
    "bfloat16": "<u2",
    "uint16": "<u2",
    "int64": "<i8",
    "int32": "<i4",
    "int16": "<i2",
    "int8": "|i1",
}
"""zarr data type -> numpy type of its bytes on disk; bfloat16 travels as its bits."""


class Shard:
    """An open shard file: where each of its chunks is."""

    offsets: list[int]
    """Of each chunk, -1 for one that is not there."""
    lengths: list[int]
    """Bytes of each chunk, 0 for one that is not there."""

    def __init__(self, storage: Storage, path: str, n_chunks: int, chunk_bytes: int | None) -> None:
        """All chunks have `chunk_bytes`; any number when that is None. Raises StoreError: not there, its index is damaged."""
        name = storage.locate(path)
        try:
            self.file = storage.open(path)
        except OSError as error:
            raise StoreError(f"{name}: cannot be read ({error.strerror}); run `thresher store verify` on the store") from error
        size = self.file.size
        footer = bytearray(16 * n_chunks + 4)
        n_read = self.file.read_into(max(0, size - len(footer)), memoryview(footer))
        if n_read < len(footer) or struct.unpack("<I", footer[-4:])[0] != crc32c.crc32c(footer[:-4]):
            raise StoreError(f"{name}: the index at its end is damaged; run `thresher store verify` on the store")
        index = np.frombuffer(footer[:-4], "<u8").reshape(n_chunks, 2)
        is_there = index[:, 0] != MISSING
        wrong = is_there & ((index[:, 0] > size) | (index[:, 1] > size - np.minimum(index[:, 0], size)))
        if chunk_bytes is not None:
            wrong |= is_there & (index[:, 1] != chunk_bytes)
        if wrong.any():
            expected = "inside the file" if chunk_bytes is None else f"of {chunk_bytes} bytes"
            raise StoreError(f"{name}: chunk {int(wrong.argmax())} is not {expected}; run `thresher store verify`")
        self.offsets = np.where(is_there, index[:, 0].astype(np.int64), -1).tolist()
        self.lengths = np.where(is_there, index[:, 1].astype(np.int64), 0).tolist()


def shard_index(lengths: Sequence[int], chunks_per_shard: int) -> bytes:
    """Index of a shard that begins with chunks of these lengths: (offset, length) as uint64 each, then their CRC-32C."""
    index = np.full((chunks_per_shard, 2), MISSING, "<u8")
    sizes = np.array(lengths, "<u8")
    index[: len(sizes), 0] = np.cumsum(sizes) - sizes
    index[: len(sizes), 1] = sizes
    raw = index.tobytes()
    return raw + struct.pack("<I", crc32c.crc32c(raw))
