"""Checking that every byte of a store is what was written."""

import itertools
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import crc32c

from thresher.data.store.header import Header, read_header
from thresher.data.store.layout import MANIFEST, RUN, arrays_of
from thresher.data.store.manifest import read_manifest
from thresher.data.store.reader import describe_unfinished
from thresher.data.store.recovery import list_files, read_committed
from thresher.data.store.sharded import Shard
from thresher.data.store.storage import Storage, StoredFile, open_storage
from thresher.data.store.zarr_json import array_document
from thresher.errors import StoreError
from thresher.progress import progress

THREADS = 8
"""Files checked at once: as many as keep a fast disk busy."""
BLOCK = 4 << 20
"""Bytes read at once."""

Level = Literal["sizes", "checksums"]


def verify_store(path: Path, *, level: Level) -> list[str]:
    """Compare the files of a store with its manifest, or with its commit records when it is unfinished.

    `sizes` looks at names, sizes and the indices of shards, `checksums` reads every byte. Gives the findings, each with file,
    what was found, what was expected; empty when the store is sound and complete. Raises StoreError when `path` holds no
    store at all.
    """
    storage = open_storage(path)
    if storage.size(RUN) is None:
        read_header(storage)
    try:
        return list(_verify(storage, level))
    except StoreError as error:
        return [str(error)]


def _verify(storage: Storage, level: Level) -> Iterator[str]:
    header = read_header(storage)
    manifest = read_manifest(storage)
    if manifest is not None:
        yield from _check_files(storage, manifest.files, level)
        if level == "sizes":
            yield from _check_indices(storage, header, manifest.files)
        yield from _find_strays(storage, set(manifest.files))
        return
    committed = read_committed(storage, header.layout)
    yield f"{storage.locate(MANIFEST)}: missing; {describe_unfinished(committed)}; rerun the same harvest command to resume"
    yield from _check_files(storage, committed.files(), level)
    for space, commits in committed.spaces.items():
        rows = commits[-1].rows_end if commits else 0
        for spec in arrays_of(space, header.hook_points, header.layout):
            path = f"{spec.path}/zarr.json"
            if storage.size(path) is None or storage.read(path) != array_document(spec, rows):
                yield f"{storage.locate(path)}: does not tell the {rows} committed rows; the next harvest mends it"


def _check_files(storage: Storage, files: Mapping[str, StoredFile], level: Level) -> Iterator[str]:
    with ThreadPoolExecutor(THREADS) as pool, progress(f"verify {storage.locate()}", len(files), "files") as advance:
        for finding in pool.map(_check_file, itertools.repeat(storage), files, files.values(), itertools.repeat(level)):
            advance()
            if finding:
                yield finding


def _check_indices(storage: Storage, header: Header, files: Mapping[str, StoredFile]) -> Iterator[str]:
    """Findings about shards of the right size whose index is not what it must be."""
    spaces = {spec.space for spec in header.hook_points}
    arrays = {spec.path: spec for space in spaces for spec in arrays_of(space, header.hook_points, header.layout)}
    for name, expected in files.items():
        spec = arrays.get(name.rpartition("/c/")[0])
        if spec is not None and _check_file(storage, name, expected, "sizes") is None:
            try:
                Shard(storage, name, spec.shard_rows // spec.chunk_rows, spec.chunk_rows * spec.row_bytes)
            except StoreError as error:
                yield str(error)


def _check_file(storage: Storage, path: str, expected: StoredFile, level: Level) -> str | None:
    name, size = storage.locate(path), storage.size(path)
    if size is None:
        return f"{name}: missing, expected {expected.bytes} bytes"
    if size != expected.bytes:
        return f"{name}: {size} bytes, expected {expected.bytes}"
    if level == "sizes":
        return None
    try:
        found = _checksum(storage, path)
    except OSError as error:
        return f"{name}: cannot be read ({error.strerror})"
    return None if found == expected.crc32c else f"{name}: crc32c {found}, expected {expected.crc32c}"


def _checksum(storage: Storage, path: str) -> str:
    crc, offset, file, buffer = 0, 0, storage.open(path), memoryview(bytearray(BLOCK))
    try:
        while n := file.read_into(offset, buffer):
            crc, offset = crc32c.crc32c(buffer[:n], crc), offset + n
    finally:
        file.close()
    return f"{crc:08x}"


def _find_strays(storage: Storage, known: set[str]) -> Iterator[str]:
    for file in list_files(storage):
        if file not in known:
            yield f"{storage.locate(file)}: not in the manifest, expected no such file"
