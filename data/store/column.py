"""Writes one array of a row space: chunk by chunk into its shard, the moments computed beside that."""

from concurrent.futures import Executor, Future
from typing import Any

import numpy as np
import numpy.typing as npt

from thresher.data.store import moments
from thresher.data.store.layout import ArraySpec
from thresher.data.store.shard import STORAGE, shard_index
from thresher.data.store.storage import NewFile, Storage, StoredFile


class Column:
    """One array: writes full chunks from where they are, collects the others."""

    def __init__(self, storage: Storage, spec: ArraySpec, helpers: Executor) -> None:
        self.spec = spec
        self._storage = storage
        self._helpers = helpers
        shape = (spec.chunk_rows,) if spec.width is None else (spec.chunk_rows, spec.width)
        self._chunk = np.zeros(shape, STORAGE[spec.data_type])
        self._other = np.zeros(shape, STORAGE[spec.data_type]) if spec.hook_point is not None else self._chunk
        """The chunk whose moments may still be computed, while the next one is filled."""
        self._filled = 0
        self._marks: list[str] = []
        self._shard: NewFile | None = None
        self._moments = moments.empty_state(spec.width or 1)
        self._scratch = moments.Scratch(spec.width or 1)
        self._adding: Future[None] | None = None

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
        assert self._shard is not None, "a block has at least one row"
        self._shard.append(shard_index(len(self._marks), self.spec.shard_rows // self.spec.chunk_rows, self._chunk.nbytes))
        stored = self._shard.commit()._replace(chunks="".join(self._marks))
        self._shard, self._marks = None, []
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
        """Write a chunk of which `n_rows` are rows."""
        if self._shard is None:
            self._shard = self._storage.create(self.spec.shard_path(block))
        if self.spec.hook_point is not None:
            # One after the other, so that the sums come out the same.
            self._wait()
            self._adding = self._helpers.submit(moments.add_rows, self._moments, chunk[:n_rows], self._scratch)
        self._shard.append(chunk.data)
        self._marks.append(self._shard.checksum)

    def _wait(self) -> None:
        adding, self._adding = self._adding, None
        if adding is not None:
            adding.result()
