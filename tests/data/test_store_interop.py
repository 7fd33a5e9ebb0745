"""Stores are plain zarr v3: other readers open them unchanged, other writers write the same bytes."""

import asyncio
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import tensorstore
import torch
import xarray
import zarr
from covering import cover

from thresher.data.store import Store, StoreWriter, open_store
from thresher.data.store.column import Column
from thresher.data.store.layout import ArraySpec, activations_path
from thresher.data.store.places import open_storage
from thresher.data.store.shard import STORAGE
from thresher.data.store.sharded import ShardedArray, open_array
from thresher.data.store.zarr_json import array_document
from thresher.testing.store import CONCEPTS, HOOK_POINTS, IDENTITY, expected_items, expected_rows, tree, write_store

N_BATCHES = 6
NAMES = [spec.name for spec in HOOK_POINTS]
NUMPY = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype("f2"), "float32": np.dtype("f4")}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("interop") / "store"
    with StoreWriter(path, IDENTITY, HOOK_POINTS, CONCEPTS, items_per_shard=16) as writer:
        write_store(writer, N_BATCHES)
    return open_store(path)


def expected_array(name: str) -> np.ndarray:
    """The rows of a hook point in the native type of its data type."""
    x = expected_rows(name, N_BATCHES)
    return x.view(torch.int16).numpy().view(ml_dtypes.bfloat16) if x.dtype == torch.bfloat16 else x.numpy()


def bits(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).view(np.uint8)


@pytest.mark.parametrize("name", NAMES)
def test_zarr_python_reads_the_same_values(store, name):
    array = zarr.open(store.path / activations_path(name), mode="r")
    assert array.dtype == NUMPY[store.hook_points[name].dtype]
    assert array.attrs["hook_point"] == name
    assert array.metadata.dimension_names == ("row", "feature")
    np.testing.assert_array_equal(bits(array[:]), bits(expected_array(name)))


def test_zarr_python_finds_everything_from_the_root(store):
    root = zarr.open_group(store.path / "acts.zarr", mode="r")
    found = {path: node for path, node in root.members(max_depth=None) if isinstance(node, zarr.Array)}
    assert len(found) == len(HOOK_POINTS) + 2 * 4 + 1
    items = found["rows/text.tokens/item"][:]
    np.testing.assert_array_equal(items, expected_items("text.tokens", "text", N_BATCHES))
    assert root["layers/module%3Atext.ln_final"].attrs["hook_point"] == "module:text.ln_final"


@pytest.mark.parametrize("name", NAMES)
def test_tensorstore_reads_the_same_values(store, name):
    array = open_tensorstore(store.path / activations_path(name))
    assert array.dtype.numpy_dtype == NUMPY[store.hook_points[name].dtype]
    np.testing.assert_array_equal(bits(array.read().result()), bits(expected_array(name)))


@pytest.mark.parametrize("name", NAMES)
def test_xarray_opens_it_with_named_dimensions(store, name):
    group = activations_path(name).removeprefix("acts.zarr/").removesuffix("/activations")
    dataset = xarray.open_zarr(store.path / "acts.zarr", group=group, consolidated=False, chunks=None)
    assert dataset["activations"].dims == ("row", "feature")
    np.testing.assert_array_equal(bits(dataset["activations"].values), bits(expected_array(name)))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("other", ["zarr", "tensorstore"])
def test_other_writers_write_the_same_shards(store, name, other, tmp_path):
    source, copy = store.path / activations_path(name), tmp_path / "activations"
    copy.mkdir()
    shutil.copy(source / "zarr.json", copy / "zarr.json")
    if other == "zarr":
        with zarr.config.set({"array.write_empty_chunks": True}):
            zarr.open_array(copy, mode="r+")[:] = expected_array(name)
    else:
        open_tensorstore(copy).write(expected_array(name)).result()
    shards = sorted(path.relative_to(source) for path in source.glob("c/*/0"))
    assert len(shards) > 1
    for shard in shards:
        assert (source / shard).read_bytes() == (copy / shard).read_bytes(), shard
    assert sorted(path.relative_to(copy) for path in copy.glob("c/*/0")) == shards


