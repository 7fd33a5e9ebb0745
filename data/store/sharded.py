"""Reading one sharded zarr array at the speed of the disk: parse its index once, then `preadv` into the caller's memory."""

import functools
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import zarr

from thresher.data.store.codecs import ChunkCodec, parse_codecs
from thresher.data.store.compressed import CompressedArray
from thresher.data.store.shard import STORAGE, Shard
from thresher.data.store.storage import Storage
from thresher.errors import StoreError

OPEN_SHARDS = 256
"""File descriptors that an array keeps open."""


class _Shape(NamedTuple):
    """The part of `zarr.json` that the fast reader needs."""

    dtype: "np.dtype[Any]"
    shape: tuple[int, ...]
    shard_rows: int
    chunk_rows: int
    separator: str
    codec: ChunkCodec | None
    """None where chunks are rows as they are."""

    @property
    def row_bytes(self) -> int:
        return self.dtype.itemsize * int(np.prod(self.shape[1:], dtype=np.int64))


class ShardedArray:
    """Fast reader of arrays with whole-row chunks and no compression. Safe to use from several threads."""

    def __init__(self, storage: Storage, path: str, shape: _Shape) -> None:
        self.dtype = shape.dtype
        self.shape = shape.shape
        self.chunk_rows = shape.chunk_rows
        self._name = storage.locate(path)
        self._shape = shape
        self._row_bytes = shape.row_bytes
        self._shard = functools.lru_cache(OPEN_SHARDS)(functools.partial(_open_shard, storage, path, shape))

    def read_into(self, start: int, out: npt.NDArray[Any]) -> None:
        """Fill `out` [row, ...], contiguous, with the rows from `start` on. Raises StoreError for a damaged shard."""
        memory = out.view(np.uint8).reshape(-1).data
        done = 0
        for shard, offset, n_bytes in self._spans(start, start + len(out)):
            target = memory[done : done + n_bytes]
            done += n_bytes
            if offset < 0:
                target[:] = bytes(n_bytes)
                continue
            if shard.file.read_into(offset, target) < n_bytes:
                raise StoreError(f"{self._name}: a shard ends too early; run `thresher store verify` on the store")

    def _spans(self, start: int, stop: int) -> Iterator[tuple[Shard, int, int]]:
        """(shard, offset, bytes) of rows, in order, neighbours put together; offset -1 for a chunk that is not there."""
        pending: tuple[Shard, int, int] | None = None
        while start < stop:
            block, row = divmod(start, self._shape.shard_rows)
            chunk, row = divmod(row, self.chunk_rows)
            n_rows = min(stop - start, self.chunk_rows - row)
            start += n_rows
            shard = self._shard(block)
            offset = shard.offsets[chunk]
            offset = offset + row * self._row_bytes if offset >= 0 else -1
            n_bytes = n_rows * self._row_bytes
            if pending and pending[0] is shard and min(offset, pending[1]) >= 0 and offset == pending[1] + pending[2]:
                pending = (shard, pending[1], pending[2] + n_bytes)
                continue
            if pending:
                yield pending
            pending = (shard, offset, n_bytes)
        if pending:
            yield pending


class ZarrArray:
    """Reader of every other layout, through zarr-python: slower, but it reads whatever zarr-python reads."""

    def __init__(self, storage: Storage, path: str) -> None:
        array = zarr.open_array(storage.zarr_store(path), mode="r")
        native = np.dtype(array.dtype)
        self.dtype = np.dtype("<u2") if native.name == "bfloat16" else native.newbyteorder("<")
        self.shape = tuple(array.shape)
        self.chunk_rows = int(array.chunks[0])
        self._array = array

    def read_into(self, start: int, out: npt.NDArray[Any]) -> None:
        """Fill `out` [row, ...] with the rows from `start` on."""
        values = np.asarray(self._array[start : start + len(out)])
        out[...] = values.view(np.uint16) if values.dtype.name == "bfloat16" else values


ArrayReader = ShardedArray | CompressedArray | ZarrArray
"""Reads rows of an array whose first axis is `row`; bfloat16 as uint16."""


def open_array(storage: Storage, path: str) -> ArrayReader:
    """The fastest reader for an array. Raises StoreError when there is none at `path`, or zarr-python cannot read it."""
    name = storage.locate(f"{path}/zarr.json")
    try:
        document: Any = json.loads(storage.read(f"{path}/zarr.json"))
    except (OSError, ValueError) as error:
        raise StoreError(f"{name}: cannot be read ({error}); run `thresher store verify` on the store") from error
    shape = _fast_shape(document)
    if shape is not None and shape.codec is not None:
        open_shard = functools.lru_cache(OPEN_SHARDS)(functools.partial(_open_shard, storage, path, shape))
        return CompressedArray(
            storage.locate(path), shape.dtype, shape.shape, shape.chunk_rows, shape.shard_rows, shape.codec, open_shard
        )
    if shape is not None:
        return ShardedArray(storage, path, shape)
    try:
        return ZarrArray(storage, path)
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{name}: zarr-python cannot read this array ({error}); run `thresher store verify`") from error


def _open_shard(storage: Storage, path: str, shape: _Shape, block: int) -> Shard:
    key = shape.separator.join(["c", str(block), *("0" for _ in shape.shape[1:])])
    chunk_bytes = shape.chunk_rows * shape.row_bytes if shape.codec is None else None
    return Shard(storage, f"{path}/{key}", shape.shard_rows // shape.chunk_rows, chunk_bytes)


def _fast_shape(document: Any) -> _Shape | None:
    """What the fast reader needs to know, or None when the array has another layout."""
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    try:
        (sharding,) = document["codecs"]
        inner, grid = sharding["configuration"], document["chunk_grid"]["configuration"]["chunk_shape"]
        shape, chunk = tuple(document["shape"]), inner["chunk_shape"]
        is_fast = (
            sharding["name"] == "sharding_indexed"
            and document["chunk_grid"]["name"] == "regular"
            and document["chunk_key_encoding"]["name"] == "default"
            and inner["index_codecs"] == [little, {"name": "crc32c"}]
            and inner.get("index_location", "end") == "end"
            and list(shape[1:]) == grid[1:] == chunk[1:]
            and document["fill_value"] == 0
            and not document.get("storage_transformers")
        )
        if not is_fast:
            return None
        separator = document["chunk_key_encoding"].get("configuration", {}).get("separator", "/")
        codec = parse_codecs(inner["codecs"], is_matrix=len(shape) == 2)
        return _Shape(np.dtype(STORAGE[document["data_type"]]), shape, grid[0], chunk[0], separator, codec)
    except (KeyError, TypeError, ValueError):
        return None
