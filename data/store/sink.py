"""The open end of a store: takes batches in order and commits what is full."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from thresher.data.store.commits import START, UNKNOWN, Commit, Cursor, write_commit
from thresher.data.store.header import Header
from thresher.data.store.layout import COUNTS, MODALITIES, TABLES, ZARR, arrays_of, layer_path, redo_path, rows_path
from thresher.data.store.manifest import write_manifest
from thresher.data.store.plan import Share, plan_commits, share_out
from thresher.data.store.recovery import Committed, mark_lost, read_committed, roll_back
from thresher.data.store.schema import Batch
from thresher.data.store.space import SpaceWriter, check_redo, update
from thresher.data.store.storage import Storage
from thresher.data.store.tables import TablePart
from thresher.data.store.zarr_json import group_document, root_document
from thresher.errors import StoreError

HELPERS = 8
"""Threads that compute moments, compress, and wait for the disk. Each hook point keeps at most two of them busy."""


class Sink:
    """All disk work of a harvest, in one thread. OSError passes through; whatever was committed before stays."""

    def __init__(self, storage: Storage, header: Header, share: Share | None = None) -> None:
        """Roll back to what is committed; with a share, which others write beside, take what it makes of that for granted."""
        self._storage = storage
        self._header = header
        self._is_alone = share is None
        committed = read_committed(storage, header.layout)
        if share is None:
            if mark_lost(storage, committed):
                committed = read_committed(storage, header.layout)
            roll_back(storage, committed)
        else:
            committed = share_out(plan_commits(header.layout, share.counts), committed, share)
        self._gaps = committed.gaps()
        self.start = committed.start()
        """The first batch to write again, and the items before it."""
        self._end = committed.end()
        self._items_before = {gap.start.batch: gap.start.items for gap in self._gaps}
        self._items = dict(self.start.items)
        self._next_batch = self.start.batch
        self._helpers = ThreadPoolExecutor(HELPERS, thread_name_prefix="store-helper")
        self._modality = {spec.space: spec.modality for spec in header.hook_points}
        self._spaces = {space: self._open_space(space, committed) for space in header.layout.shard_rows}
        self._records = dict(committed.sequences[TABLES].records)
        self._redo = committed.sequences[TABLES].redo
        self._parts, self._table_cursor, self._is_final = 0, START, False
        self._part = TablePart()
        self._pass_stored()
        if self._is_alone:
            self._write_documents()

    @property
    def is_open(self) -> bool:
        """Whether only the input tells where the store ends."""
        return any(gap.stop is None for gap in self._gaps)

    def next_needed(self, batch: int) -> int | None:
        """The first batch from `batch` on of which something is missing; None when there is none."""
        starts = [max(batch, gap.start.batch) for gap in self._gaps]
        return min((start for start, gap in zip(starts, self._gaps, strict=True) if gap.needs(start)), default=None)

    def next_closed(self, batch: int) -> int | None:
        """Like `next_needed`, but of the gaps whose end is known."""
        closed = [gap for gap in self._gaps if gap.stop is not None]
        starts = [max(batch, gap.start.batch) for gap in closed]
        return min((start for start, gap in zip(starts, closed, strict=True) if gap.needs(start)), default=None)

    def append(self, batch: Batch) -> None:
        """Take the next batch; drops what is stored already. Batches of which nothing is missing may be left out."""
        if batch.index != self._next_batch:
            self._items = dict(self._items_before[batch.index])
        before = dict(self._items)
        after = {modality: before[modality] + len(batch.items.get(modality, ())) for modality in MODALITIES}
        for space, rows in batch.rows.items():
            self._spaces[space].append(batch.index, rows, before, after, self._modality[space])
        self._items, self._next_batch = after, batch.index + 1
        if self._is_final or batch.index < self._table_cursor.batch:
            return
        self._part.append(batch, before)
        if self._part.batches == self._header.layout.batches_per_part:
            self._commit_tables(final=False)

    def finish(self) -> None:
        """Commit what is left, then make the store complete."""
        self.commit_rest()
        self._storage.delete_folder(COUNTS)
        write_manifest(self._storage, self._header)

    def commit_rest(self) -> None:
        """Commit what is left; nothing can be appended any more."""
        cursor = Cursor(self._next_batch, 0, self._items) if self.is_open else self._end
        if cursor[:2] < self._end[:2] or (not self.is_open and self.next_needed(self._next_batch) is not None):
            raise StoreError(
                f"{self._storage.locate()}: the harvest ended before batch {self._next_batch}, but rows of batch "
                f"{self._end.batch} are stored; its input has shrunk: harvest into another `out`"
            )
        for space in self._spaces.values():
            space.finish(cursor)
        if not self._is_final:
            self._items = dict(cursor.items)
            self._next_batch = cursor.batch
            self._commit_tables(final=True)
        self._helpers.shutdown()

    def discard(self) -> None:
        """Forget what is not committed."""
        self._helpers.shutdown(cancel_futures=True)
        for space in self._spaces.values():
            space.discard()

    def describe(self) -> str:
        """What would survive the end of the process right now."""
        rows = ", ".join(f"{space.rows_stored} rows of {name}" for name, space in self._spaces.items())
        return f"{rows} and {self._table_cursor.items['image']} images and {self._table_cursor.items['text']} texts are stored"

    def _open_space(self, name: str, committed: Committed) -> SpaceWriter:
        arrays = arrays_of(name, self._header.hook_points, self._header.layout)
        space = SpaceWriter(self._storage, name, arrays, committed.sequences[name], self._helpers, is_alone=self._is_alone)
        space.skip_to(committed.idle(name))
        return space

    def _commit_tables(self, *, final: bool) -> None:
        cursor = Cursor(self._next_batch, 0, self._items)
        files = self._part.write(self._storage, self._parts)
        idle = list(self._spaces if final else self._find_idle())
        commit = Commit(self._parts, self._part.n_items, sum(self._items.values()), files, cursor, final, idle)
        check_redo(self._storage, TABLES, commit, self._redo)
        before = self._redo.get(self._parts)
        if before is not None and before.rows_end != UNKNOWN:
            commit = before._replace(files=commit.files)
        write_commit(self._storage, TABLES, commit)
        if before is not None:
            self._storage.delete(redo_path(TABLES, self._parts))
        self._records[self._parts] = commit
        self._part = TablePart()
        self._pass_stored()

    def _find_idle(self) -> Iterator[str]:
        """The row spaces that have a block end where the next part of the tables begins."""
        known = self._records[self._parts - 1].idle if self._parts else self._spaces
        for name, space in self._spaces.items():
            if space.is_idle(self._table_cursor.batch, self._next_batch, before=name in known):
                yield name

    def _pass_stored(self) -> None:
        """Go on behind the parts of the tables that are stored."""
        while (commit := self._records.get(self._parts)) is not None:
            self._table_cursor, self._is_final = commit.cursor, commit.final
            self._parts += 1

    def _write_documents(self) -> None:
        documents: dict[str, bytes] = {ZARR: root_document(), f"{ZARR}/layers": group_document({})}
        documents[f"{ZARR}/rows"] = group_document({})
        for spec in self._header.hook_points:
            attributes = {"hook_point": spec.name, "modality": spec.modality, "space": spec.space}
            documents[layer_path(spec.name)] = group_document(attributes)
            documents[rows_path(spec.space)] = group_document({"space": spec.space, "modality": spec.modality})
        for folder, document in documents.items():
            update(self._storage, f"{folder}/zarr.json", document)
        for space in self._spaces.values():
            space.write_documents()
