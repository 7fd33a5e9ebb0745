"""The site of a decoder that reads an image and a text in one sequence: harvest, dictionary, tables, pages in a browser."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from site_browser import CHROMIUM, Visitor, launch
from tiny_vlm import save_qwen25

from thresher.analyze.metrics.codes import to_matrix
from thresher.analyze.run import AnalyzeConfig, run
from thresher.config import validate
from thresher.data.sources import MemorySource
from thresher.data.store import Store, TokenKind, open_store
from thresher.harvest.run import HarvestConfig
from thresher.harvest.run import run as harvest
from thresher.train.checkpoint import load_sae

SIZES = [(64, 64), (32, 64), (64, 32), (48, 32)] * 3
"""Of images, width and height; a token stands for 16 x 16 pixels."""


class World(NamedTuple):
    """An analysis, and the code of every row of its store."""

    folder: Path
    store: Store
    codes: np.ndarray

    def read(self, name: str) -> Any:
        """What a data file of the site hands to the page."""
        text = (self.folder / "site" / "data" / f"{name}.js").read_text()
        return json.loads("[" + text.removeprefix("THRESHER.put(").removesuffix(");\n") + "]")[1]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, make_sae) -> World:
    """Twelve images of noise, and one question about all of them."""
    folder, generator = tmp_path_factory.mktemp("vlm"), np.random.default_rng(0)
    noise = [Image.fromarray(generator.integers(0, 255, (h // 16, w // 16, 3), dtype=np.uint8)) for w, h in SIZES]
    pictures = [one.resize(size, Image.Resampling.NEAREST) for one, size in zip(noise, SIZES, strict=True)]
    told = {
        "out": folder / "store",
        "model": {"kind": "hf-vlm", "name": str(save_qwen25(folder / "model"))},
        "source": {"kind": "in-memory"},
        "hook_points": ["text.1"],
        "device": "cpu",
    }
    source = MemorySource([(picture, "a word and another") for picture in pictures])
    store = harvest(validate(HarvestConfig, told, "test"), source=source)
    sae = {"kind": "topk", "d_sae": 16, "k": 2}
    trained = make_sae(store, folder / "sae", ("text.1",), stream={"batch_size": 64, "holdout": 0.2}, sae=sae, rows=2_000)
    asked = {"store": store, "saes": {"topk": trained}, "out": folder / "out", "n_bootstrap": 20, "rows": "all"}
    run(validate(AnalyzeConfig, asked | {"figures": "none"}, "test"))
    opened, loaded = open_store(store), load_sae(trained, torch.device("cpu"))
    rows = opened.read("text.1", 0, opened.rows("text.1")).float()
    return World(folder / "out", opened, to_matrix(loaded.encode(rows, "text.1"), 16).toarray())


def test_activity_is_told_by_kind_of_token(world: World) -> None:
    table, kind = pq.read_table(world.folder / "topk" / "features.parquet"), world.store.column_of("text.1", "kind")
    for name, code in (("image", TokenKind.IMAGE), ("text", TokenKind.TEXT)):
        own = world.codes[kind == code]
        assert table[f"n_fire_{name}_tokens"].to_pylist() == (own != 0).sum(axis=0).tolist()
        np.testing.assert_allclose(table[f"rate_{name}_tokens"], (own != 0).mean(axis=0))
        np.testing.assert_allclose(table[f"energy_{name}_tokens"], (own**2).mean(axis=0), rtol=1e-4)
    mean = [(world.codes[kind == code] ** 2).mean(axis=0) for code in (TokenKind.IMAGE, TokenKind.TEXT)]
    fires = (mean[0] + mean[1]) > 0
    expected = mean[0][fires] / (mean[0] + mean[1])[fires]
    np.testing.assert_allclose(np.array(table["mu_tokens"])[fires].astype(float), expected, rtol=1e-4)


def test_a_text_is_shown_with_the_image_in_front_of_it(world: World) -> None:
    """Also one that is asked about many images: it is as many items."""
    keys = [one[0] for one in world.read("images/00000")]
    rows, texts = world.read("rows-text/00000"), world.read("texts/00000")
    assert sorted(keys) == sorted(world.store.items("image")["key"].to_pylist())
    assert len(texts) == len(rows) == len(SIZES)
    for _, shape, _, picture in rows:
        width, height = SIZES[world.store.items("image")["key"].to_pylist().index(keys[picture])]
        assert shape == [height // 16, width // 16]


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_the_strongest_image_token_is_framed_on_its_place_in_the_image(world: World) -> None:
    pytest.importorskip("playwright.sync_api", reason="needs playwright")
    kind, item = world.store.column_of("text.1", "kind"), world.store.item_of("text.1")
    cells = np.stack([world.store.column_of("text.1", f"patch_{one}") for one in ("row", "column")], axis=1)
    feature = int(((world.codes != 0) & (kind == TokenKind.IMAGE)[:, None]).sum(axis=0).argmax())
    with launch() as browser:
        visitor = Visitor(browser, world.folder / "site" / "index.html", "light")
        visitor.open(f"#/feature/topk/{feature}")
        shown = visitor.page.locator(".side > .captions li")
        assert shown.count() > 0
        for place in range(shown.count()):
            picture = shown.nth(place).locator(".heat > img")
            key = picture.get_attribute("alt")
            own = item == world.store.items("image")["key"].to_pylist().index(key)
            own &= (kind == TokenKind.IMAGE) & (world.codes[:, feature] != 0)
            told = shown.nth(place).locator(".heat-layer").get_attribute("aria-label")
            if not own.any():
                assert told == "no patch is active"
                continue
            best = np.flatnonzero(own)[np.abs(world.codes[own, feature]).argmax()]
            assert f"strongest row {cells[best, 0] + 1}, column {cells[best, 1] + 1}," in told
            assert told.startswith(f"{own.sum()} of ")
        # The layer covers the picture: both have its proportions, the picture within a square.
        box = visitor.page.locator(".heat-layer").first.bounding_box()
        size = visitor.page.locator(".heat > img").first.evaluate("one => [one.naturalWidth, one.naturalHeight]")
        assert box["width"] / box["height"] == pytest.approx(size[0] / size[1], rel=0.05)
        visitor.context.close()
    assert visitor.problems == []
