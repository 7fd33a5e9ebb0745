"""Looking into a store, giving it to other tools, taking from them."""

import json
import re
from pathlib import Path

import datasets
import h5py
import ml_dtypes
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import zarr
from safetensors import numpy as safetensors

from thresher.data.store import (
    StoreWriter,
    export_store,
    import_store,
    open_store,
    read_head,
    repair_store,
    retype_store,
    verify_store,
)
from thresher.errors import StoreError
from thresher.testing.store import CONCEPTS, HOOK_POINTS, IDENTITY, expected_items, expected_rows, tree, write_store

N_BATCHES = 5
NAMES = [spec.name for spec in HOOK_POINTS]
FORMS = ("hdf5", "hdf5-view", "safetensors", "npy", "parquet")


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("tools") / "store"
    with StoreWriter(path, IDENTITY, HOOK_POINTS, CONCEPTS, items_per_shard=12) as writer:
        write_store(writer, N_BATCHES)
    return path


def folder_of(hook_point: str) -> str:
    return hook_point.replace(":", "%3A")


def read_export(out: Path, form: str, name: str) -> dict[str, np.ndarray]:
    if form.startswith("hdf5"):
        with h5py.File(out) as file:
            return {key: node[:] for key, node in file[f"layers/{folder_of(name)}"].items()}
    if form == "safetensors":
        return dict(safetensors.load_file(out / f"{folder_of(name)}.safetensors"))
    if form == "npy":
        return {file.stem: np.load(file) for file in (out / folder_of(name)).glob("*.npy")}
    table = pq.read_table(out / folder_of(name) / "rows.parquet")
    found = {key: table[key].to_numpy() for key in table.column_names if key != "activations"}
    flat = table["activations"].combine_chunks().flatten().to_numpy()
    return found | {"activations": flat.reshape(table.num_rows, -1)}


@pytest.mark.parametrize("form", FORMS)
def test_an_export_holds_every_row(path, form, tmp_path, monkeypatch):
    monkeypatch.setattr("thresher.data.store.export.BLOCK_BYTES", 100)
    out = export_store(path, tmp_path / "out", form)
    for spec in HOOK_POINTS:
        found, expected = read_export(out, form, spec.name), expected_rows(spec.name, N_BATCHES)
        np.testing.assert_array_equal(found["activations"].astype("f4"), expected.float().numpy())
        np.testing.assert_array_equal(found["item"], expected_items(spec.space, spec.modality, N_BATCHES))
        np.testing.assert_array_equal(found["position"], open_store(path).position_of(spec.name))
        assert ("token_id" in found) == (spec.space == "text.tokens")
    with pytest.raises(StoreError, match="exists already"):
        export_store(path, out, form)


def test_a_view_has_no_activations_of_its_own(path, tmp_path):
    out = export_store(path, tmp_path / "view.h5", "hdf5-view")
    with h5py.File(out) as file:
        for spec in HOOK_POINTS:
            activations = file[f"layers/{folder_of(spec.name)}/activations"]
            files = {name for name, _, _ in activations.external}
            assert activations.id.get_storage_size() == sum(n for _, _, n in activations.external)
            assert all(Path(name).is_relative_to(path) for name in files)
            assert len(files) == len(open_store(path).list_shards(spec.name)) > 1


def test_items_and_pairs_come_along(path, tmp_path):
    store = open_store(path)
    out = export_store(path, tmp_path / "npy", "npy", hook_points=["text.3"])
    assert [folder.name for folder in out.iterdir() if folder.is_dir()] == ["text.3"]
    assert pq.read_table(out / "items-text.parquet").equals(store.items("text"))
    assert pq.read_table(out / "pairs.parquet")["text"].to_pylist() == store.pairs()[:, 1].tolist()
    with h5py.File(export_store(path, tmp_path / "out.h5", "hdf5")) as file:
        assert [key.decode() for key in file["items/text/text"]] == store.items("text")["text"].to_pylist()
        np.testing.assert_array_equal(file["pairs"][:], store.pairs())
        assert json.loads(file.attrs["identity"]) == IDENTITY


def test_datasets_load_an_export(path, tmp_path):
    out = export_store(path, tmp_path / "out", "parquet")
    file = str(out / "vision.3" / "rows.parquet")
    loaded = datasets.load_dataset("parquet", data_files=file, split="train", cache_dir=str(tmp_path / "cache"))
    np.testing.assert_array_equal(np.array(loaded["activations"]), expected_rows("vision.3", N_BATCHES).float().numpy())


