"""Stores in a bucket hold to everything that stores in folders hold to."""

import itertools
import signal
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
import xarray
import zarr
from buckets import CHUNK_BYTES, PART_BYTES, open_writer, small_parts, write
from typer.testing import CliRunner
from zarr.storage import ObjectStore

from thresher.cli import app
from thresher.data.store import (
    list_stores,
    open_store,
    parse_location,
    refuse_foreign_store,
    repair_store,
    unlock_store,
    verify_store,
    write_beside,
)
from thresher.data.store.layout import LOCK, activations_path
from thresher.data.store.objects import RETRY_SECONDS, Objects
from thresher.data.store.ownership import CLAIM_BYTES
from thresher.data.store.places import open_storage
from thresher.data.store.remote import Upload
from thresher.data.store.storage import write_file
from thresher.errors import ConfigError, NetworkError, StoreError
from thresher.testing.store import HOOK_POINTS, expected_rows, make_batch, tree

N_BATCHES = 7


@pytest.fixture(autouse=True, scope="module")
def _small_parts(s3):
    with small_parts():
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The files of the same store, written into a folder by a writer whom nothing stopped."""
    path = tmp_path_factory.mktemp("local") / "store"
    write(path, N_BATCHES)
    return tree(path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("runs/store", Path("runs/store")),
        ("file:///runs/a%20store", Path("/runs/a store")),
        ("s3://bucket//a/store/", "s3://bucket/a/store"),
        ("gs://bucket/store", "gs://bucket/store"),
    ],
)
def test_locations_are_folders_or_addresses(text, expected):
    assert parse_location(text) == expected
    assert parse_location(parse_location(text)) == expected


@pytest.mark.parametrize("text", ["s3://bucket", "ftp://bucket/a", "file://host/a", "s3://bucket/../a", Path("s3://bucket/a")])
def test_other_addresses_are_refused(text):
    with pytest.raises(ConfigError, match=r"expected|slash"):
        parse_location(text)


def test_the_objects_of_a_store_are_the_files_of_the_same_store_in_a_folder(place, whole):
    write(place, N_BATCHES)
    assert tree(place) == whole
    assert verify_store(place, level="sizes") == []
    assert verify_store(place, level="checksums") == []


def test_zarr_python_and_xarray_open_it(place):
    write(place, N_BATCHES)
    backend = Objects(place).backend
    for spec in HOOK_POINTS:
        expected = expected_rows(spec.name, N_BATCHES).float().numpy()
        root = zarr.open_group(ObjectStore(backend, read_only=True), path="acts.zarr", mode="r")
        array = root[activations_path(spec.name).removeprefix("acts.zarr/")]
        np.testing.assert_array_equal(array[:].astype(np.float32), expected)
        group = activations_path(spec.name).removesuffix("/activations")
        dataset = xarray.open_zarr(ObjectStore(backend, read_only=True), group=group, consolidated=False, chunks=None)
        assert dataset["activations"].dims == ("row", "feature")
        np.testing.assert_array_equal(dataset["activations"].values.astype(np.float32), expected)


KILLED = """
import itertools, os, signal, sys
from thresher.data.store import layout, objects
from thresher.data.store.objects import Objects
from thresher.data.store.remote import Upload
from thresher.data.store import StoreWriter
from thresher.testing.store import CONCEPTS, HOOK_POINTS, IDENTITY, make_batch

layout.CHUNK_BYTES, objects.PART_BYTES, last, steps = int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), itertools.count()

def dying(function):
    def counted(*arguments):
        if next(steps) == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments)
    return counted

Objects.put, Upload.append, Upload.commit = dying(Objects.put), dying(Upload.append), dying(Upload.commit)
with StoreWriter(sys.argv[1], IDENTITY, HOOK_POINTS, CONCEPTS, items_per_shard=16) as writer:
    for index in writer.missing(7):
        writer.write(make_batch(index))
    writer.finish()
