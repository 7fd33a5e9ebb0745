"""Writes one array of a row space: fills a chunk while helpers write the one before and compute its moments."""

from concurrent.futures import Executor, Future
from typing import Any

import numpy.typing as npt

from thresher.data.store import moments
from thresher.data.store.atomic import allocate_pages
from thresher.data.store.codecs import describe_codecs, parse_codecs
from thresher.data.store.layout import ITEM_SIZE, ArraySpec
from thresher.data.store.shard import STORAGE, shard_index
from thresher.data.store.storage import NewFile, Storage, StoredFile


class Column:
    """One array: what is appended is copied into a chunk, and everything else is done by helpers when that is full."""

    def __init__(self, storage: Storage, spec: ArraySpec, helpers: Executor) -> None:
        self.spec = spec
        self._storage = storage
        self._helpers = helpers
        is_matrix = spec.width is not None
        codecs = describe_codecs(spec.profile, ITEM_SIZE[spec.data_type], is_matrix=is_matrix)
        self._codec = parse_codecs(codecs, is_matrix=is_matrix)
        shape = (2, spec.chunk_rows) if spec.width is None else (2, spec.chunk_rows, spec.width)
        memory = allocate_pages(2 * spec.chunk_rows * spec.row_bytes)
        self._chunk, self._other = memory.view(STORAGE[spec.data_type]).reshape(shape)
        """The chunk that is being filled, and the one that the helpers may still look at."""
        self._filled = 0
        self._marks: list[str] = []
        self._lengths: list[int] = []
        self._shard: NewFile | None = None
        self._moments = moments.empty_state(spec.width or 1)
        self._scratch = moments.Scratch(spec.width or 1)
        self._work: list[Future[None]] = []

    def append(self, values: npt.NDArray[Any], block: int) -> None:
        """Add rows to shard `block`, at most as many as it has room for."""
        while len(values):
            taken = min(len(values), len(self._chunk) - self._filled)
            self._chunk[self._filled : self._filled + taken] = values[:taken]
            self._filled += taken
            values = values[taken:]
            if self._filled == len(self._chunk):
                self._hand_over(block)

    def flush(self, block: int) -> None:
        """Let the helpers have the rows of a chunk that is not full; zeros fill it up. No rows of shard `block` can follow."""
        if self._filled:
            self._hand_over(block)

    def finish_shard(self, block: int) -> StoredFile:
        """Make shard `block` durable."""
        self.flush(block)
        self._wait()
        assert self._shard is not None, "a block has at least one row"
        self._shard.append(shard_index(self._lengths, self.spec.shard_rows // self.spec.chunk_rows))
        stored = self._shard.commit()._replace(chunks="".join(self._marks))
        self._shard, self._marks, self._lengths = None, [], []
        return stored

    def take_moments(self) -> moments.State:
        """The moments of all rows that the helpers were given since this was asked last."""
        self._wait()
        taken, self._moments = self._moments, moments.empty_state(self.spec.width or 1)
        return taken

    def discard(self) -> None:
        """Forget the shard that is not finished. The helpers must have come to an end."""
        if self._shard is not None:
            self._shard.discard()

    def _hand_over(self, block: int) -> None:
        """Give the chunk to the helpers; waits until they are done with the one before."""
        self._chunk[self._filled :] = 0
        if self._shard is None:
            self._shard = self._storage.create(self.spec.shard_path(block))
        # One after the other, so that the sums come out the same and the chunks in order.
        self._wait()
        self._work.append(self._helpers.submit(self._store, self._shard, self._chunk))
        if self.spec.hook_point is not None:
            rows = self._chunk[: self._filled]
            self._work.append(self._helpers.submit(moments.add_rows, self._moments, rows, self._scratch))
        self._chunk, self._other = self._other, self._chunk
        self._filled = 0

    def _store(self, shard: NewFile, chunk: npt.NDArray[Any]) -> None:
        encoded = chunk.data if self._codec is None else self._codec.encode(chunk)
        shard.append(encoded)
        self._marks.append(shard.checksum)
        self._lengths.append(memoryview(encoded).nbytes)

    def _wait(self) -> None:
        work, self._work = self._work, []
        for future in work:
            future.result()
