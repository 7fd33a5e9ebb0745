"""What is committed, and how an unfinished store is brought back to exactly that."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from thresher.data.store.commits import START, Commit, Cursor, read_commits
from thresher.data.store.layout import MANIFEST, MOMENTS, TABLES, ZARR, Layout, commit_path
from thresher.data.store.storage import Storage, StoredFile
from thresher.errors import StoreError

FOLDERS = (ZARR, "items", "pairs", "moments", "commits")
"""Everything in them belongs to the store; what lies beside them does not concern it."""


class Committed(NamedTuple):
    """The committed prefix of a store."""

    spaces: Mapping[str, Sequence[Commit]]
    """Row space -> its blocks."""
    tables: Sequence[Commit]
    """The parts of the tables."""

    def cursor(self, space: str) -> Cursor:
        """Where a row space goes on: after its last block, or later where the tables say that nothing was waiting."""
        own = [commit.cursor for commit in self.spaces[space]]
        idle = [commit.cursor for commit in self.tables if space in commit.idle]
        return max([START, *own, *idle], key=lambda cursor: (cursor.batch, cursor.rows))

    def start(self) -> Cursor:
        """The first batch of which something is missing anywhere, and the items before it."""
        cursors = [self.cursor(space) for space in self.spaces]
        cursors.append(self.tables[-1].cursor if self.tables else START)
        return min(cursors, key=lambda cursor: cursor.batch)

    def files(self) -> dict[str, StoredFile]:
        """Every committed file by its path relative to the store, commit records not among them."""
        blocks = [*self.tables, *(commit for commits in self.spaces.values() for commit in commits)]
        return {path: stored for commit in blocks for path, stored in commit.files.items()}

    def records(self) -> list[str]:
        """The commit records, relative to the store."""
        sequences = {**self.spaces, TABLES: self.tables}
        return [commit_path(space, block) for space, commits in sequences.items() for block in range(len(commits))]


def read_committed(storage: Storage, layout: Layout) -> Committed:
    """Read all commit records. Raises StoreError for a damaged one."""
    return Committed({space: read_commits(storage, space) for space in layout.shard_rows}, read_commits(storage, TABLES))


def roll_back(storage: Storage, committed: Committed) -> None:
    """Delete what a killed harvest left uncommitted. Raises StoreError when something committed is gone."""
    for path, stored in committed.files().items():
        found = storage.size(path)
        if found != stored.bytes:
            size = "missing" if found is None else f"{found} bytes"
            raise StoreError(
                f"{storage.locate(path)}: {size}, expected {stored.bytes} bytes; the store is damaged: harvest it again"
            )
    keep = {*committed.files(), *committed.records()}
    for path in list_files(storage):
        if path not in keep and not path.endswith("/zarr.json"):
            storage.delete(path)
    for name in (MANIFEST, MOMENTS):
        storage.delete(f".{name}.partial")


def list_files(storage: Storage) -> Iterator[str]:
    """The files that lie in the folders of a store, relative to it, in order."""
    for folder in FOLDERS:
        yield from storage.list_files(folder)
