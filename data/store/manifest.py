"""The manifest: written last; a store is complete when it is there."""

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import crc32c
import pyarrow.parquet as pq

from thresher.data.store import moments
from thresher.data.store.commits import Commit, describe_file
from thresher.data.store.header import Header, check_version, pick
from thresher.data.store.layout import FORMAT, MANIFEST, MOMENTS, RUN, VERSION
from thresher.data.store.recovery import Committed, list_files, read_committed
from thresher.data.store.storage import SYNCS, Storage, StoredFile, Stream, write_file
from thresher.errors import StoreError
from thresher.runs import canonical_json

MEND = "run `thresher store repair` on it"


class Manifest(NamedTuple):
    """The content of `manifest.json`."""

    files: Mapping[str, StoredFile]
    """Every file of the store but the manifest and the lock, by its path relative to the store."""
    rows: Mapping[str, int]
    """Hook point -> rows."""
    items: Mapping[str, int]
    """Modality -> items."""
    pairs: int
    sha256: str
    """Of the manifest without this field: the identity of everything in the store."""


def write_manifest(storage: Storage, header: Header) -> None:
    """Write the moments, then the manifest, of a store whose last blocks are committed."""
    committed = read_committed(storage, header.layout)
    states = combine_moments(storage, header, committed)
    write_file(storage, MOMENTS, [moments.dump_states(states)])
    files = dict(committed.files())
    others = [path for path in [RUN, MOMENTS, *list_files(storage)] if path not in files]
    with ThreadPoolExecutor(SYNCS) as pool:
        files.update(zip(others, pool.map(_measure, itertools.repeat(storage), others), strict=True))
    document = {
        "format": FORMAT,
        "version": VERSION,
        "files": {path: describe_file(stored._replace(chunks="")) for path, stored in files.items()},
        "rows": count_rows(header, committed),
        "items": dict(committed.tables[-1].cursor.items),
        "pairs": sum(_count_table(storage, path) for path in files if path.startswith("pairs/")),
    }
    write_file(storage, MANIFEST, [canonical_json(document | {"sha256": _digest(document)})])


def read_manifest(storage: Storage) -> Manifest | None:
    """The manifest, None when there is none. Raises StoreError: damaged, or of another version of the format."""
    path = storage.locate(MANIFEST)
    try:
        document: dict[str, Any] = json.loads(storage.read(MANIFEST))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise StoreError(f"{path}: cannot be read ({error}); the store is damaged: {MEND}") from error
    check_version(path, document)
    found, stored = _digest({key: value for key, value in document.items() if key != "sha256"}), document.get("sha256")
    if found != stored:
        raise StoreError(f"{path}: its content has digest {found}, expected {stored}; the store is damaged: {MEND}")
    files = {name: StoredFile(**pick(stored, ("bytes", "crc32c"))) for name, stored in document["files"].items()}
    return Manifest(files, document["rows"], document["items"], document["pairs"], document["sha256"])


def count_rows(header: Header, committed: Committed) -> dict[str, int]:
    """Hook point -> committed rows."""
    ends = {space: commits[-1].rows_end if commits else 0 for space, commits in committed.spaces.items()}
    return {spec.name: ends[spec.space] for spec in header.hook_points}


def combine_moments(storage: Storage, header: Header, committed: Committed) -> dict[str, moments.State]:
    """Hook point -> moments of all committed rows, the same bits in whatever order the blocks were written."""
    total: dict[str, moments.State] = {}
    for space, commits in committed.spaces.items():
        for spec in header.hook_points:
            if spec.space == space:
                states = (block[spec.name] for block in _block_moments(storage, commits, [spec.name]))
                total[spec.name] = moments.add_states(states, spec.width)
    return {spec.name: total[spec.name] for spec in header.hook_points}


def _block_moments(storage: Storage, commits: Sequence[Commit], names: Sequence[str]) -> Iterator[dict[str, moments.State]]:
    for commit in commits:
        for path in commit.files:
            if path.startswith("moments/"):
                yield moments.load_states(storage.read(path), names)


def _measure(storage: Storage, path: str) -> StoredFile:
    """Make a small file durable that was written without waiting, and say what it is."""
    data = storage.read(path)
    storage.sync(path)
    return StoredFile(len(data), f"{crc32c.crc32c(data):08x}")


def _count_table(storage: Storage, path: str) -> int:
    with Stream(storage.open(path)) as file, pq.ParquetFile(file) as table:
        return table.metadata.num_rows


def _digest(document: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json(document)).hexdigest()