def test_an_export_that_cannot_be_written_leaves_nothing(path, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises((StoreError, NotADirectoryError, FileExistsError)):
        export_store(path, tmp_path / "file" / "out", "npy")
    with pytest.raises(StoreError, match=r"no hook point 'vision\.9'"):
        export_store(path, tmp_path / "out", "npy", hook_points=["vision.9"])
    assert sorted(tmp_path.iterdir()) == [tmp_path / "file"]


def check_import(out: Path, name: str, expected: np.ndarray, space: str) -> None:
    store = open_store(out)
    assert verify_store(out, level="checksums") == []
    assert store.hook_points[name].space == space
    n_items, *positions, width = expected.shape
    np.testing.assert_array_equal(store.read(name, 0, store.rows(name)).numpy(), expected.reshape(-1, width))
    np.testing.assert_array_equal(store.item_of(name), np.repeat(np.arange(n_items), positions[0] if positions else 1))
    expected_position = np.tile(np.arange(positions[0]), n_items) if positions else np.full(n_items, -1)
    np.testing.assert_array_equal(store.position_of(name), expected_position)


@pytest.mark.parametrize(
    ("shape", "dtype", "modality", "space"),
    [
        ((130, 7), "f4", "image", "image.items"),
        ((33, 5), "f2", "text", "text.items"),
        ((9, 4, 3), "f4", "image", "image.tokens"),
        ((9, 4, 3), "f8", "text", "text.positions"),
    ],
)
def test_an_npy_becomes_a_store(shape, dtype, modality, space, tmp_path, monkeypatch):
    monkeypatch.setattr("thresher.data.store.ingest.BATCH_BYTES", 200)
    x = np.random.default_rng(0).normal(size=shape).astype(dtype)
    np.save(tmp_path / "x.npy", x)
    out = import_store(tmp_path / "x.npy", tmp_path / "store", modality=modality, hook_point="layer.3")
    check_import(out, "layer.3", x.astype("f4") if dtype == "f8" else x, space)


def test_hdf5_becomes_a_store_and_what_was_exported_comes_back(path, tmp_path):
    x, y = np.random.default_rng(0).normal(size=(2, 6, 5, 4)).astype("f4")
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["deep/x"], file["y"], file["token_ids"] = x, y, np.arange(30).reshape(6, 5)
    out = import_store(tmp_path / "x.h5", tmp_path / "store", modality="text")
    check_import(out, "deep/x", x, "text.tokens")
    check_import(out, "y", y, "text.tokens")
    assert open_store(out).token_id_of("y").tolist() == list(range(30))
    name = "vision.embed"
    exported = export_store(path, tmp_path / "again.h5", "hdf5", hook_points=[name])
    again = open_store(import_store(exported, tmp_path / "again", modality="image"))
    assert torch.equal(again.read(name, 0, again.rows(name)), expected_rows(name, N_BATCHES).float())


def test_cached_activations_of_saelens_become_a_store(tmp_path):
    """Columns and features as its cache runner writes them: one [context, width] array per example, `token_ids`."""
    x, ids = np.random.default_rng(0).normal(size=(11, 6, 4)).astype("f4"), np.arange(66).reshape(11, 6)
    hook = "blocks.2.hook_resid_post"
    features = datasets.Features(
        {
            hook: datasets.Array2D(shape=(6, 4), dtype="float32"),
            "token_ids": datasets.Sequence(datasets.Value("int32"), length=6),
        }
    )
    datasets.Dataset.from_dict({hook: x, "token_ids": ids}, features=features).save_to_disk(str(tmp_path / "cache"))
    out = import_store(tmp_path / "cache", tmp_path / "store", modality="text")
    check_import(out, hook, x, "text.tokens")
    assert open_store(out).token_id_of(hook).tolist() == list(range(66))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.zeros(3), "expected floating point"),
        (np.zeros((3, 4), "i8"), "expected floating point"),
        (np.zeros((0, 4)), "expected at least one item"),
        (np.zeros((4, 0)), "expected at least one item, position and feature"),
        (None, "no such file"),
    ],
)
def test_what_holds_no_activations_is_refused(content, message, tmp_path):
    source = tmp_path / "x.npy"
    if content is not None:
        np.save(source, content)
    with pytest.raises(StoreError, match=message):
        import_store(source, tmp_path / "store", modality="image")
    assert not (tmp_path / "store").exists()


