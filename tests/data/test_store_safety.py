"""Nothing that a store calls committed is ever lost or wrong: kills, full disks, flipped bytes, wrong hands."""

import contextlib
import json
import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from thresher.data.store import (
    StoreWriter,
    describe_store,
    export_store,
    list_stores,
    open_store,
    repair_store,
    verify_store,
)
from thresher.data.store.seal import seal, unseal
from thresher.errors import StoreError
from thresher.testing.store import CONCEPTS, HOOK_POINTS, IDENTITY, expected_rows, make_batch, tree, write_store

N_BATCHES = 6


def open_writer(path, *, items_per_shard=12):
    return StoreWriter(path, IDENTITY, HOOK_POINTS, CONCEPTS, items_per_shard=items_per_shard)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("safety") / "store"
    with open_writer(path) as writer:
        write_store(writer, N_BATCHES)
    return path


@pytest.fixture
def store(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "store")


@pytest.fixture
def unfinished(tmp_path):
    path = tmp_path / "unfinished"
    with open_writer(path) as writer:
        for index in range(5):
            writer.write(make_batch(index))
    return path


@contextlib.contextmanager
def no_room(folder: Path, kind: str) -> Iterator[None]:
    """A disk that is full after a few blocks, or files that must not grow to the size of a shard of the widest hook point."""
    if kind == "full disk":
        made = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)], capture_output=True, check=False
        )
        if made.returncode:
            pytest.skip("mounting a small tmpfs needs root")
        try:
            yield
        finally:
            subprocess.run(["mount", "-o", "remount,size=64m", str(folder)], check=True)
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    yield folder
    if folder.is_mount():
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("form", ["hdf5", "safetensors", "npy", "parquet"])
def test_an_export_that_finds_no_space_says_so_and_leaves_nothing(finished, disk, form):
    with no_room(disk, "file size limit"), pytest.raises(StoreError, match=r"cannot be written \(.*File too large"):
        export_store(finished, disk / "out", form)
    assert not list(disk.iterdir())


def test_a_failure_that_follows_a_full_disk_does_not_hide_it(disk):
    with (
        no_room(disk, "file size limit"),
        pytest.raises(StoreError, match=r"File too large.*rerun the same") as caught,
        open_writer(disk / "store") as writer,
    ):
        try:
            write_store(writer, N_BATCHES)
        except StoreError:
            raise RuntimeError("the model on its way down") from None
    assert isinstance(caught.value.__context__, OSError)
    assert "on its way down" in str(caught.value.__context__.__context__)


@pytest.mark.parametrize("kind", ["full disk", "file size limit"])
def test_no_space_left_loses_nothing_committed_and_tells_how_to_resume(finished, disk, kind):
    with no_room(disk, kind):
        resume = "rerun the same harvest command to resume"
        with pytest.raises(StoreError, match=resume) as caught, open_writer(disk / "store") as writer:
            write_store(writer, N_BATCHES)
        stored = open_store(disk / "store", incomplete="prefix")
        rows = {name: stored.rows(name) for name in stored.hook_points}
    assert all(rows.values()) or kind == "file size limit"
    assert "No space left" in str(caught.value) or "File too large" in str(caught.value)
    for name, n in rows.items():
        assert stored.read(name, 0, n).equal(expected_rows(name, N_BATCHES)[:n])
    del stored
    with open_writer(disk / "store") as writer:
        write_store(writer, N_BATCHES, start=writer.next_batch)
    assert tree(disk / "store") == tree(finished)


def test_a_read_only_folder_is_named_and_what_is_stored_stays(finished, disk):
    made = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(disk)], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("mounting a tmpfs needs root")
    with open_writer(disk / "store") as writer:
        for index in range(4):
            writer.write(make_batch(index))
    before = tree(disk / "store")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(StoreError, match=r"cannot write the store \(Read-only file system\).*rerun the same harvest command"):
        open_writer(disk / "store")
    assert open_store(disk / "store", incomplete="prefix").rows("vision.3") > 0
    assert tree(disk / "store") == before
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    with open_writer(disk / "store") as writer:
        write_store(writer, N_BATCHES, start=writer.next_batch)
    assert tree(disk / "store") == tree(finished)


