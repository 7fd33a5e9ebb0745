"""Stores in a bucket of Google's: what is said to the server differs from Amazon's, what becomes of the store does not."""

import itertools
import threading

import pytest
from buckets import open_writer, small_parts, write
from typer.testing import CliRunner

from thresher.cli import app
from thresher.data.store import open_store, unlock_store, verify_store
from thresher.data.store.objects import RETRY_SECONDS, ConflictError, Objects
from thresher.data.store.remote import Upload
from thresher.errors import StoreError
from thresher.testing.store import expected_rows, make_batch, tree

N_BATCHES = 5


@pytest.fixture(autouse=True, scope="module")
def _small_parts(gcs):
    with small_parts():
        yield


@pytest.fixture
def place(gcs, request):
    return gcs.address(request.node.name)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("local") / "store"
    write(path, N_BATCHES)
    return tree(path)


def test_a_writer_that_was_declared_dead_and_is_not_can_commit_nothing(place, whole):
    with pytest.raises(StoreError, match="another harvest has taken this store over"), open_writer(place) as lost:
        for index in range(4):
            lost.write(make_batch(index))
        with pytest.raises(StoreError, match="another harvest is writing this store"):
            open_writer(place)
        assert "process" in unlock_store(place)
        write(place, N_BATCHES)
        lost.write(make_batch(4))
        lost.finish()
    assert tree(place) == whole
    assert verify_store(place, level="checksums") == []
    rows = expected_rows("vision.3", N_BATCHES)
    assert open_store(place).read("vision.3", 0, len(rows)).equal(rows)


def cut_the_network(gcs, patch, then=None):
    """Let the server be down from the 60th chunk of the next write on, and do something then."""
    append, n_appended = Upload.append, itertools.count()

    def append_and_cut(self, buffer):
        if next(n_appended) == 60:
            gcs.down()
            if then:
                then()
        append(self, buffer)

    patch.setattr(Upload, "append", append_and_cut)


def test_a_lost_network_ends_cleanly_and_what_was_committed_stays(gcs, place, whole, monkeypatch):
    try:
        with monkeypatch.context() as patch:
            patch.setenv(RETRY_SECONDS, "1")
            cut_the_network(gcs, patch)
            with pytest.raises(StoreError, match=r"cannot write the store \(gs://.*rerun the same harvest command to resume"):
                write(place, N_BATCHES)
    finally:
        gcs.up()
    write(place, N_BATCHES)
    assert tree(place) == whole


def test_a_network_that_comes_back_in_time_is_not_noticed(gcs, place, whole, monkeypatch):
    up = threading.Thread(target=gcs.up)
    cut_the_network(gcs, monkeypatch, up.start)
    write(place, N_BATCHES)
    up.join()
    assert tree(place) == whole


def test_only_the_expected_version_is_overwritten(place):
    objects = Objects(place)
    first = objects.put("a", b"1", objects.put("a", b"0"))
    with pytest.raises(ConflictError):
        objects.put("a", b"2", first._replace(version="1"))
    objects.delete(["a"])
    with pytest.raises(ConflictError):
        objects.put("a", b"2", first)
    assert [*objects.list("")] == []


def test_wrong_and_missing_credentials_end_with_what_to_set(place, monkeypatch, tmp_path):
    arguments = ["store", "verify", place]
    refused = CliRunner().invoke(app, arguments, env={"GOOGLE_BEARER_TOKEN": "stolen"})
    assert refused.exit_code == 2
    assert "the server refuses these credentials; set GOOGLE_SERVICE_ACCOUNT" in refused.stderr
    monkeypatch.delenv("GOOGLE_BEARER_TOKEN")
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(tmp_path / "nothing.json"))
    missing = CliRunner().invoke(app, arguments)
    assert missing.exit_code == 2
    assert "Unable to open service account file from" in missing.stderr
    assert "nothing.json" in missing.stderr
    assert "; set GOOGLE_SERVICE_ACCOUNT to the file of a service account" in missing.stderr


def test_a_bucket_that_is_not_there_is_named():
    with pytest.raises(StoreError, match=r"gs://nowhere/store.*no such bucket.*GOOGLE_BASE_URL"):
        open_writer("gs://nowhere/store")