@pytest.mark.parametrize(
    ("rows", "width", "data_type"), cover([1, 4, 7, 16, 33, 48], [None, 1, 3], ["bfloat16", "float32", "int64"])
)
def test_shards_of_many_chunks_are_those_of_other_writers(rows, width, data_type, tmp_path):
    spec = ArraySpec("own", data_type, width, shard_rows=16, chunk_rows=4, hook_point=None)
    stored = np.random.default_rng(rows).integers(0, 255, (rows, width or 1), np.uint8).astype(STORAGE[data_type])
    stored = stored[:, 0] if width is None else stored
    with ThreadPoolExecutor(1) as helpers:
        column = Column(open_storage(tmp_path), spec, helpers)
        for block, start in enumerate(range(0, rows, 16)):
            # 7: more than a chunk at once, 3: less.
            step = 7 if block % 2 else 3
            for first in range(start, min(start + 16, rows), step):
                column.append(stored[first : min(first + step, start + 16)], block)
            column.finish_shard(block)
    (tmp_path / "own" / "zarr.json").write_bytes(array_document(spec, rows))
    native = stored.view(ml_dtypes.bfloat16) if data_type == "bfloat16" else stored
    for other in ("zarr", "tensorstore"):
        (tmp_path / other).mkdir()
        shutil.copy(tmp_path / "own" / "zarr.json", tmp_path / other / "zarr.json")
    with zarr.config.set({"array.write_empty_chunks": True}):
        zarr.open_array(tmp_path / "zarr", mode="r+")[:] = native
    open_tensorstore(tmp_path / "tensorstore").write(native).result()
    assert tree(tmp_path / "own") == tree(tmp_path / "zarr") == tree(tmp_path / "tensorstore")
    reader, out = open_array(open_storage(tmp_path), "own"), np.empty_like(stored)
    assert isinstance(reader, ShardedArray)
    reader.read_into(0, out)
    np.testing.assert_array_equal(out, stored)


LAYOUTS = {
    "sharded": {"shards": (16, 7), "chunks": (4, 7), "compressors": None},
    "unsharded": {"chunks": (5, 7)},
    "compressed": {"shards": (16, 7), "chunks": (4, 7)},
    "narrow chunks": {"chunks": (5, 2), "compressors": None},
    "big-endian": {"chunks": (5, 7), "serializer": zarr.codecs.BytesCodec(endian="big")},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["vision.3", "text.3", "vision.4"])
def test_arrays_that_zarr_python_wrote_are_read(store, layout, name, tmp_path):
    copied = copy_store(store, tmp_path / "store")
    folder = copied / activations_path(name)
    shutil.rmtree(folder)
    expected = expected_array(name)
    settings = LAYOUTS[layout] | {
        key: (LAYOUTS[layout][key][0], min(LAYOUTS[layout][key][1], expected.shape[1]))
        for key in ("shards", "chunks")
        if key in LAYOUTS[layout]
    }
    array = zarr.create_array(folder, shape=expected.shape, dtype=expected.dtype, fill_value=0, **settings)
    array[:] = expected
    found = open_store(copied).read_rows(name, np.arange(len(expected))[::-1])
    assert torch.equal(found.flip(0), store.read(name, 0, store.rows(name)))


def test_a_chunk_that_another_writer_left_out_is_read_as_zeros(store, tmp_path):
    copied = copy_store(store, tmp_path / "store")
    expected = expected_array("vision.4").copy()
    expected[8:40] = 0
    folder = copied / activations_path("vision.4")
    shutil.rmtree(folder)
    array = zarr.create_array(
        folder, shape=expected.shape, dtype="f4", shards=(32, 3), chunks=(4, 3), compressors=None, fill_value=0
    )
    with zarr.config.set({"array.write_empty_chunks": False}):
        array[:] = expected
    reread = open_store(copied)
    np.testing.assert_array_equal(reread.read("vision.4", 0, len(expected)).numpy(), expected)


def test_every_bfloat16_survives_zarr_python_and_tensorstore(tmp_path):
    every = np.arange(2**16, dtype=np.uint16).view(ml_dtypes.bfloat16).reshape(-1, 16)
    with zarr.config.set({"array.write_empty_chunks": True}):
        array = zarr.create_array(
            tmp_path / "a", shape=every.shape, dtype=every.dtype, chunks=(64, 16), fill_value=float("nan")
        )
        array[:] = every
    np.testing.assert_array_equal(bits(zarr.open_array(tmp_path / "a", mode="r")[:]), bits(every))
    np.testing.assert_array_equal(bits(open_tensorstore(tmp_path / "a").read().result()), bits(every))


@pytest.mark.parametrize(
    "fill", [0.0, 1.5, float("nan"), float("inf"), -float("inf"), np.uint16(0x7FC1).view(ml_dtypes.bfloat16)]
)
def test_fill_values_of_bfloat16_survive(fill, tmp_path):
    zarr.create_array(tmp_path / "a", shape=(3,), dtype=ml_dtypes.bfloat16, chunks=(3,), fill_value=fill)
    found = zarr.open_array(tmp_path / "a", mode="r")
    expected = np.full(3, fill, ml_dtypes.bfloat16)
    np.testing.assert_array_equal(bits(found[:]), bits(expected))
    assert "fill_value" in json.loads((tmp_path / "a" / "zarr.json").read_text())


def open_tensorstore(path: Path) -> "tensorstore.TensorStore":
    async def open_it():
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{path}/"}, "store_data_equal_to_fill_value": True}
        return await tensorstore.open(spec, open=True)

    return asyncio.run(open_it())


def copy_store(store: Store, path: Path) -> Path:
    """A copy without the manifest's word on sizes: what another writer makes of an array has its own."""
    shutil.copytree(store.path, path)
    return path