def test_another_process_is_kept_out_while_a_harvest_writes(tmp_path):
    lock = str(tmp_path / "store" / ".lock")
    with open_writer(tmp_path / "store"):
        assert subprocess.run(["flock", "--nonblock", lock, "true"], check=False).returncode == 1
        with pytest.raises(StoreError, match="no activation store"):
            repair_store(tmp_path / "store")
    assert subprocess.run(["flock", "--nonblock", lock, "true"], check=False).returncode == 0


def test_a_store_that_is_being_written_is_not_repaired(tmp_path):
    with open_writer(tmp_path / "store") as writer:
        writer.write(make_batch(0))
        with pytest.raises(StoreError, match="another harvest is writing this store"):
            repair_store(tmp_path / "store")


def test_a_clock_that_jumps_changes_nothing(finished, tmp_path, monkeypatch):
    chance, path = np.random.default_rng(0), tmp_path / "store"
    monkeypatch.setattr("time.time", lambda: float(chance.integers(-(10**9), 10**10)))
    monkeypatch.setattr("time.time_ns", lambda: int(chance.integers(-(10**18), 10**18)))
    for stop in (2, 4, N_BATCHES):
        with open_writer(path) as writer:
            for index in range(writer.next_batch, stop):
                writer.write(make_batch(index))
            if stop == N_BATCHES:
                writer.finish()
        for file in [*path.rglob("*")]:
            os.utime(file, (when := int(chance.integers(0, 2**32)), when))
    assert tree(path) == tree(finished)
    assert verify_store(path, level="checksums") == []


def test_a_flipped_byte_in_any_file_is_found_and_named(store):
    whole, chance = {name: content for name, content in tree(store).items() if content}, np.random.default_rng(0)
    alone = ["run.json", "manifest.json", "commits/items/00000000.json", "acts.zarr/layers/vision.3/activations/zarr.json"]
    for names in [*([name] for name in alone), [name for name in whole if name not in alone[:2]]]:
        for name in names:
            flipped = bytearray(whole[name])
            flipped[chance.integers(len(flipped))] ^= 1 << chance.integers(8)
            (store / name).write_bytes(flipped)
        findings = verify_store(store, level="checksums")
        assert [name for name in names if not any(str(store / name) in finding for finding in findings)] == []
        assert len(findings) == len(names)
        for name in names:
            (store / name).write_bytes(whole[name])
    assert verify_store(store, level="checksums") == []


def test_missing_short_and_stray_files_are_found_without_reading(store):
    names = [name for name in tree(store) if name.startswith("acts.zarr/layers") and "/c/" in name]
    (store / names[0]).unlink()
    (store / names[1]).write_bytes((store / names[1]).read_bytes()[:-1])
    (store / names[2]).with_name("stray").write_bytes(b"")
    findings = "\n".join(verify_store(store, level="sizes"))
    assert f"{store / names[0]}: missing" in findings
    assert f"{store / names[1]}: " in findings
    assert "stray: not in the manifest" in findings
    assert findings.count("\n") == 2


def test_a_damaged_index_is_found_without_reading_the_rows(store):
    name = next(name for name in tree(store) if "vision.3/activations/c/" in name)
    content = bytearray((store / name).read_bytes())
    content[-1] ^= 1
    (store / name).write_bytes(content)
    (finding,) = verify_store(store, level="sizes")
    assert f"{store / name}: the index at its end is damaged" in finding


def test_fields_that_a_later_release_adds_are_ignored(unfinished):
    files = [unfinished / "run.json", *unfinished.glob("commits/*/*.json")]
    for path in files:
        path.write_bytes(seal(unseal(path.read_bytes(), ()) | {"added": 1}))
    assert open_store(unfinished, incomplete="prefix").rows("vision.3") > 0


def test_a_damaged_shard_is_refused_by_the_reader_with_its_name(store):
    name = next(name for name in tree(store) if "vision.3/activations/c/" in name)
    content = bytearray((store / name).read_bytes())
    content[-1] ^= 1
    (store / name).write_bytes(content)
    reader = open_store(store)
    with pytest.raises(StoreError, match="index at its end is damaged") as caught:
        reader.read("vision.3", 0, reader.rows("vision.3"))
    assert name in str(caught.value)


