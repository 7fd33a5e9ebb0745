"""Compressed stores, and bfloat16 under the name of uint16: other bytes, the same rows, and every promise of the format."""

import json
import os
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ml_dtypes
import numcodecs.blosc
import numpy as np
import pytest
import tensorstore
import torch
import zarr
from covering import cover
from memory import MEMORY

from thresher.data.store import (
    StoreWriter,
    describe_store,
    export_store,
    merge_stores,
    open_store,
    read_head,
    repair_store,
    retype_store,
    verify_store,
)
from thresher.data.store.codecs import describe_codecs, parse_codecs
from thresher.data.store.column import Column
from thresher.data.store.compressed import CompressedArray
from thresher.data.store.layout import ArraySpec, activations_path
from thresher.data.store.places import open_storage
from thresher.data.store.shard import STORAGE
from thresher.data.store.sharded import ShardedArray, open_array
from thresher.data.store.zarr_json import array_document
from thresher.data.stream import ActivationStream
from thresher.errors import StoreError
from thresher.testing.store import CONCEPTS, HOOK_POINTS, IDENTITY, StoreSuite, expected_rows, make_batch, tree, write_store

N_BATCHES = 7
NAMES = [spec.name for spec in HOOK_POINTS]
COMPRESSED = ("compact", "archive")


@pytest.fixture(autouse=True, scope="module")
def small_chunks():
    """Several chunks to a shard."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("CHUNK_BYTES", "COMPACT_BYTES"):
            patch.setattr(f"thresher.data.store.layout.{name}", 128)
        yield


def open_writer(path, profile="compact", **settings):
    return StoreWriter(path, IDENTITY, HOOK_POINTS, CONCEPTS, items_per_shard=12, profile=profile, **settings)


@pytest.fixture(scope="module")
def stores(tmp_path_factory, small_chunks) -> dict[str, Path]:
    """The same batches in every profile."""
    found: dict[str, Path] = {}
    for profile in ("raw", *COMPRESSED):
        found[profile] = tmp_path_factory.mktemp("profiles") / profile
        with open_writer(found[profile], profile) as writer:
            write_store(writer, N_BATCHES)
    return found


@pytest.fixture
def memory(tmp_path):
    """A folder where fsync costs nothing."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        yield Path(folder)


class TestCompactStore(StoreSuite):
    """Everything that holds for rows as they are."""

    def open_writer(self, path, identity=IDENTITY):
        return StoreWriter(path, identity, HOOK_POINTS, CONCEPTS, items_per_shard=4, profile="compact", portable_dtype=True)


@pytest.mark.parametrize("profile", COMPRESSED)
def test_profiles_hold_the_same_rows_moments_and_tables_in_fewer_bytes(stores, profile):
    raw, packed = open_store(stores["raw"]), open_store(stores[profile])
    assert (raw.profile, packed.profile, describe_store(stores[profile])["profile"]) == ("raw", profile, profile)
    assert isinstance(open_array(open_storage(stores[profile]), activations_path("vision.3")), CompressedArray)
    for name in NAMES:
        rows = np.random.default_rng(0).integers(0, raw.rows(name), 50)
        assert torch.equal(packed.read_rows(name, rows), raw.read_rows(name, rows))
        assert torch.equal(packed.read(name, 3, raw.rows(name)), raw.read(name, 3, raw.rows(name)))
        assert read_head(packed, name, 2, 3) == read_head(raw, name, 2, 3)
    same = ("items/", "pairs/", "moments")
    for name, content in tree(stores["raw"]).items():
        if name.startswith(same):
            assert tree(stores[profile])[name] == content
    smooth = np.repeat(np.arange(256, dtype=np.float32), 64).reshape(256, 64)
    codec = parse_codecs(describe_codecs(profile, 4, is_matrix=True), is_matrix=True)
    assert codec is not None
    assert 4 * len(codec.encode(smooth)) < smooth.nbytes


@pytest.mark.parametrize("profile", COMPRESSED)
@pytest.mark.parametrize("name", NAMES)
def test_zarr_python_and_tensorstore_read_compressed_arrays(stores, profile, name):
    path, expected = stores[profile] / activations_path(name), expected_rows(name, N_BATCHES)
    native = (
        expected.view(torch.int16).numpy().view(ml_dtypes.bfloat16) if expected.dtype == torch.bfloat16 else expected.numpy()
    )
    for array in (zarr.open_array(path, mode="r")[:], open_tensorstore(path).read().result()):
        assert array.dtype == native.dtype
        np.testing.assert_array_equal(array.view(np.uint8), native.view(np.uint8))


