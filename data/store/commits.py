"""Commit records: the only thing that decides which rows of an unfinished store exist."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from thresher.data.store.header import pick
from thresher.data.store.layout import commit_path, redo_path
from thresher.data.store.seal import seal, unseal
from thresher.data.store.storage import Storage, StoredFile, write_file
from thresher.errors import StoreError


class Cursor(NamedTuple):
    """Where a harvest goes on."""

    batch: int
    """The first batch of which something is not stored."""
    rows: int
    """Rows of that batch that this space already has."""
    items: Mapping[str, int]
    """Modality -> number of items of all batches before that batch."""


START = Cursor(0, 0, {"image": 0, "text": 0})
UNKNOWN = -1
"""`rows_end` of a block whose record was damaged: it must be made again, and nothing tells what it was."""


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
    write_file(storage, commit_path(space, commit.block), [_dump(commit)])


def write_redo(storage: Storage, space: str, commit: Commit) -> None:
    """Keep the record of a block that is to be made again, byte for byte."""
    write_file(storage, redo_path(space, commit.block), [_dump(commit)])


def forget_block(storage: Storage, space: str, block: int) -> None:
    """Note that a block is to be made again of which nothing is known."""
    write_redo(storage, space, Commit(block, 0, UNKNOWN, {}, START, final=False, idle=()))


def describe_file(stored: StoredFile) -> dict[str, Any]:
    """A file as records tell of it."""
    return {name: value for name, value in stored._asdict().items() if value != ""}


def find_records(storage: Storage, space: str) -> dict[int, str]:
    """Block -> path of its commit record, in order."""
    return _find(storage, space, r"(\d{8})\.json")


def find_redo(storage: Storage, space: str) -> dict[int, str]:
    """Block -> path of the record of a block that must be made again."""
    return _find(storage, space, r"(\d{8})\.redo\.json")


def read_commit(storage: Storage, path: str) -> Commit:
    """Read one record. Raises StoreError when it is damaged."""
    try:
        record = unseal(storage.read(path), Commit._fields)
        files = {name: StoredFile(**pick({"chunks": ""} | file, StoredFile._fields)) for name, file in record["files"].items()}
        known = {"files": files, "cursor": Cursor(**pick(record["cursor"], Cursor._fields))}
        return Commit(**pick(record | known, Commit._fields))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise StoreError(
            f"{storage.locate(path)}: not a commit record ({error}); the store is damaged: run `thresher store repair` on it"
        ) from error


def _dump(commit: Commit) -> bytes:
    files = {path: describe_file(stored) for path, stored in commit.files.items()}
    return seal(commit._asdict() | {"files": files, "cursor": commit.cursor._asdict()})


def _find(storage: Storage, space: str, pattern: str) -> dict[int, str]:
    matches = ((re.fullmatch(f".*/{pattern}", path), path) for path in storage.list_files(f"commits/{space}"))
    return {int(match[1]): path for match, path in matches if match}
