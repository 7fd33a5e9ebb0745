"""Checking that every byte of a store is what was written."""

import contextlib
import itertools
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import crc32c

from thresher.data.store.commits import find_records, read_commit
from thresher.data.store.header import Header, read_header
from thresher.data.store.layout import MANIFEST, RUN, ArraySpec, arrays_of
from thresher.data.store.manifest import read_manifest
from thresher.data.store.places import open_storage
from thresher.data.store.reader import describe_unfinished
from thresher.data.store.recovery import list_files, read_committed
from thresher.data.store.retype import name_types
from thresher.data.store.shard import Shard
from thresher.data.store.storage import Storage, StoredFile
from thresher.data.store.zarr_json import array_document
from thresher.errors import StoreError
from thresher.progress import progress

THREADS = 8
"""Files checked at once: as many as keep a fast disk busy."""
BLOCK = 4 << 20
"""Bytes read at once."""

MARKS = r"([0-9a-f]{8})+"
"""What `chunks` of a stored file looks like."""

Level = Literal["sizes", "checksums"]


def verify_store(path: str | Path, *, level: Level) -> list[str]:
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
        yield from _check_files(storage, header, manifest.files, level)
        if level == "sizes":
            yield from _check_indices(storage, header, manifest.files)
        yield from _find_strays(storage, set(manifest.files))
        return
    committed = read_committed(storage, header.layout)
    yield f"{storage.locate(MANIFEST)}: missing; {describe_unfinished(committed)}; rerun the same harvest command to resume"
    yield from _check_files(storage, header, committed.files(), level)
    for space, commits in committed.spaces.items():
        rows = commits[-1].rows_end if commits else 0
        for spec in arrays_of(space, header.hook_points, header.layout):
            path = f"{spec.path}/zarr.json"
            document = storage.read(path) if storage.size(path) is not None else b""
            if array_document(spec, rows) not in name_types(document):
                yield f"{storage.locate(path)}: does not tell the {rows} committed rows; the next harvest mends it"


def find_damage(storage: Storage, files: Mapping[str, StoredFile], level: Level = "checksums") -> dict[str, str]:
    """Path -> what is wrong with it, of the files that are not what they must be; checks several at once."""
    with ThreadPoolExecutor(THREADS) as pool, progress(f"verify {storage.locate()}", len(files), "files") as advance:
        found: dict[str, str] = {}
        checked = pool.map(check_file, itertools.repeat(storage), files, files.values(), itertools.repeat(level))
        for path, finding in zip(files, checked, strict=True):
            advance()
            if finding:
                found[path] = finding
    return found


def check_file(storage: Storage, path: str, expected: StoredFile, level: Level = "checksums") -> str | None:
    """What is wrong with a file, None when it is what it must be."""
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


def _check_files(storage: Storage, header: Header, files: Mapping[str, StoredFile], level: Level) -> Iterator[str]:
    damage = find_damage(storage, files, level)
    marks = _read_marks(storage, header) if damage and level == "checksums" else {}
    arrays = _arrays(header)
    for path, finding in damage.items():
        if _is_other_name(storage, path, files[path]):
            continue
        spec = arrays.get(path.rpartition("/c/")[0])
        is_readable = path in marks and check_file(storage, path, files[path], "sizes") is None
        yield finding + (_name_chunks(storage, path, spec, marks[path]) if spec and is_readable else "")


def _check_indices(storage: Storage, header: Header, files: Mapping[str, StoredFile]) -> Iterator[str]:
    """Findings about shards of the right size whose index is not what it must be."""
    arrays = _arrays(header)
    for name, expected in files.items():
        spec = arrays.get(name.rpartition("/c/")[0])
        if spec is not None and check_file(storage, name, expected, "sizes") is None:
            try:
                _open_shard(storage, name, spec)
            except StoreError as error:
                yield str(error)


def _is_other_name(storage: Storage, path: str, expected: StoredFile) -> bool:
    """Whether a file is the document of an array that was only given another name of its type (see retype)."""
    if not path.endswith("/zarr.json") or storage.size(path) is None:
        return False
    return expected.crc32c in [f"{crc32c.crc32c(named):08x}" for named in name_types(storage.read(path))]


def _open_shard(storage: Storage, path: str, spec: ArraySpec) -> Shard:
    chunk_bytes = spec.chunk_rows * spec.row_bytes if spec.profile == "raw" else None
    return Shard(storage, path, spec.shard_rows // spec.chunk_rows, chunk_bytes)


def _arrays(header: Header) -> dict[str, ArraySpec]:
    specs = [spec for space in header.layout.shard_rows for spec in arrays_of(space, header.hook_points, header.layout)]
    return {spec.path: spec for spec in specs}


def _read_marks(storage: Storage, header: Header) -> dict[str, str]:
    """Shard -> the checksums of its chunks, as far as the commit records can be read and make sense."""
    marks: dict[str, str] = {}
    for space in header.layout.shard_rows:
        for record in find_records(storage, space).values():
            with contextlib.suppress(StoreError):
                files = read_commit(storage, record).files
                marks |= {path: stored.chunks for path, stored in files.items() if re.fullmatch(MARKS, stored.chunks)}
    return marks


def _name_chunks(storage: Storage, path: str, spec: ArraySpec, marks: str) -> str:
    """Which chunks of a shard are damaged. A chunk is sound when it leads from the checksum before it to the one behind."""
    ends = [0, *(int(marks[i : i + 8], 16) for i in range(0, len(marks), 8))]
    file, lengths = storage.open(path), [spec.chunk_rows * spec.row_bytes] * (len(ends) - 1)
    if spec.profile != "raw":
        try:
            lengths = _open_shard(storage, path, spec).lengths[: len(ends) - 1]
        except StoreError:
            return "; its index is damaged"
    if file.size < sum(lengths):
        return ""
    bad: list[int] = []
    offset = 0
    for chunk, (before, after) in enumerate(itertools.pairwise(ends)):
        buffer = memoryview(bytearray(lengths[chunk]))
        file.read_into(offset, buffer)
        offset += len(buffer)
        if crc32c.crc32c(buffer, before) != after:
            bad.append(chunk)
    if not bad:
        return "; its chunks are sound, its index is damaged"
    first = int(path.split("/c/")[1].split("/")[0]) * spec.shard_rows
    rows = [f"{chunk} (rows {first + chunk * spec.chunk_rows} to {first + (chunk + 1) * spec.chunk_rows - 1})" for chunk in bad]
    return f"; damaged: chunk {', '.join(rows)}"


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