"""


def run_and_kill(python, place, step):
    command = [python, "-c", KILLED, place, str(CHUNK_BYTES), str(PART_BYTES), str(step)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_killed_writer_resumes_to_the_same_objects(python, place, whole):
    seen = 0
    for step in (100, 250):
        killed = run_and_kill(python, place, step)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        prefix = open_store(place, incomplete="prefix")
        rows = prefix.rows("vision.3")
        assert rows >= seen
        assert prefix.read("vision.3", 0, rows).equal(expected_rows("vision.3", N_BATCHES)[:rows])
        seen = rows
    assert seen > 0
    write(place, N_BATCHES)
    assert tree(place) == whole


def test_a_lost_network_in_the_middle_of_a_shard_ends_cleanly_and_resumes(s3, place, whole, monkeypatch, capsys):
    append, n_appended = Upload.append, itertools.count()

    def append_and_cut(self, buffer):
        append(self, buffer)
        if next(n_appended) == 150:
            s3.down()

    try:
        with monkeypatch.context() as patch:
            patch.setenv(RETRY_SECONDS, "1")
            patch.setattr(Upload, "append", append_and_cut)
            with pytest.raises(StoreError, match="rerun the same harvest command to resume") as caught:
                write(place, N_BATCHES)
            assert "cannot write the store" in str(caught.value)
            assert "the lock could not be released" in capsys.readouterr().err
            with pytest.raises(NetworkError, match=place):
                open_store(place)
    finally:
        s3.up()
    assert 0 < open_store(place, incomplete="prefix").rows("vision.3") < len(expected_rows("vision.3", N_BATCHES))
    write(place, N_BATCHES)
    assert tree(place) == whole


def test_a_network_that_comes_back_in_time_is_not_noticed(s3, place, whole, monkeypatch):
    append, n_appended = Upload.append, itertools.count()
    up = threading.Thread(target=s3.up)

    def append_and_cut(self, buffer):
        if next(n_appended) == 100:
            s3.down()
            up.start()
        append(self, buffer)

    monkeypatch.setattr(Upload, "append", append_and_cut)
    write(place, N_BATCHES)
    up.join()
    assert tree(place) == whole


def test_a_flipped_byte_is_found_and_made_again(place, whole):
    write(place, N_BATCHES)
    name = next(name for name in whole if "vision.3/activations/c/1/" in name)
    content = bytearray(whole[name])
    content[len(content) // 2] ^= 1
    Objects(place).put(name, bytes(content))
    (finding,) = verify_store(place, level="checksums")
    assert f"{place}/{name}: crc32c" in finding
    assert not repair_store(place).is_complete
    write(place, N_BATCHES)
    assert tree(place) == whole


def test_a_writer_that_was_declared_dead_and_is_not_can_commit_nothing(place, whole):
    with pytest.raises(StoreError, match="another harvest has taken this store over"), open_writer(place) as lost:
        for index in range(4):
            lost.write(make_batch(index))
        assert "process" in unlock_store(place)
        write(place, N_BATCHES)
        for index in range(4, N_BATCHES):
            lost.write(make_batch(index))
        lost.finish()
    assert tree(place) == whole


def test_a_writer_that_loses_the_store_between_its_check_and_its_commit_can_not_commit(place, whole, monkeypatch):
    put, took_over = Objects.put, []

    def put_too_late(self, path, content, expected=None):
        if path == "commits/image.tokens/00000001.json" and not took_over:
            took_over.append(None)
            unlock_store(place)
            took_over.append(open_writer(place))
        return put(self, path, content, expected)

    monkeypatch.setattr(Objects, "put", put_too_late)
    with pytest.raises(StoreError, match="another harvest has taken this store over"):
        write(place, N_BATCHES)
    with took_over[1] as writer:
        for index in writer.missing(N_BATCHES):
            writer.write(make_batch(index))
        writer.finish()
    assert tree(place) == whole


def test_claims_that_nobody_used_hinder_nobody(place, whole):
    with open_writer(place) as writer:
        for index in range(6):
            writer.write(make_batch(index))
        assert "process" in unlock_store(place)
        with open_writer(place):
            pass
    claims = [path for path, size in Objects(place).list("commits") if size <= CLAIM_BYTES]
    assert len(claims) == 5
    assert open_store(place, incomplete="prefix").rows("vision.3") > 0
    write(place, N_BATCHES)
    assert tree(place) == whole


def test_a_holder_on_another_machine_is_not_taken_for_dead(place):
    objects = Objects(place)
    objects.put(
        LOCK, b'{"token": "x", "host": "elsewhere", "process": 7, "proof": "/nowhere/thresher-x.lock", "shared": false}'
    )
    with pytest.raises(StoreError, match=f"process 7 on elsewhere.*thresher store unlock {place}"):
        open_writer(place)
    assert unlock_store(place) == "process 7 on elsewhere"
    with open_writer(place):
        pass
    assert unlock_store(place) == ""


def test_several_writers_join_only_where_they_are_let_in(place):
    storage = open_storage(place)
    with pytest.raises(StoreError, match="another harvest is writing this store"):
        storage.join()
    lock = storage.lock()
    with pytest.raises(StoreError, match="another harvest is writing this store"):
        open_storage(place).join()
    lock.share()
    joined = open_storage(place)
    joined.join()
    write_file(joined, "commits/image.tokens/00000004.json", [b"x" * 100])
    with pytest.raises(StoreError, match="another harvest is writing this store"):
        open_storage(place).lock()
    lock.release()
    with pytest.raises(StoreError, match="has taken this store over"):
        write_file(joined, "commits/image.tokens/00000005.json", [b"x" * 100])


def test_a_conditional_write_that_was_repeated_is_not_a_conflict(place):
    storage = open_storage(place)
    lock = storage.lock()
    write_file(storage, "run.json", [b"y" * 100])
    write_file(storage, "run.json", [b"y" * 100])
    with pytest.raises(StoreError, match="has taken this store over"):
        write_file(storage, "run.json", [b"z" * 100])
    lock.release()


@pytest.mark.parametrize("arguments", [["store", "info"], ["store", "verify"], ["store", "unlock"]])
def test_wrong_credentials_end_with_what_to_set(closed_s3, arguments):
    result = CliRunner().invoke(app, [*arguments, "s3://activations/store"], env={"AWS_ENDPOINT_URL": closed_s3.url})
    assert result.exit_code == 2
    assert "the server refuses these credentials; set AWS_ACCESS_KEY_ID" in result.stderr


def test_no_credentials_at_all_end_with_what_to_set(monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv(RETRY_SECONDS, "1")
    with pytest.raises(StoreError, match="no credentials were found; set AWS_ACCESS_KEY_ID"):
        open_store("s3://activations/store")


def test_a_bucket_that_is_not_there_is_named():
    with pytest.raises(StoreError, match=r"s3://nowhere/store.*no such bucket"):
        open_writer("s3://nowhere/store")


def test_what_is_no_store_is_refused_before_anything_is_written(place):
    with pytest.raises(StoreError, match="no activation store"):
        open_store(place)
    refuse_foreign_store(place)
    write_beside(place, {"config.yaml": b"a: 1"})
    refuse_foreign_store(place)
    write_beside(place, {"thesis.tex": b"hello"})
    with pytest.raises(ConfigError, match=r"other things lie there \(thesis.tex"):
        refuse_foreign_store(place)


def test_a_large_read_is_put_together_from_pieces(place):
    content = np.random.default_rng(0).integers(0, 256, 10 * PART_BYTES + 7, np.uint8)
    write_file(open_storage(place), "large", [content[:5].data, content[5:].data])
    file, target = open_storage(place).open("large"), bytearray(9 * PART_BYTES)
    assert file.size == len(content)
    assert file.read_into(11, memoryview(target)) == len(target)
    assert target == content[11:][: len(target)].tobytes()
    assert file.read_into(len(content) - 3, memoryview(target)) == 3
    assert file.read_into(len(content) + 3, memoryview(target)) == 0


def test_a_bucket_is_looked_through_for_stores(place, s3):
    for name in ("a/store", "b", "b/c/store"):
        with open_writer(f"{place}/{name}") as writer:
            writer.write(make_batch(0))
    Objects(place).put("d/run.json", b"of something else, which is no store at all, and longer than the claim of a writer is")
    listed = list_stores(place)
    # Nothing is looked for inside of a store.
    assert [line["path"] for line in listed] == [f"{place}/a/store", f"{place}/b"]
    assert not any(line["complete"] or line["problem"] for line in listed)
    bucket = place.rpartition("/")[0]
    assert f"{place}/b" in [line["path"] for line in list_stores(bucket)]
    shown = CliRunner().invoke(app, ["store", "ls", f"{place}/"])
    assert shown.exit_code == 0
    assert "vision." in shown.stdout
    with pytest.raises(StoreError, match="no such bucket"):
        list_stores("s3://nowhere-at-all")
