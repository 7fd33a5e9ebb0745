"""The open end of a store: takes batches in order and commits what is full."""

from thresher.data.store.commits import START, Commit, Cursor, write_commit
from thresher.data.store.header import Header
from thresher.data.store.layout import MODALITIES, TABLES, ZARR, arrays_of, layer_path, rows_path
from thresher.data.store.manifest import write_manifest
from thresher.data.store.recovery import Committed, read_committed, roll_back
from thresher.data.store.schema import Batch
from thresher.data.store.space import SpaceWriter, update
from thresher.data.store.storage import Storage
from thresher.data.store.tables import TablePart
from thresher.data.store.zarr_json import group_document, root_document
from thresher.errors import StoreError


class Sink:
    """All disk work of a harvest, in one thread. OSError passes through; whatever was committed before stays."""

    def __init__(self, storage: Storage, header: Header) -> None:
        self._storage = storage
        self._header = header
        committed = read_committed(storage, header.layout)
        roll_back(storage, committed)
        self.start = committed.start()
        """The first batch to write again, and the items before it."""
        self._end = _end(committed)
        self._items = dict(self.start.items)
        self._next_batch = self.start.batch
        self._modality = {spec.space: spec.modality for spec in header.hook_points}
        self._spaces = {space: self._open_space(space, committed) for space in committed.spaces}
        self._parts = len(committed.tables)
        self._table_cursor = committed.tables[-1].cursor if committed.tables else START
        self._is_final = bool(committed.tables) and committed.tables[-1].final
        self._part = TablePart()
        self._write_documents()

    def append(self, batch: Batch) -> None:
        """Take the next batch; drops what is stored already."""
        before = dict(self._items)
        after = {modality: before[modality] + len(batch.items.get(modality, ())) for modality in MODALITIES}
        for space, rows in batch.rows.items():
            self._spaces[space].append(batch.index, rows, before, after, self._modality[space])
        self._items, self._next_batch = after, batch.index + 1
        if batch.index < self._table_cursor.batch:
            return
        self._part.append(batch, before)
        if self._part.batches == self._header.layout.batches_per_part:
            self._commit_tables(final=False)

    def finish(self) -> None:
        """Commit what is left, then make the store complete."""
        cursor = Cursor(self._next_batch, 0, self._items)
        if (cursor.batch, cursor.rows) < self._end[:2]:
            raise StoreError(
                f"{self._storage.locate()}: the harvest ended before batch {cursor.batch}, but rows of batch "
                f"{self._end.batch} are stored; its input has shrunk: harvest into another `out`"
            )
        for space in self._spaces.values():
            space.finish(cursor)
        if not self._is_final:
            self._commit_tables(final=True)
        write_manifest(self._storage, self._header)

    def discard(self) -> None:
        """Forget what is not committed."""
        for space in self._spaces.values():
            space.discard()

    def describe(self) -> str:
        """What would survive the end of the process right now."""
        rows = ", ".join(f"{space.rows_stored} rows of {name}" for name, space in self._spaces.items())
        return f"{rows} and {self._table_cursor.items['image']} images and {self._table_cursor.items['text']} texts are stored"

    def _open_space(self, name: str, committed: Committed) -> SpaceWriter:
        arrays = arrays_of(name, self._header.hook_points, self._header.layout)
        space = SpaceWriter(self._storage, name, arrays, committed.spaces[name])
        space.skip_to(committed.cursor(name))
        return space

    def _commit_tables(self, *, final: bool) -> None:
        cursor = Cursor(self._next_batch, 0, self._items)
        files = self._part.write(self._storage, self._parts)
        idle = [name for name, space in self._spaces.items() if space.is_idle]
        rows = self._part.n_items
        write_commit(self._storage, TABLES, Commit(self._parts, rows, sum(self._items.values()), files, cursor, final, idle))
        self._parts, self._part, self._table_cursor, self._is_final = self._parts + 1, TablePart(), cursor, final

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


def _end(committed: Committed) -> Cursor:
    """The furthest that anything is stored: no harvest of the same input can end before it."""
    cursors: list[Cursor] = [committed.cursor(space) for space in committed.spaces]
    cursors += [commit.cursor for commit in committed.tables[-1:]]
    return max(cursors, key=lambda cursor: (cursor.batch, cursor.rows))
