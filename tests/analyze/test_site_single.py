"""The site of a real language model's store (needs THRESHER_DATA), and of items with several rows, in a real browser."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from site_browser import CHROMIUM, Visitor, launch
from site_world import HOSTILE, add_places, add_rows, build_world, make_catalogues, make_dictionary

from thresher.analyze.run import AnalyzeConfig, load_results, run
from thresher.analyze.site.dashboards import Dictionary
from thresher.config import validate
from thresher.harvest.run import HarvestConfig
from thresher.harvest.run import run as harvest

pytest.importorskip("playwright.sync_api", reason="needs playwright")
if CHROMIUM is None:
    pytest.skip("needs Chromium", allow_module_level=True)
DATA = Path(os.environ.get("THRESHER_DATA", "/nowhere"))
MODEL = DATA / "stories260K-hf"
VIEWS = ["#/overview", "#/features/topk", "#/feature/topk/3", "#/map/topk", "#/compare"]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, make_sae: Callable[..., Path]) -> Path:
    """An analysis of block outputs of a small trained Llama over stories."""
    if not MODEL.is_dir():
        pytest.skip("THRESHER_DATA does not name a folder with stories260K-hf")
    folder = tmp_path_factory.mktemp("single")
    told = {
        "out": folder / "store",
        "model": {"kind": "hf-causal-lm", "name": str(MODEL)},
        "source": {"kind": "text", "files": [str(DATA / "text-corpora" / "wizard_of_oz.txt")], "max_characters": 160},
        "hook_points": ["text.2"],
        "text_rows": "content",
        "limit": 60,
        "device": "cpu",
    }
    store = harvest(validate(HarvestConfig, told, "test"))
    sae = {"kind": "topk", "d_sae": 64, "k": 4}
    trained = make_sae(store, folder / "sae", ("text.2",), stream={"batch_size": 512, "holdout": 0.4}, sae=sae, rows=30_000)
    asked = {"store": store, "saes": {"topk": trained}, "out": folder / "report", "n_bootstrap": 20, "figures": "none"}
    return run(validate(AnalyzeConfig, asked | {"splice": {"documents": 4}}, "test"))


@pytest.fixture(scope="module")
def browser():
    with launch() as launched:
        yield launched


@pytest.fixture
def visit(browser, report: Path) -> Iterator[Visitor]:
    visitor = Visitor(browser, report.parent / "site" / "index.html", "light")
    yield visitor
    visitor.context.close()
    assert visitor.problems == []


def test_an_analysis_of_one_modality_says_what_does_not_apply(report: Path) -> None:
    results = load_results(report.parent)
    found = results["saes"]["topk"]
    assert found["single"]["battery"] == "one modality: not applicable"
    assert "battery" not in found
    assert any("One modality (text, text.2)" in warning for warning in results["warnings"])
    table = pq.read_table(report.parent / "topk" / "features.parquet").to_pylist()
    assert sum(found["single"]["statuses"][status]["n"] for status in ("ok", "dense", "rare", "dead")) == len(table) == 64
    assert sum(row["energy_share"] for row in table) == pytest.approx(1)
    n_rows = results["held_out"]["panels"]["text"]["n_rows"]
    assert all(row["rate"] == pytest.approx(row["n_fire"] / n_rows) for row in table)
    assert sum(row["n_fire"] for row in table) == pytest.approx(found["reconstruction"]["text"]["l0"]["value"] * n_rows)
    alive = [row for row in table if row["n_fire"]]
    assert all(row["nearest"] not in (row["feature"], None) for row in alive)
    assert all(row["n_record"] <= row["n_item"] <= row["n_fire"] for row in alive)


def test_the_site_of_one_modality_has_no_view_between_two(visit: Visitor) -> None:
    for view in VIEWS:
        visit.open(view)
        assert visit.page.locator("[role=alert]").count() == 0
        assert visit.page.locator("nav a").all_inner_texts() == ["Overview", "Features", "Map", "Compare"]
        assert visit.page.locator("main a[href*='#/bridge'], main a[href*='#/pairs'], main a[href*='#/find']").count() == 0
    visit.open("#/overview")
    assert "One modality" in visit.page.inner_text(".warn")
    visit.open("#/pairs/topk")
    assert "There is no page pairs" in visit.page.inner_text("[role=alert]")


def test_the_strongest_token_of_each_text_is_the_one_that_is_named(visit: Visitor, report: Path) -> None:
    table = pq.read_table(report.parent / "topk" / "features.parquet").to_pylist()
    best = max(table, key=lambda row: row["n_item"])
    visit.open(f"#/feature/topk/{best['feature']}")
    texts = visit.page.locator(".side > .captions li")
    assert 0 < texts.count() <= 12
    assert visit.page.locator(".side > .captions mark.top").count() == texts.count()
    codes = [float(text) for text in visit.page.locator(".side > .captions small").all_inner_texts()]
    assert codes == sorted(codes, reverse=True)
    assert codes[0] == pytest.approx(best["largest"], abs=0.006)
    named = visit.page.inner_text("#feature-title small").split(", ")[0].strip("'")
    strongest = [text.strip() for text in visit.page.locator(".side > .captions mark.top").all_inner_texts()]
    assert max(strongest, key=strongest.count) == named
    visit.open("#/features/topk")
    visit.page.fill("#search", f"#{best['feature']}")
    assert visit.features() == [best["feature"]]


@pytest.fixture(scope="module")
def dictionary() -> Dictionary:
    return add_rows(make_dictionary("one", 0.8))


@pytest.fixture(scope="module")
def rows(dictionary: Dictionary, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of 2 x 3 patches behind a class token, texts of five tokens, all of them hostile."""
    return build_world(tmp_path_factory.mktemp("rows") / "site", [dictionary], catalogues=add_places(make_catalogues()))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_patches_and_tokens_are_marked_where_the_feature_is_active(browser, rows: Path, dictionary, scheme: str) -> None:
    visitor = Visitor(browser, rows, scheme)
    fires = [np.asarray((codes != 0).sum(axis=0)).ravel() for codes in dictionary.codes.values()]
    visitor.open(f"#/feature/one/{np.minimum(*fires).argmax()}")
    page = visitor.page
    n_images, n_texts = page.locator(".shot").count(), page.locator(".captions li").count()
    assert page.locator(".heat-layer").count() == n_images > 0
    # Row (item + feature) mod 7 is the strongest; row 0 is the class token.
    n_beside = page.locator(".heat-beside").count()
    assert page.locator(".heat-top:visible").count() + n_beside >= n_images
    assert page.locator("mark.top").count() == n_texts > 0
    assert page.evaluate("window.hacked") is None
    assert any(HOSTILE.split("\u2028")[0] in text for text in page.locator(".tokens").all_inner_texts())
    assert "[3]" in "".join(page.locator(".tokens").all_inner_texts())
    page.locator(".heat-layer").first.hover()
    page.wait_for_selector("#tip:visible")
    assert page.inner_text("#tip").startswith("row ")
    page.locator(".heat-legend input").first.uncheck()
    assert page.locator(".side").first.locator(".heat-layer:visible").count() == 0
    visitor.context.close()
    assert visitor.problems == []


def test_atoms_inside_a_lasso_and_those_in_sight_are_listed(browser, rows: Path) -> None:
    visitor = Visitor(browser, rows, "light")
    visitor.open("#/map/one")
    page = visitor.page
    page.click("#lasso")
    box = page.locator("canvas").bounding_box()
    at = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in ((0.5, 0.02), (0.98, 0.98), (0.5, 0.98))]
    page.mouse.move(*at[0])
    page.mouse.down()
    for x, y in at[1:]:
        page.mouse.move(x, y, steps=4)
    page.mouse.up()
    visitor.wait("#/features")
    inside = visitor.count()
    assert inside > 0
    visitor.open("#/map/one")
    page.focus("canvas")
    page.keyboard.press("Enter")
    visitor.wait("#/features")
    everything = visitor.count()
    assert inside < everything
    visitor.open("#/map/one")
    page.focus("canvas")
    for _ in range(4):
        page.keyboard.press("+")
    page.keyboard.press("Enter")
    visitor.wait("#/features")
    assert visitor.count() < everything
    visitor.context.close()
    assert visitor.problems == []
