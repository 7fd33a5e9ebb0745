"""Embeddings of images and texts that somebody else has kept become a store with their pairs."""

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from typer.testing import CliRunner

from thresher.cli import app
from thresher.data.store import import_pairs, open_store
from thresher.errors import StoreError

WIDTHS = 6, 4


def save(folder, image_of, n_images=5, dtype="f4"):
    """Arrays of `n_images` images and of one text per entry of `image_of`, and their pairs."""
    rng = np.random.default_rng(0)
    images, texts = (
        rng.normal(size=(n, width)).astype(dtype) for n, width in zip((n_images, len(image_of)), WIDTHS, strict=True)
    )
    np.save(folder / "images.npy", images)
    np.save(folder / "texts.npy", texts)
    lines = [f"{image},{text}" for text, image in enumerate(image_of) if image >= 0]
    (folder / "pairs.csv").write_text("\n".join(["image,text", *lines]))
    (folder / "captions.txt").write_text("\n".join(f"caption {n}" for n in range(len(image_of))))
    return images, texts


@settings(max_examples=12, deadline=None)
@given(
    image_of=st.lists(st.integers(-1, 4), min_size=1, max_size=12).filter(lambda found: max(found) >= 0), size=st.integers(1, 9)
)
def test_every_row_keeps_its_number_its_words_and_its_partner(image_of, size, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    images, texts = save(folder, image_of)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("thresher.data.store.ingest_pairs.BATCH_BYTES", size * 4 * sum(WIDTHS))
        import_pairs(
            folder / "images.npy",
            folder / "texts.npy",
            folder / "store",
            pairs=folder / "pairs.csv",
            captions=folder / "captions.txt",
        )
    store = open_store(folder / "store")
    for name, modality, array in (("vision.embed", "image", images), ("text.embed", "text", texts)):
        keys = np.array([int(key) for key in store.items(modality)["key"].to_pylist()])
        assert sorted(keys) == list(range(len(array)))
        assert torch.equal(store.read(name, 0, len(array)), torch.from_numpy(array[keys[store.item_of(name)]]))
    table = {modality: store.items(modality).to_pydict() for modality in ("image", "text")}
    assert table["text"]["text"] == [f"caption {key}" for key in table["text"]["key"]]
    found = {(int(table["image"]["key"][i]), int(table["text"]["key"][t])) for i, t in store.pairs().tolist()}
    assert found == {(image, text) for text, image in enumerate(image_of) if image >= 0}
    records = dict(zip(table["image"]["key"], table["image"]["record"], strict=True))
    for key, record in zip(table["text"]["key"], table["text"]["record"], strict=True):
        image = image_of[int(key)]
        assert record == records[str(image)] if image >= 0 else record not in records.values()
    singles = [record for record in table["text"]["record"] if record not in records.values()]
    assert len(set(singles)) == len(singles)


def test_rows_of_equal_number_are_pairs_unless_told_otherwise(tmp_path):
    save(tmp_path, range(5), dtype="f8")
    names = ["images.npy", "store", "--texts", "texts.npy"]
    done = CliRunner().invoke(
        app, ["store", "import", *(str(tmp_path / name) if "." in name or name == "store" else name for name in names)]
    )
    assert done.exit_code == 0, done.output
    store = open_store(tmp_path / "store")
    assert store.pairs().tolist() == [[n, n] for n in range(5)]
    arrays = tmp_path / "images.npy", tmp_path / "texts.npy", tmp_path / "store"
    assert import_pairs(*arrays) == tmp_path / "store"
    with pytest.raises(StoreError, match=r"of something else(.|\n)*imported\.captions"):
        import_pairs(*arrays, captions=tmp_path / "captions.txt")
    assert store.hook_points["vision.embed"].dtype == "float32"


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (None, "5 rows and .* has 6: say which belong together"),
        ("image,text\n0,0\n1,0", "text 0 belongs to two images"),
        ("image,text\n5,0", "pair 0 names image 5, but there are 5, counted from 0"),
        ("image,text\n0,-1", "pair 0 names text -1"),
        ("picture,text\n0,0", "its columns are picture, text.; expected a CSV with the columns image and text"),
        ("image,text", r"expected at least one pair, whole numbers \[pair, 2\]"),
    ],
)
def test_pairs_that_cannot_be_are_refused(pairs, message, tmp_path):
    save(tmp_path, [0, 1, 2, 3, 4, -1])
    path = None if pairs is None else tmp_path / "other.csv"
    if path is not None:
        path.write_text(pairs)
    with pytest.raises(StoreError, match=message):
        import_pairs(tmp_path / "images.npy", tmp_path / "texts.npy", tmp_path / "store", pairs=path)
    assert not (tmp_path / "store").exists()


def test_captions_are_as_many_as_the_texts(tmp_path):
    save(tmp_path, range(5))
    (tmp_path / "captions.txt").write_text("one\ntwo")
    with pytest.raises(StoreError, match="2 lines for 5 texts"):
        import_pairs(tmp_path / "images.npy", tmp_path / "texts.npy", tmp_path / "store", captions=tmp_path / "captions.txt")


@pytest.mark.parametrize("kind", ["npz", "h5", "safetensors", "pt"])
def test_embeddings_come_from_the_files_people_keep_them_in(kind, tmp_path):
    images, texts = save(tmp_path, [0, 0, 2, 4, 3])
    arrays = {"images": torch.from_numpy(images).bfloat16().float().numpy(), "texts": texts}
    path = tmp_path / f"both.{kind}"
    if kind == "npz":
        np.savez(path, **arrays)
    elif kind == "h5":
        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                file[name] = array
    else:
        tensors = {"images": torch.from_numpy(images).bfloat16(), "texts": torch.from_numpy(texts)}
        save_file(tensors, path) if kind == "safetensors" else torch.save(tensors, path)
    (tmp_path / "captions.csv").write_text(
        "caption,image\n" + "\n".join(f'"one, {n}",{i}' for n, i in enumerate([0, 0, 2, 4, 3]))
    )
    with pytest.raises(
        StoreError, match=rf"several arrays; it has images, texts: name one behind a colon, as both\.{kind}:images"
    ):
        import_pairs(path, path, tmp_path / "store")
    names = [tmp_path / f"both.{kind}:{name}" for name in ("images", "texts")]
    import_pairs(*names, tmp_path / "store", captions=tmp_path / "captions.csv")
    store = open_store(tmp_path / "store")
    table = {modality: store.items(modality).to_pydict() for modality in ("image", "text")}
    found = [(int(table["image"]["key"][i]), table["text"]["text"][t]) for i, t in store.pairs().tolist()]
    assert sorted(found) == [(0, "one, 0"), (0, "one, 1"), (2, "one, 2"), (3, "one, 4"), (4, "one, 3")]
    for name, modality, key in (("vision.embed", "image", "images"), ("text.embed", "text", "texts")):
        keys = np.array([int(each) for each in table[modality]["key"]])[store.item_of(name)]
        assert torch.equal(store.read(name, 0, len(keys)), torch.from_numpy(arrays[key][keys]))
