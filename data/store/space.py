"""Writes the rows of one row space: a shard of every array makes a block, a commit record makes it part of the store."""

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from thresher.data.store import moments
from thresher.data.store.column import Column
from thresher.data.store.commits import START, UNKNOWN, Commit, Cursor, write_commit
from thresher.data.store.layout import ArraySpec, commit_path, moments_path, redo_path
from thresher.data.store.recovery import Blocks
from thresher.data.store.schema import Rows
from thresher.data.store.storage import SYNCS, Storage, StoredFile, write_file
from thresher.data.store.zarr_json import array_document
from thresher.errors import StoreError

WRITERS = min(4, os.cpu_count() or 1)
"""Arrays that are filled at once: one thread copies about as fast as a fast disk writes."""


class SpaceWriter:
    """Appends batches to the arrays of one row space, from where its committed blocks end.

    Where it is not alone, others write blocks of the same space, and how many rows there are is told in the end.
    """

    def __init__(
        self,
        storage: Storage,
        space: str,
        arrays: Sequence[ArraySpec],
        blocks: Blocks,
        helpers: Executor,
        *,
        is_alone: bool = True,
    ) -> None:
        self._is_alone = is_alone
        self.space = space
        self.cursor = START
        """Where the block begins that is being filled."""
        self.rows_stored = 0
        self.is_final = False
        self._storage = storage
        self._columns = [Column(storage, spec, helpers) for spec in arrays]
        # Their own threads: those of `helpers` must not wait for each other.
        self._writers = ThreadPoolExecutor(min(WRITERS, len(arrays)), thread_name_prefix="store-column")
        self._shard_rows = arrays[0].shard_rows
        self._records = dict(blocks.records)
        self._redo = blocks.redo
        self._block = self._filled = 0
        self._last_batch = -1
        """The last batch with rows that passed by, stored or not."""
        self._pass_stored()

    def is_idle(self, start: int, stop: int, *, before: bool) -> bool:
        """Whether a block ends where batch `stop` begins; `before` says so of batch `start`, all between were appended."""
        if self.cursor[:2] <= (stop, 0):
            # The rows of a last block were waiting until the end of the input.
            is_waiting = self._filled or (self.is_final and self._records[self._block - 1].rows)
            return not is_waiting
        if self._last_batch < start:
            return before
        ends = [commit.cursor for commit in self._records.values()]
        return any(end.rows == 0 and self._last_batch < end.batch <= stop for end in ends)

    def skip_to(self, cursor: Cursor) -> None:
        """Take note that nothing of this space lies between its cursor and a later one."""
        if not (self.is_final or self._redo) and cursor[:2] > self.cursor[:2]:
            self.cursor = cursor

    def append(self, batch: int, rows: Rows, before: Mapping[str, int], after: Mapping[str, int], modality: str) -> None:
        """Add the rows of a batch that are not stored yet; `before` and `after` it there are so many items."""
        self._last_batch = batch if len(rows.item) else self._last_batch
        if self.is_final or batch < self.cursor.batch:
            return
        start = self.cursor.rows if batch == self.cursor.batch else 0
        values = dict(self._values(rows, before[modality]))
        n_rows = len(rows.item)
        while start < n_rows:
            stop = min(n_rows, start + self._shard_rows - self._filled)
            parts = [values[column.spec.path][start:stop] for column in self._columns]
            list(self._writers.map(Column.append, self._columns, parts, itertools.repeat(self._block)))
            self._filled += stop - start
            start = stop
            if self._filled == self._shard_rows:
                is_done = start == n_rows
                self._commit(Cursor(batch + 1, 0, after) if is_done else Cursor(batch, start, before), final=False)
                if self.is_final or self.cursor.batch > batch:
                    return
                start = self.cursor.rows

    def finish(self, cursor: Cursor) -> None:
        """Store what is left and say that nothing follows."""
        if not self.is_final:
            self._commit(cursor, final=True)
        self._writers.shutdown()

    def discard(self) -> None:
        """Forget what is not committed."""
        self._writers.shutdown(cancel_futures=True)
        for column in self._columns:
            column.discard()

    def write_documents(self) -> None:
        """Let each `zarr.json` tell the committed rows, where it does not. They follow from the commits: no need to wait."""
        for column in self._columns:
            update(self._storage, f"{column.spec.path}/zarr.json", array_document(column.spec, self.rows_stored))

    def _values(self, rows: Rows, first_item: int) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        describing = {"item": rows.item + first_item, "position": rows.position, "token_id": rows.token_id, **rows.columns}
        for column in self._columns:
            hook_point = column.spec.hook_point
            tensor = describing[column.spec.path.rpartition("/")[2]] if hook_point is None else rows.activations[hook_point]
            assert tensor is not None, "checked by StoreWriter.write"
            yield column.spec.path, as_numpy(tensor)

    def _commit(self, cursor: Cursor, *, final: bool) -> None:
        files: dict[str, StoredFile] = {}
        if self._filled:
            files.update(self._finish_files())
        commit = Commit(self._block, self._filled, self.rows_stored + self._filled, files, cursor, final, idle=())
        check_redo(self._storage, self.space, commit, self._redo)
        write_commit(self._storage, self.space, commit)
        if self._block in self._redo:
            self._storage.delete(redo_path(self.space, self._block))
        self._records[self._block] = commit
        self._filled = 0
        self._pass_stored()
        if self._is_alone:
            self.write_documents()

    def _finish_files(self) -> dict[str, StoredFile]:
        """Make the shards and the moments of this block durable, all at once: a disk takes long to say that it is done."""
        for column in self._columns:
            column.flush(self._block)
        states = {c.spec.hook_point: c.take_moments() for c in self._columns if c.spec.hook_point is not None}
        path = moments_path(self.space, self._block)
        paths = [column.spec.shard_path(self._block) for column in self._columns]
        with ThreadPoolExecutor(min(SYNCS, 1 + len(paths))) as pool:
            written = pool.submit(write_file, self._storage, path, [moments.dump_states(states)])
            stored = list(pool.map(Column.finish_shard, self._columns, itertools.repeat(self._block)))
            return dict(zip(paths, stored, strict=True)) | {path: written.result()}

    def _pass_stored(self) -> None:
        """Go on behind the blocks that are stored."""
        while (commit := self._records.get(self._block)) is not None:
            self.cursor, self.is_final, self.rows_stored = commit.cursor, commit.final, commit.rows_end
            self._block += 1


