"""Bringing a damaged store back to what is sound, so that the same harvest command makes the rest again."""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from thresher.data.store import moments
from thresher.data.store.commits import Commit, find_records, find_redo, forget_block, read_commit, write_redo
from thresher.data.store.header import Header, read_header
from thresher.data.store.layout import MANIFEST, MOMENTS, RUN, TABLES, activations_path, arrays_of, commit_path, moments_path
from thresher.data.store.manifest import read_manifest
from thresher.data.store.places import open_storage
from thresher.data.store.recovery import list_files, read_committed
from thresher.data.store.sharded import ZarrArray, open_array
from thresher.data.store.sink import Sink
from thresher.data.store.space import update
from thresher.data.store.storage import Storage, StoredFile, write_file
from thresher.data.store.verify import check_file, find_damage, verify_store
from thresher.data.store.zarr_json import array_document
from thresher.errors import StoreError


class Repair(NamedTuple):
    """What a repair did."""

    findings: list[str]
    """What was wrong; empty for a sound store, which is left alone."""
    actions: list[str]
    """What was deleted, rebuilt or marked to be made again."""
    is_complete: bool
    """Whether the store is whole now; otherwise the same harvest command makes it so."""


def repair_store(path: str | Path) -> Repair:
    """Delete what is damaged or not committed, rebuild what follows from the rest, mark the blocks to be made again.

    Reads every byte. Afterwards the same harvest command redoes the batches of the marked blocks only, and must come to the
    bytes that were committed. Raises StoreError: no store, `run.json` is damaged (then nothing can be kept), or a harvest is
    writing it.
    """
    storage = open_storage(path)
    header = read_header(storage)
    lock = storage.lock()
    try:
        findings = verify_store(path, level="checksums")
        return _repair(storage, header, findings) if findings else Repair([], [], is_complete=True)
    finally:
        lock.release()


def _repair(storage: Storage, header: Header, findings: list[str]) -> Repair:
    expected = _read_expected(storage)
    if RUN in expected and (problem := check_file(storage, RUN, expected[RUN])) is not None:
        raise StoreError(f"{problem}; what the store holds cannot be known any more: harvest it again, into another folder")
    actions = list(_drop_records(storage, header, expected))
    storage.delete(MANIFEST)
    storage.delete(MOMENTS)
    committed = read_committed(storage, header.layout)
    damaged = find_damage(storage, committed.files())
    for space, blocks in committed.sequences.items():
        for commit in blocks.records.values():
            actions += _repair_block(storage, header, space, commit, damaged)
    keep = {*(kept := read_committed(storage, header.layout)).files(), *kept.records()}
    strays = [name for name in list_files(storage) if name not in keep and not name.endswith("/zarr.json")]
    actions += [f"deleted {storage.locate(name)}: not committed" for name in strays]
    sink = Sink(storage, header)
    if sink.next_needed(0) is None and not sink.is_open:
        sink.finish()
        return Repair(findings, actions, is_complete=True)
    return Repair(findings, [*actions, _describe_rest(sink)], is_complete=False)


def _read_expected(storage: Storage) -> Mapping[str, StoredFile]:
    """The files that the manifest tells of; none when there is no manifest or it is damaged."""
    try:
        manifest = read_manifest(storage)
    except StoreError:
        return {}
    return manifest.files if manifest else {}


def _drop_records(storage: Storage, header: Header, expected: Mapping[str, StoredFile]) -> Iterator[str]:
    """Delete damaged commit records; their blocks, and those whose record is gone, are made again with nothing to compare."""
    for space in (*header.layout.shard_rows, TABLES):
        for block, path in find_records(storage, space).items():
            try:
                read_commit(storage, path)
                if path not in expected or check_file(storage, path, expected[path]) is None:
                    continue
            except StoreError:
                pass
            forget_block(storage, space, block)
            storage.delete(path)
            yield f"deleted {storage.locate(path)}: damaged; {space} block {block} is to be made again"
        for block in sorted(_list_blocks(expected, space) - {*find_records(storage, space), *find_redo(storage, space)}):
            # Were it the last record, nothing else would tell that the store had rows behind those that are left.
            forget_block(storage, space, block)
            yield f"{storage.locate(commit_path(space, block))}: missing; {space} block {block} is to be made again"


def _list_blocks(files: Mapping[str, StoredFile], space: str) -> set[int]:
    """The blocks of a space that have a commit record among `files`."""
    matches = (re.fullmatch(rf"commits/{re.escape(space)}/(\d{{8}})\.json", path) for path in files)
    return {int(match[1]) for match in matches if match}


def _repair_block(storage: Storage, header: Header, space: str, commit: Commit, damaged: Mapping[str, str]) -> Iterator[str]:
    bad = [path for path in commit.files if path in damaged]
    if not bad:
        return
    own = moments_path(space, commit.block)
    if bad == [own] and _rebuild_moments(storage, header, space, commit):
        yield f"rebuilt {storage.locate(own)} from its rows"
        return
    write_redo(storage, space, commit)
    storage.delete(f"commits/{space}/{commit.block:08d}.json")
    for path in bad:
        storage.delete(path)
        yield f"deleted {storage.locate(path)}: damaged; {space} block {commit.block} is to be made again"


def _rebuild_moments(storage: Storage, header: Header, space: str, commit: Commit) -> bool:
    """Compute the moments of a block again as they were computed while it was written: chunk by chunk."""
    states: dict[str, moments.State] = {}
    start = commit.rows_end - commit.rows
    for spec in arrays_of(space, header.hook_points, header.layout):
        if spec.hook_point is None:
            continue
        update(storage, f"{spec.path}/zarr.json", array_document(spec, max(commit.rows_end, _stored_rows(storage, spec.path))))
        array = open_array(storage, activations_path(spec.hook_point))
        state, scratch = moments.empty_state(spec.width or 1), moments.Scratch(spec.width or 1)
        for row in range(start, commit.rows_end, spec.chunk_rows):
            rows = np.empty((min(spec.chunk_rows, commit.rows_end - row), spec.width or 1), array.dtype)
            array.read_into(row, rows)
            moments.add_rows(state, rows, scratch)
        states[spec.hook_point] = state
    path = moments_path(space, commit.block)
    return write_file(storage, path, [moments.dump_states(states)]) == commit.files[path]


def _stored_rows(storage: Storage, path: str) -> int:
    """Rows that the document of an array tells, 0 when it cannot be read."""
    try:
        array = open_array(storage, path)
    except StoreError:
        return 0
    return 0 if isinstance(array, ZarrArray) else array.shape[0]


def _describe_rest(sink: Sink) -> str:
    batches = _ranges(_needed(sink))
    rest = "all batches behind them" if batches else f"the batches from {sink.start.batch} on"
    tail = f"; {rest}" if sink.is_open else ""
    shown = f"batches {', '.join(batches)}" if batches else ""
    return f"run the same harvest command again: it redoes {(shown + tail) if shown else rest}"


def _needed(sink: Sink) -> Iterator[int]:
    """The batches that closed gaps need."""
    batch = sink.next_closed(0)
    while batch is not None:
        yield batch
        batch = sink.next_closed(batch + 1)


def _ranges(numbers: Iterable[int]) -> list[str]:
    """Neighbouring numbers put together: 3, 5-8."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return [str(first) if first == last else f"{first}-{last}" for first, last in spans]
