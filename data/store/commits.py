"""Commit records: the only thing that decides which rows of an unfinished store exist."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from thresher.data.store.header import pick
from thresher.data.store.layout import commit_path
from thresher.data.store.storage import Storage, StoredFile, write_file
from thresher.errors import StoreError
from thresher.runs import canonical_json


class Cursor(NamedTuple):
    """Where a harvest goes on."""

    batch: int
    """The first batch of which something is not stored."""
    rows: int
    """Rows of that batch that this space already has."""
    items: Mapping[str, int]
    """Modality -> number of items of all batches before that batch."""


START = Cursor(0, 0, {"image": 0, "text": 0})


class Commit(NamedTuple):
    """One block of one row space, or one part of the tables."""

    block: int
    rows: int
    """Rows of this block; for the tables, items of both modalities."""
    rows_end: int
    """Rows of this and all blocks before it."""
    files: Mapping[str, StoredFile]
    """Path relative to the store -> what the file must be."""
    cursor: Cursor
    final: bool
    """No block follows."""
    idle: Sequence[str]
    """Row spaces of which nothing was waiting to be stored: their cursor is this one too."""


def write_commit(storage: Storage, space: str, commit: Commit) -> None:
    """Make a block part of the store. Its files must be durable."""
    record = commit._asdict() | {
        "files": {path: stored._asdict() for path, stored in commit.files.items()},
        "cursor": commit.cursor._asdict(),
    }
    write_file(storage, commit_path(space, commit.block), [canonical_json(record)])


def read_commits(storage: Storage, space: str) -> list[Commit]:
    """The committed blocks of a space, from block 0 to the last without a gap. Raises StoreError for a damaged record."""
    return list(_read(storage, space))


def _read(storage: Storage, space: str) -> Iterator[Commit]:
    block = 0
    while storage.size(path := commit_path(space, block)) is not None:
        yield _parse(storage, path)
        block += 1


def _parse(storage: Storage, path: str) -> Commit:
    try:
        record: dict[str, Any] = json.loads(storage.read(path))
        files = {name: StoredFile(**pick(stored, StoredFile._fields)) for name, stored in record["files"].items()}
        known = {"files": files, "cursor": Cursor(**pick(record["cursor"], Cursor._fields))}
        return Commit(**pick(record | known, Commit._fields))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise StoreError(
            f"{storage.locate(path)}: not a commit record ({error}); the store is damaged: harvest it again"
        ) from error