def check_redo(storage: Storage, space: str, commit: Commit, redo: Mapping[int, Commit]) -> None:
    """Raise StoreError when a block that is made again is not what it was, or is not what its batches were counted to hold."""
    before = redo.get(commit.block)
    if before is None or before.rows_end == UNKNOWN:
        return
    is_same = (commit.rows_end, commit.cursor) == (before.rows_end, before.cursor)
    if is_same and (not before.files or commit.files == before.files):
        return
    if not before.files:
        raise StoreError(
            f"{storage.locate(commit_path(space, commit.block))}: {commit.rows} rows up to row {commit.rows_end}, counted were "
            f"{before.rows} up to row {before.rows_end}; the input or the model changes while it is read: nothing of this "
            "block was stored"
        )
    changed = [path for path in before.files if commit.files.get(path) != before.files[path]]
    name = storage.locate(changed[0] if changed else commit_path(space, commit.block))
    raise StoreError(
        f"{name}: made again with other bytes than it had "
        "before it was damaged: the model, its libraries or the input have changed; harvest into another `out`, or delete "
        f"{storage.locate(redo_path(space, commit.block))} to accept the new bytes"
    )


def as_numpy(values: Tensor) -> npt.NDArray[Any]:
    """A CPU tensor in the numpy type that its bytes have on disk, without a copy."""
    if values.dtype == torch.bfloat16:
        return values.detach().view(torch.int16).numpy().view(np.uint16)
    return values.detach().numpy()


def update(storage: Storage, path: str, content: bytes) -> None:
    """Write a small derived file where it is missing or says something else."""
    if storage.size(path) is None or storage.read(path) != content:
        storage.replace(path, content)