def test_arrays_of_different_items_are_refused(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["x"], file["y"] = np.zeros((3, 4)), np.zeros((5, 4))
    with pytest.raises(StoreError, match="all alike; choose one by hook_point"):
        import_store(tmp_path / "x.h5", tmp_path / "store", modality="image")
    out = import_store(tmp_path / "x.h5", tmp_path / "store", modality="image", hook_point="y")
    check_import(out, "y", np.zeros((5, 4), "f4"), "image.items")


@pytest.mark.parametrize("name", NAMES)
def test_head_shows_rows_with_what_they_belong_to(path, name):
    store = open_store(path)
    rows = read_head(store, name, 2, 3)
    info = store.hook_points[name]
    assert [row["row"] for row in rows] == [2, 3, 4]
    keys, x = store.items(info.modality)["key"].to_pylist(), expected_rows(name, N_BATCHES).float()
    for row in rows:
        assert row["key"] == keys[expected_items(info.space, info.modality, N_BATCHES)[row["row"]]]
        assert row["norm"] == pytest.approx(float(x[row["row"]].norm()), abs=1e-3)
        assert ("text" in row) == (info.modality == "text")
    assert read_head(store, name, store.rows(name), 3) == []


def test_bfloat16_under_another_name_is_the_same_store(path, tmp_path):
    export = tmp_path / "store"
    with StoreWriter(export, IDENTITY, HOOK_POINTS, CONCEPTS, items_per_shard=12) as writer:
        write_store(writer, N_BATCHES)
    before, fingerprint = tree(export), open_store(export).fingerprint
    assert retype_store(export, "uint16") == ["vision.3", "module:text.ln_final"]
    bits = zarr.open_array(export / "acts.zarr/layers/vision.3/activations", mode="r")
    assert bits.dtype == np.uint16
    expected = expected_rows("vision.3", N_BATCHES)
    np.testing.assert_array_equal(bits[:].view(ml_dtypes.bfloat16).astype("f4"), expected.float().numpy())
    store = open_store(export)
    assert store.fingerprint == fingerprint
    assert torch.equal(store.read("vision.3", 0, len(expected)), expected)
    assert verify_store(export, level="checksums") == verify_store(export, level="sizes") == []
    assert repair_store(export).findings == []
    retype_store(export, "bfloat16")
    assert tree(export) == before


@pytest.mark.parametrize("name", ["a.npy", "a.h5", "a"])
@pytest.mark.parametrize("content", [b"", b"rubbish", b"\x93NUMPY\x01\x00"])
def test_what_cannot_be_read_is_refused_and_nothing_is_imported(tmp_path, name, content):
    source = tmp_path / name
    if source.suffix:
        source.write_bytes(content)
    else:
        source.mkdir()
        (source / "dataset_info.json").write_bytes(content)
    with pytest.raises(StoreError, match=re.escape(f"{source}: cannot be read")):
        import_store(source, tmp_path / "store", modality="image")
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("form", ["hdf5", "npy"])
@pytest.mark.parametrize("name", ["vision.4", "vision.embed", "text.3", "module:text.ln_final"])
def test_exported_rows_come_back_with_item_position_and_token_id(path, tmp_path, monkeypatch, form, name):
    monkeypatch.setattr("thresher.data.store.ingest.BATCH_BYTES", 5000)  # several batches
    store, modality = open_store(path), "image" if name.startswith("vision") else "text"
    exported = export_store(path, tmp_path / ("out.h5" if form == "hdf5" else "out"), form)
    source = exported if form == "hdf5" else exported / folder_of(name) / "activations.npy"
    again = open_store(import_store(source, tmp_path / "store", modality=modality, hook_point=name))
    assert again.hook_points[name].space == store.hook_points[name].space
    assert torch.equal(again.read(name, 0, again.rows(name)).float(), store.read(name, 0, store.rows(name)).float())
    assert again.item_of(name).tolist() == store.item_of(name).tolist()
    assert again.position_of(name).tolist() == store.position_of(name).tolist()
    if again.hook_points[name].space == "text.tokens":
        assert again.token_id_of(name).tolist() == store.token_id_of(name).tolist()
    for column in ("key", "record", "status", *(["text"] if modality == "text" else [])):
        assert again.items(modality)[column].to_pylist() == store.items(modality)[column].to_pylist()


def test_all_hook_points_of_a_modality_come_back_in_their_types_at_once(path, tmp_path):
    exported = export_store(path, tmp_path / "out.h5", "hdf5")
    again = open_store(import_store(exported, tmp_path / "store", modality="text"))
    expected = {name: info for name, info in open_store(path).hook_points.items() if info.modality == "text"}
    assert dict(again.hook_points) == expected
    assert all(torch.equal(again.read(name, 0, info.rows), expected_rows(name, N_BATCHES)) for name, info in expected.items())


def test_exported_rows_that_no_store_can_hold_are_refused(tmp_path):
    for name, item in (("apart", [0, 1, 0]), ("same", [0, 0, 1])):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "activations.npy", np.zeros((3, 2), "f4"))
        np.save(tmp_path / name / "item.npy", np.array(item))
    with pytest.raises(StoreError, match="do not stand together"):
        import_store(tmp_path / "apart/activations.npy", tmp_path / "store", modality="image")
    with pytest.raises(StoreError, match="no position beside them"):
        import_store(tmp_path / "same/activations.npy", tmp_path / "store", modality="image")
    assert not (tmp_path / "store").exists()