def test_an_unfinished_store_is_refused_and_verify_says_how_to_resume(unfinished):
    with pytest.raises(StoreError, match=r"unfinished: the first \d batches .* rerun the same harvest command to resume"):
        open_store(unfinished)
    (finding,) = verify_store(unfinished, level="checksums")
    assert "manifest.json: missing" in finding
    assert "rerun" in finding


def test_leftovers_of_a_killed_writer_vanish_on_resume(unfinished, finished):
    for leftover in (
        "acts.zarr/layers/vision.3/activations/c/99/0",
        "acts.zarr/rows/text.tokens/item/c/.3.partial",
        "pairs/00000077.parquet",
    ):
        (unfinished / leftover).parent.mkdir(exist_ok=True)
        (unfinished / leftover).write_bytes(b"half")
    with open_writer(unfinished) as writer:
        write_store(writer, N_BATCHES, start=writer.next_batch)
    assert verify_store(unfinished, level="checksums") == []
    assert tree(unfinished) == tree(finished)


def test_a_committed_file_that_is_gone_stops_the_resume_with_its_name(unfinished):
    shard = unfinished / "acts.zarr/layers/vision.3/activations/c/0/0"
    shard.unlink()
    with pytest.raises(StoreError, match="missing, expected") as caught:
        open_writer(unfinished)
    assert str(shard) in str(caught.value)


@pytest.mark.parametrize("name", ["run.json", "manifest.json"])
def test_another_format_version_is_refused_with_both_numbers(store, name):
    document = json.loads((store / name).read_text()) | {"version": 9}
    (store / name).write_text(json.dumps(document))
    with pytest.raises(StoreError, match="store format version 9, this thresher reads version 1"):
        open_store(store)


def test_what_is_no_store_is_refused(tmp_path):
    with pytest.raises(StoreError, match=r"no activation store \(run.json is missing\)"):
        open_store(tmp_path / "nothing")
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(StoreError, match="this is no activation store"):
        open_store(tmp_path)


def test_a_complete_store_is_never_written_again(store):
    before = tree(store)
    with pytest.raises(StoreError, match="this store is complete"):
        open_writer(store)
    with pytest.raises(StoreError, match="holds a complete harvest of something else"):
        StoreWriter(store, {"model": "other"}, HOOK_POINTS, CONCEPTS)
    assert tree(store) == before


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="cannot write the store"):
        open_writer(tmp_path / "file")


def test_an_input_that_shrank_is_noticed(unfinished):
    with open_writer(unfinished) as writer, pytest.raises(StoreError, match="its input has shrunk"):
        writer.finish()


def test_batches_out_of_order_are_refused(tmp_path):
    with open_writer(tmp_path / "store") as writer, pytest.raises(StoreError, match="batch 1, expected batch 0"):
        writer.write(make_batch(1))


def test_an_exception_of_the_caller_passes_through_and_keeps_what_is_committed(tmp_path, finished):
    with pytest.raises(KeyboardInterrupt), open_writer(tmp_path / "store") as writer:
        for index in range(4):
            writer.write(make_batch(index))
        raise KeyboardInterrupt
    with open_writer(tmp_path / "store") as writer:
        write_store(writer, N_BATCHES, start=writer.next_batch)
    assert tree(tmp_path / "store") == tree(finished)


def test_stores_are_listed_and_described(store, unfinished, tmp_path):
    lines = {Path(line["path"]).name: line for line in list_stores(tmp_path)}
    assert lines["store"]["complete"]
    assert not lines["unfinished"]["complete"]
    assert lines["store"]["model"] == "made up"
    assert lines["store"]["rows"] == sum(len(expected_rows(spec.name, N_BATCHES)) for spec in HOOK_POINTS)
    described = describe_store(store)
    store = open_store(store)
    assert described["identity"] == IDENTITY
    assert described["items"]["image"] == 6 * N_BATCHES
    n_bytes = sum(store.rows(spec.name) * spec.width * expected_rows(spec.name, 1).itemsize for spec in HOOK_POINTS)
    assert described["size"].endswith(f" on disk for {n_bytes / 1000:.3g} kB of activations")
    assert described["hook_points"]["vision.3"]["width"] == 7
    (unfinished / "run.json").write_text("broken")
    problem = next(line["problem"] for line in list_stores(tmp_path) if line["path"].endswith("unfinished"))
    assert "run.json" in problem
