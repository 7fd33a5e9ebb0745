"""A shard: rows as they are, then the index that zarr-python and tensorstore write, byte for byte."""

import struct
from collections.abc import Mapping

import crc32c
import numpy as np

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


def shard_index(n_chunks: int, chunks_per_shard: int, chunk_bytes: int) -> bytes:
    """Index of a shard whose first `n_chunks` chunks are there: (offset, length) as uint64 each, then their CRC-32C."""
    index = np.full((chunks_per_shard, 2), MISSING, "<u8")
    index[:n_chunks, 0] = np.arange(n_chunks, dtype="<u8") * chunk_bytes
    index[:n_chunks, 1] = chunk_bytes
    raw = index.tobytes()
    return raw + struct.pack("<I", crc32c.crc32c(raw))
