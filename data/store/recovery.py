"""What is committed, and how an unfinished store is brought back to exactly that."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from thresher.data.store.commits import START, Commit, Cursor, read_commits
from thresher.data.store.layout import MANIFEST, MOMENTS, TABLES, ZARR, Layout, commit_path
from thresher.data.store.shard import StoredFile
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


def read_committed(root: Path, layout: Layout) -> Committed:
    """Read all commit records. Raises StoreError for a damaged one."""
    return Committed({space: read_commits(root, space) for space in layout.shard_rows}, read_commits(root, TABLES))


def roll_back(root: Path, committed: Committed) -> None:
    """Delete what a killed harvest left uncommitted. Raises StoreError when something committed is gone."""
    for path, stored in committed.files().items():
        found = (root / path).stat().st_size if (root / path).exists() else None
        if found != stored.bytes:
            size = "missing" if found is None else f"{found} bytes"
            raise StoreError(f"{root / path}: {size}, expected {stored.bytes} bytes; the store is damaged: harvest it again")
    keep = {*committed.files(), *committed.records()}
    for path in list_files(root):
        if path not in keep and not path.endswith("/zarr.json"):
            (root / path).unlink()
    for name in (MANIFEST, MOMENTS):
        (root / f".{name}.partial").unlink(missing_ok=True)


def list_files(root: Path) -> Iterator[str]:
    """The files that lie in the folders of a store, relative to it, in order."""
    for top in FOLDERS:
        for folder, subfolders, names in os.walk(root / top):
            subfolders.sort()
            for name in sorted(names):
                yield (Path(folder) / name).relative_to(root).as_posix()
