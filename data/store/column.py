"""Writes one array of a row space: chunk by chunk into its shard, moments and compression computed beside that."""

from concurrent.futures import Executor, Future
from typing import Any

import numpy as np
import numpy.typing as npt

from thresher.data.store import moments
from thresher.data.store.codecs import describe_codecs, parse_codecs
from thresher.data.store.layout import ITEM_SIZE, ArraySpec
from thresher.data.store.shard import STORAGE, shard_index
from thresher.data.store.storage import NewFile, Storage, StoredFile


class Column:
    """One array: writes full chunks from where they are, collects the others."""

    def __init__(self, storage: Storage, spec: ArraySpec, helpers: Executor) -> None:
        self.spec = spec
        self._storage = storage
        self._helpers = helpers
        is_matrix = spec.width is not None
        codecs = describe_codecs(spec.profile, ITEM_SIZE[spec.data_type], is_matrix=is_matrix)
        self._codec = parse_codecs(codecs, is_matrix=is_matrix)
        shape = (spec.chunk_rows,) if spec.width is None else (spec.chunk_rows, spec.width)
        self._chunk = np.zeros(shape, STORAGE[spec.data_type])
        is_helped = spec.hook_point is not None or self._codec is not None
        self._other = np.zeros(shape, STORAGE[spec.data_type]) if is_helped else self._chunk
        """The chunk that the helpers may still look at, while the next one is filled."""
        self._filled = 0
        self._marks: list[str] = []
        self._lengths: list[int] = []
        self._shard: NewFile | None = None
        self._moments = moments.empty_state(spec.width or 1)
        self._scratch = moments.Scratch(spec.width or 1)
        self._adding: Future[None] | None = None
        self._encoding: Future[bytes] | None = None

    def append(self, values: npt.NDArray[Any], block: int) -> None:
        """Add rows to shard `block`, at most as many as it has room for. They must not be changed afterwards."""
        size = len(self._chunk)
        while len(values):
            if not self._filled and len(values) >= size and values.flags.c_contiguous:
                self._write(values[:size], size, block)
                values = values[size:]
                continue
            taken = min(len(values), size - self._filled)
            self._chunk[self._filled : self._filled + taken] = values[:taken]
            self._filled += taken
            values = values[taken:]
            if self._filled == size:
                self._flush(block)

    def finish_shard(self, block: int) -> StoredFile:
        """Make shard `block` durable, its last chunk filled up with zeros."""
        if self._filled:
            self._flush(block)
        self._wait()
        assert self._shard is not None, "a block has at least one row"
        self._shard.append(shard_index(self._lengths, self.spec.shard_rows // self.spec.chunk_rows))
        stored = self._shard.commit()._replace(chunks="".join(self._marks))
        self._shard, self._marks, self._lengths = None, [], []
        return stored

    def take_moments(self) -> moments.State:
        """The moments of all rows since this was asked last."""
        self._wait()
        taken, self._moments = self._moments, moments.empty_state(self.spec.width or 1)
        return taken

    def discard(self) -> None:
        """Forget the shard that is not finished."""
        if self._shard is not None:
            self._shard.discard()

    def _flush(self, block: int) -> None:
        self._chunk[self._filled :] = 0
        self._write(self._chunk, self._filled, block)
        self._chunk, self._other = self._other, self._chunk
        self._filled = 0

    def _write(self, chunk: npt.NDArray[Any], n_rows: int, block: int) -> None:
        """Write a chunk of which `n_rows` are rows; a compressed one when the next one comes."""
        if self._shard is None:
            self._shard = self._storage.create(self.spec.shard_path(block))
        # One after the other, so that the sums come out the same and the chunks in order.
        self._wait()
        if self.spec.hook_point is not None:
            self._adding = self._helpers.submit(moments.add_rows, self._moments, chunk[:n_rows], self._scratch)
        if self._codec is None:
            self._store(self._shard, chunk.data)
        else:
            self._encoding = self._helpers.submit(self._codec.encode, chunk)

    def _store(self, shard: NewFile, encoded: memoryview | bytes) -> None:
        shard.append(encoded)
        self._marks.append(shard.checksum)
        self._lengths.append(memoryview(encoded).nbytes)

    def _wait(self) -> None:
        adding, self._adding = self._adding, None
        encoding, self._encoding = self._encoding, None
        if adding is not None:
            adding.result()
        if encoding is not None and self._shard is not None:
            self._store(self._shard, encoding.result())
