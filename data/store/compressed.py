"""Reading one sharded zarr array whose chunks are compressed: the index tells where each is, whole chunks are decoded."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from thresher.data.store.codecs import ChunkCodec
from thresher.data.store.shard import Shard
from thresher.errors import StoreError

CHUNKS_KEPT = 4
"""Decoded chunks that an array keeps for those who read a part of one; at most 16 MiB."""


class CompressedArray:
    """Reader of arrays with compressed chunks of whole rows. Safe to use from several threads."""

    def __init__(
        self,
        name: str,
        dtype: "np.dtype[Any]",
        shape: tuple[int, ...],
        chunk_rows: int,
        shard_rows: int,
        codec: ChunkCodec,
        open_shard: Callable[[int], Shard],
    ) -> None:
        self.dtype, self.shape, self.chunk_rows = dtype, shape, chunk_rows
        self._name = name
        self._chunks_per_shard = shard_rows // chunk_rows
        self._codec = codec
        self._open_shard = open_shard
        self._keep = functools.lru_cache(CHUNKS_KEPT)(self._decode)

    def read_into(self, start: int, out: npt.NDArray[Any]) -> None:
        """Fill `out` [row, ...], contiguous, with the rows from `start` on. Raises StoreError for a damaged chunk."""
        done = 0
        while done < len(out):
            chunk, row = divmod(start + done, self.chunk_rows)
            target = out[done : done + self.chunk_rows - row]
            if len(target) == self.chunk_rows:
                self._decode_into(chunk, target)
            else:
                target[...] = self._keep(chunk)[row : row + len(target)]
            done += len(target)

    def _decode(self, chunk: int) -> npt.NDArray[Any]:
        values = np.empty((self.chunk_rows, *self.shape[1:]), self.dtype)
        self._decode_into(chunk, values)
        return values

    def _decode_into(self, chunk: int, out: npt.NDArray[Any]) -> None:
        block, chunk = divmod(chunk, self._chunks_per_shard)
        shard = self._open_shard(block)
        if shard.offsets[chunk] < 0:
            out[...] = 0
            return
        encoded = bytearray(shard.lengths[chunk])
        n_read = shard.file.read_into(shard.offsets[chunk], memoryview(encoded))
        try:
            if n_read < len(encoded):
                raise ValueError(f"{n_read} bytes, expected {len(encoded)}")
            self._codec.decode(encoded, out)
        except ValueError as error:
            raise StoreError(
                f"{self._name}: chunk {chunk} of shard {block} is damaged ({error}); run `thresher store verify` on the store"
            ) from error