@pytest.mark.parametrize(
    ("rows", "width", "data_type", "profile"),
    cover([1, 7, 16, 33], [None, 1, 130], ["bfloat16", "float32", "int64"], COMPRESSED),
)
def test_compressed_shards_are_those_that_zarr_python_writes(rows, width, data_type, profile, memory):
    spec = ArraySpec("own", data_type, width, 16, 4, None, profile)
    stored = np.random.default_rng(rows).integers(0, 9, (rows, width or 1), np.uint8).astype(STORAGE[data_type])
    stored = stored[:, 0] if width is None else stored
    with ThreadPoolExecutor(2) as helpers:
        column = Column(open_storage(memory), spec, helpers)
        for block, start in enumerate(range(0, rows, 16)):
            step = 7 if block % 2 else 3
            for first in range(start, min(start + 16, rows), step):
                column.append(stored[first : min(first + step, start + 16)], block)
            column.finish_shard(block)
    (memory / "own" / "zarr.json").write_bytes(array_document(spec, rows))
    (memory / "other").mkdir()
    shutil.copy(memory / "own" / "zarr.json", memory / "other" / "zarr.json")
    with zarr.config.set({"array.write_empty_chunks": True}):
        zarr.open_array(memory / "other", mode="r+")[:] = stored.view(ml_dtypes.bfloat16) if data_type == "bfloat16" else stored
    assert tree(memory / "own") == tree(memory / "other")
    reader, out = open_array(open_storage(memory), "own"), np.empty_like(stored)
    assert isinstance(reader, CompressedArray)
    reader.read_into(0, out)
    np.testing.assert_array_equal(out, stored)


def test_arrays_of_codecs_that_are_not_ours_go_through_zarr_python(memory):
    values = np.arange(96, dtype=np.float32).reshape(32, 3)
    gzip = {"shards": (16, 3), "chunks": (4, 3), "compressors": zarr.codecs.GzipCodec()}
    zarr.create_array(memory / "gzip", shape=values.shape, dtype="f4", fill_value=0, **gzip)[:] = values
    reader, out = open_array(open_storage(memory), "gzip"), np.empty_like(values)
    assert not isinstance(reader, ShardedArray | CompressedArray)
    reader.read_into(0, out)
    np.testing.assert_array_equal(out, values)


@pytest.mark.parametrize("profile", ["compact", pytest.param("archive", marks=pytest.mark.slow)])
def test_a_killed_harvest_of_any_profile_resumes_to_the_same_bytes(profile, memory, python):
    command = [python, str(Path(__file__).with_name("store_killer.py")), str(memory), "4", "3", profile]
    done = subprocess.run(command, capture_output=True, check=False, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-4000:]
    assert int(done.stdout.split()[0]) >= 4


