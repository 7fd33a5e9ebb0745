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
from thresher.data.store.shard import StoredFile
from thresher.data.store.sharded import Shard
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
    if not (path / RUN).exists():
        read_header(path)
    try:
        return list(_verify(path, level))
    except StoreError as error:
        return [str(error)]


def _verify(path: Path, level: Level) -> Iterator[str]:
    header = read_header(path)
    manifest = read_manifest(path)
    if manifest is not None:
        yield from _check_files(path, manifest.files, level)
        if level == "sizes":
            yield from _check_indices(path, header, manifest.files)
        yield from _find_strays(path, set(manifest.files))
        return
    committed = read_committed(path, header.layout)
    yield f"{path / MANIFEST}: missing; {describe_unfinished(committed)}; rerun the same harvest command to resume"
    yield from _check_files(path, committed.files(), level)
    for space, commits in committed.spaces.items():
        rows = commits[-1].rows_end if commits else 0
        for spec in arrays_of(space, header.hook_points, header.layout):
            document = path / spec.path / "zarr.json"
            if not document.exists() or document.read_bytes() != array_document(spec, rows):
                yield f"{document}: does not tell the {rows} committed rows; the next harvest mends it"


def _check_files(path: Path, files: Mapping[str, StoredFile], level: Level) -> Iterator[str]:
    with ThreadPoolExecutor(THREADS) as pool, progress(f"verify {path.name}", len(files), "files") as advance:
        paths = [path / name for name in files]
        for finding in pool.map(_check_file, paths, files.values(), itertools.repeat(level)):
            advance()
            if finding:
                yield finding


def _check_indices(path: Path, header: Header, files: Mapping[str, StoredFile]) -> Iterator[str]:
    """Findings about shards of the right size whose index is not what it must be."""
    spaces = {spec.space for spec in header.hook_points}
    arrays = {spec.path: spec for space in spaces for spec in arrays_of(space, header.hook_points, header.layout)}
    for name, expected in files.items():
        spec = arrays.get(name.rpartition("/c/")[0])
        if spec is not None and _check_file(path / name, expected, "sizes") is None:
            try:
                Shard(path / name, spec.shard_rows // spec.chunk_rows, spec.chunk_rows * spec.row_bytes)
            except StoreError as error:
                yield str(error)


def _check_file(path: Path, expected: StoredFile, level: Level) -> str | None:
    if not path.is_file():
        return f"{path}: missing, expected {expected.bytes} bytes"
    size = path.stat().st_size
    if size != expected.bytes:
        return f"{path}: {size} bytes, expected {expected.bytes}"
    if level == "sizes":
        return None
    try:
        found = _checksum(path)
    except OSError as error:
        return f"{path}: cannot be read ({error.strerror})"
    return None if found == expected.crc32c else f"{path}: crc32c {found}, expected {expected.crc32c}"


def _checksum(path: Path) -> str:
    crc = 0
    with path.open("rb", buffering=0) as file:
        while block := file.read(BLOCK):
            crc = crc32c.crc32c(block, crc)
    return f"{crc:08x}"


def _find_strays(path: Path, known: set[str]) -> Iterator[str]:
    for file in list_files(path):
        if file not in known:
            yield f"{path / file}: not in the manifest, expected no such file"
