"""What is committed, and how an unfinished store is brought back to exactly that."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from thresher.data.store.commits import (
    START,
    UNKNOWN,
    Commit,
    Cursor,
    find_records,
    find_redo,
    forget_block,
    read_commit,
)
from thresher.data.store.layout import (
    COUNTS,
    MANIFEST,
    MOMENTS,
    TABLES,
    ZARR,
    Layout,
    commit_path,
    moments_path,
    redo_path,
    rows_path,
)
from thresher.data.store.storage import Storage, StoredFile
from thresher.errors import StoreError

FOLDERS = (ZARR, "items", "pairs", "moments", "commits")
"""Everything in them belongs to the store; what lies beside them does not concern it."""


class Gap(NamedTuple):
    """Blocks of one sequence that are not stored."""

    start: Cursor
    """Where the rows of the first of them begin."""
    stop: Cursor | None
    """Where those of the last end, or somewhat later; None when the input tells."""

    def needs(self, batch: int) -> bool:
        """Whether rows or items of a batch belong to it."""
        return self.start.batch <= batch and (self.stop is None or (batch, 0) < self.stop[:2])


class Blocks(NamedTuple):
    """The blocks of a row space, or the parts of the tables."""

    records: Mapping[int, Commit]
    """Block -> its commit record."""
    redo: Mapping[int, Commit]
    """Block -> what it was before a repair found it damaged; it has no commit record now."""

    @property
    def prefix(self) -> list[Commit]:
        """The blocks from block 0 to the last without a gap."""
        found: list[Commit] = []
        while len(found) in self.records:
            found.append(self.records[len(found)])
        return found

    def gaps(self, idle: Cursor) -> Iterator[Gap]:
        """What is missing between the blocks and behind them; nothing at the end lies before the cursor `idle`."""
        block, cursor, is_final = 0, START, False
        for stored, commit in sorted(self.records.items()):
            if stored > block:
                last = self.redo.get(stored - 1)
                yield Gap(cursor, last.cursor if last and last.rows_end != UNKNOWN else commit.cursor)
            block, cursor, is_final = stored + 1, commit.cursor, commit.final
        if is_final:
            return
        last = self.redo[max(self.redo)] if self.redo else None
        start = cursor if last else max(cursor, idle, key=lambda end: end[:2])
        yield Gap(start, last.cursor if last and last.final else None)


class Committed(NamedTuple):
    """What is committed of a store."""

    sequences: Mapping[str, Blocks]
    """Row space -> its blocks; the tables among them."""
    is_in_order: bool
    """Whether one writer made all of it, so that a part of the tables is stored after the full blocks of its batches."""

    @property
    def spaces(self) -> dict[str, list[Commit]]:
        """Row space -> its blocks up to the first gap."""
        return {space: sequence.prefix for space, sequence in self.sequences.items() if space != TABLES}

    @property
    def tables(self) -> list[Commit]:
        """The parts of the tables up to the first gap."""
        return self.sequences[TABLES].prefix

    def gaps(self) -> list[Gap]:
        """Everything that is missing; empty when the store only lacks its manifest."""
        return [gap for space, sequence in self.sequences.items() for gap in sequence.gaps(self.idle(space))]

    def start(self) -> Cursor:
        """The first batch of which something is missing anywhere, and the items before it; the end when nothing is."""
        starts = [gap.start for gap in self.gaps()]
        return min(starts, key=lambda cursor: cursor.batch) if starts else self.end()

    def end(self) -> Cursor:
        """The furthest that anything is or was stored: no harvest of the same input can end before it."""
        cursors = [commit.cursor for sequence in self.sequences.values() for commit in sequence.records.values()]
        cursors += [commit.cursor for sequence in self.sequences.values() for commit in sequence.redo.values()]
        return max([START, *cursors], key=lambda cursor: cursor[:2])

    def files(self) -> dict[str, StoredFile]:
        """Every committed file by its path relative to the store, commit records not among them."""
        blocks = [commit for sequence in self.sequences.values() for commit in sequence.records.values()]
        return {path: stored for commit in blocks for path, stored in commit.files.items()}

    def records(self) -> list[str]:
        """The commit records, relative to the store."""
        found = [commit_path(space, block) for space, sequence in self.sequences.items() for block in sequence.records]
        return found + [redo_path(space, block) for space, sequence in self.sequences.items() for block in sequence.redo]

    def idle(self, space: str) -> Cursor:
        """The last place where the tables say that nothing of a row space was waiting to be stored."""
        if not self.is_in_order:
            return START
        return max([START, *(part.cursor for part in self.tables if space in part.idle)], key=lambda cursor: cursor[:2])


def read_committed(storage: Storage, layout: Layout) -> Committed:
    """Read all commit records. Raises StoreError for a damaged one."""
    is_shared = any(True for _ in storage.list_files(COUNTS))
    sequences = {space: _read_sequence(storage, space) for space in [*layout.shard_rows, TABLES]}
    return Committed(sequences, is_in_order=not is_shared)


def _read_sequence(storage: Storage, space: str) -> Blocks:
    records = {block: read_commit(storage, path) for block, path in find_records(storage, space).items()}
    redo = {block: read_commit(storage, path) for block, path in find_redo(storage, space).items() if block not in records}
    return Blocks(records, redo)


def mark_lost(storage: Storage, committed: Committed) -> bool:
    """Note blocks whose commit record is gone, though what the tables say of idle spaces hides that; whether there are any.

    A space is idle where all its rows are stored. When the record of its last block is missing but the files of the block
    are there, either it was not committed yet or its record was lost: then its rows must be looked at again.
    """
    found = False
    for space, blocks in committed.sequences.items():
        block = max(blocks.records, default=-1) + 1
        cursor = blocks.records[block - 1].cursor if block else START
        if space == TABLES or block in blocks.redo or committed.idle(space)[:2] <= cursor[:2]:
            continue
        files = (moments_path(space, block), f"{rows_path(space)}/item/c/{block}")
        if any(storage.size(path) is not None for path in files):
            forget_block(storage, space, block)
            found = True
    return found


def roll_back(storage: Storage, committed: Committed) -> None:
    """Delete what a killed harvest left uncommitted. Raises StoreError when something committed is gone."""
    for path, stored in committed.files().items():
        found = storage.size(path)
        if found != stored.bytes:
            size = "missing" if found is None else f"{found} bytes"
            name = storage.locate(path)
            raise StoreError(
                f"{name}: {size}, expected {stored.bytes} bytes; the store is damaged: run `thresher store repair` on it, "
                "then the same harvest command again"
            )
    delete_strays(storage, {*committed.files(), *committed.records()})


def delete_strays(storage: Storage, keep: set[str]) -> list[str]:
    """Delete every file of the store but `keep` and the documents of zarr; gives what was deleted."""
    strays = [path for path in list_files(storage) if path not in keep and not path.endswith("/zarr.json")]
    for path in strays:
        storage.delete(path)
    for name in (MANIFEST, MOMENTS):
        storage.delete(f".{name}.partial")
    return strays


def list_files(storage: Storage) -> Iterator[str]:
    """The files that lie in the folders of a store, relative to it, in order."""
    for folder in FOLDERS:
        yield from storage.list_files(folder)