@pytest.mark.parametrize("profile", COMPRESSED)
def test_damage_of_compressed_shards_is_found_named_and_repaired(stores, profile, memory):
    store = shutil.copytree(stores[profile], memory / "store")
    whole, path = tree(store), store / activations_path("module:text.ln_final") / "c" / "0" / "0"
    content = bytearray(path.read_bytes())
    content[3 * len(content) // 5] ^= 4
    path.write_bytes(content)
    (finding,) = verify_store(store, level="checksums")
    assert "; damaged: chunk " in finding
    index = store / activations_path("vision.3") / "c" / "0" / "0"
    index.write_bytes(index.read_bytes()[:-1] + b"?")
    assert [finding for finding in verify_store(store, level="sizes") if "the index at its end is damaged" in finding]
    (store / "moments/image.items/00000000.safetensors").write_bytes(b"")
    findings = verify_store(store, level="checksums")
    assert len(findings) == 3
    assert [finding for finding in findings if finding.endswith("; its index is damaged")]
    assert not repair_store(store).is_complete
    with open_writer(store, profile) as writer:
        for batch in writer.missing(N_BATCHES):
            writer.write(make_batch(batch))
        writer.finish()
    assert tree(store) == whole


@pytest.mark.parametrize("profile", COMPRESSED)
def test_a_damaged_chunk_is_never_read_as_rows(stores, profile, memory):
    store = shutil.copytree(stores[profile], memory / "store")
    shard = store / activations_path("vision.4") / "c" / "0" / "0"
    content = bytearray(shard.read_bytes())
    content[:16] = bytes(16)
    shard.write_bytes(content)
    with pytest.raises(StoreError, match=r"chunk 0 of shard 0 is damaged .* run `thresher store verify`"):
        open_store(store).read("vision.4", 0, 2)


@pytest.mark.parametrize("profile", COMPRESSED)
def test_exports_are_those_of_rows_as_they_are_and_a_view_is_refused(stores, profile, tmp_path):
    copies = [export_store(stores[name], tmp_path / name, "npy") for name in ("raw", profile)]
    assert len({tuple(np.load(copy / "vision.3" / "activations.npy").ravel()) for copy in copies}) == 1
    with pytest.raises(StoreError, match=rf"profile {profile}.*export a copy instead"):
        export_store(stores[profile], tmp_path / "view.h5", "hdf5-view")
    assert not (tmp_path / "view.h5").exists()


def test_stores_of_different_profiles_merge_into_the_profile_that_is_said(stores, tmp_path):
    parts = [stores["raw"], stores["compact"]]
    with pytest.raises(StoreError, match=r"profile compact, in .* raw; say which"):
        merge_stores(parts, tmp_path / "merged", keys="prefix")
    merged = open_store(merge_stores(parts, tmp_path / "merged", keys="prefix", profile="archive"))
    assert merged.profile == "archive"
    assert torch.equal(merged.read("text.3", 0, merged.rows("text.3")), expected_rows("text.3", N_BATCHES).repeat(2, 1))
    assert open_store(merge_stores([stores["compact"]] * 2, tmp_path / "same", keys="prefix")).profile == "compact"


def test_training_sees_the_same_batches_of_every_profile(stores):
    def stream(path, reads="cached"):
        settings = {
            "batch_size": 16,
            "holdout": 0.0,
            "seed": 5,
            "pool_rows": 40,
            "balance": "rows",
            "device": torch.device("cpu"),
        }
        opened = ActivationStream(open_store(path), ["vision.embed", "text.embed"], reads=reads, **settings)
        batches = iter(opened)
        found = [next(batches) for _ in range(12)]
        opened.close()
        return found

    expected = stream(stores["raw"])
    for profile, reads in (("compact", "cached"), ("archive", "cached"), ("compact", "direct")):
        for mine, other in zip(stream(stores[profile], reads), expected, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(mine, other, strict=True) if isinstance(a, torch.Tensor))


def test_an_unfinished_store_is_not_continued_in_another_profile(memory):
    with open_writer(memory / "store", "compact") as writer:
        writer.write(make_batch(0))
    with pytest.raises(StoreError, match=r'profile: stored "compact", asked for "raw"'):
        open_writer(memory / "store", "raw")
    with pytest.raises(StoreError, match="portable_dtype: stored false, asked for true"):
        open_writer(memory / "store", "compact", portable_dtype=True)


def test_threads_of_blosc_are_refused_because_their_bytes_differ(monkeypatch):
    codec = parse_codecs(describe_codecs("compact", 2, is_matrix=True), is_matrix=True)
    assert codec is not None
    monkeypatch.setattr(numcodecs.blosc, "use_threads", True)
    with pytest.raises(StoreError, match="use_threads is on"):
        codec.encode(np.zeros((4, 4), np.uint16))


@pytest.mark.parametrize("profile", ["raw", "compact"])
def test_a_portable_store_is_read_by_readers_that_do_not_know_bfloat16(stores, profile, memory):
    path = memory / "store"
    with open_writer(path, profile, portable_dtype=True) as writer:
        write_store(writer, N_BATCHES)
    document = json.loads((path / activations_path("vision.3") / "zarr.json").read_text())
    assert (document["data_type"], document["attributes"]["dtype"]) == ("uint16", "bfloat16")
    bits = zarr.open_array(path / activations_path("vision.3"), mode="r")[:]
    assert bits.dtype == np.uint16
    expected = expected_rows("vision.3", N_BATCHES)
    np.testing.assert_array_equal(bits.view(ml_dtypes.bfloat16).astype("f4"), expected.float().numpy())
    assert torch.equal(open_store(path).read("vision.3", 0, len(expected)), expected)
    assert verify_store(path, level="checksums") == []
    before, native = tree(path), tree(stores[profile])
    retype_store(path, "bfloat16")
    assert verify_store(path, level="checksums") == []
    arrays = [name for name in native if "acts.zarr" in name]
    assert [name for name in arrays if tree(path)[name] != native[name]] == []
    retype_store(path, "uint16")
    assert tree(path) == before


def open_tensorstore(path: Path) -> "tensorstore.TensorStore":
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{path}/"}}
    return tensorstore.open(spec, open=True).result()
