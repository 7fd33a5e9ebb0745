"""The site in a real browser, opened from disk."""

import csv
from collections.abc import Iterator
from pathlib import Path

import pytest
from site_browser import CHROMIUM, Visitor, launch
from site_world import HOSTILE, build_world, make_dictionary

from thresher.analyze.site.dashboards import Dictionary

pytest.importorskip("playwright.sync_api", reason="needs playwright")
if CHROMIUM is None:
    pytest.skip("needs Chromium", allow_module_level=True)

VIEWS = [
    "#/overview",
    "#/features/two",
    "#/feature/one/3",
    "#/bridge/one",
    "#/bridge/one?ego=3",
    "#/map/one",
    "#/pairs/one",
    "#/find/one",
    "#/compare",
]


@pytest.fixture(scope="module")
def dictionaries():
    return [make_dictionary("one", 0.8), make_dictionary("two", 1.0, seed=1)]


@pytest.fixture(scope="module")
def index(dictionaries, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_world(tmp_path_factory.mktemp("browser") / "site", dictionaries)


@pytest.fixture(scope="module")
def browser():
    with launch() as launched:
        yield launched


def find_class(dictionary: Dictionary) -> tuple[str, int]:
    """The class of most features that fire, and how many it has."""
    kinds = [kind for kind in dictionary.features["class"].to_pylist() if kind not in ("dead", "rare")]
    return max(sorted((kind, kinds.count(kind)) for kind in set(kinds)), key=lambda found: found[1])


@pytest.fixture
def visit(browser, index: Path) -> Iterator[Visitor]:
    visitor = Visitor(browser, index, "light")
    yield visitor
    visitor.context.close()
    assert visitor.problems == []


def test_every_view_opens_from_disk_in_the_dark_and_reads_nothing_from_outside(browser, index: Path) -> None:
    visitor = Visitor(browser, index, "dark")
    for view in VIEWS:
        visitor.open(view)
        assert visitor.page.locator("[role=alert]").count() == 0
        assert visitor.page.locator("h1, #grid").count() == 1
    visitor.context.close()
    assert visitor.problems == []


def test_texts_of_the_data_stay_texts(visit: Visitor, dictionaries) -> None:
    for view in VIEWS:
        visit.open(view)
        assert visit.page.evaluate("window.hacked") is None
        assert visit.page.locator("main script, main img[src='x'], main [onerror]").count() == 0
    status = dictionaries[0].features["status"].to_pylist()
    visit.open(f"#/feature/one/{status.index('ok')}")
    assert HOSTILE.split("\u2028")[0] in visit.page.locator(".captions li").first.text_content()
    assert HOSTILE.split("\u2028")[0] in visit.page.text_content("#feature-title")
    assert visit.page.locator(".pictures img").count() > 0


def test_search_filters_and_sorting_say_what_the_table_says(visit: Visitor, dictionaries) -> None:
    table = dictionaries[0].features
    visit.open("#/features/one")
    assert visit.count() == table.num_rows
    visit.page.click('[data-key="rho"] button')
    rho = table["rho"].to_pylist()
    expected = sorted(range(len(rho)), key=lambda row: (rho[row] is None, -(rho[row] or 0), row))
    assert visit.features()[:20] == expected[:20]
    visit.page.click('[data-key="rho"] button')
    rising = sorted(range(len(rho)), key=lambda row: (rho[row] is None, rho[row] or 0, row))
    assert visit.features()[:20] == rising[:20]
    visit.page.fill("#search", "rho>0.5 q<=0.05")
    q = table["q"].to_pylist()
    assert visit.count() == sum(a is not None and a > 0.5 and b <= 0.05 for a, b in zip(rho, q, strict=True))
    visit.page.fill("#search", "#7")
    assert visit.features() == [7]
    visit.page.fill("#search", "image")
    assert visit.count() == table.num_rows
    visit.page.fill("#search", "no such name")
    assert visit.count() == 0
    visit.page.fill("#search", "")
    kind, n = find_class(dictionaries[0])
    visit.page.click(f'.filter[data-class="{kind}"]')
    assert visit.count() == n


def test_a_search_is_part_of_the_address(visit: Visitor, dictionaries) -> None:
    kind, _ = find_class(dictionaries[0])
    visit.open(f"#/features/one?q=mu_energy%3E%3D0&class={kind}&sort=feature")
    assert visit.page.input_value("#search") == "mu_energy>=0"
    found = visit.features()
    assert found == sorted(found)
    kinds = dictionaries[0].features["class"].to_pylist()
    assert {kinds[row] for row in found} == {kind}


def test_the_keyboard_finds_opens_and_returns(visit: Visitor, dictionaries) -> None:
    page = visit.page
    visit.open("#/overview")
    page.keyboard.press("/")
    page.wait_for_selector("#search:focus")
    page.keyboard.type(find_class(dictionaries[0])[0])
    page.keyboard.press("Enter")
    page.wait_for_selector("#grid:focus")
    rows = visit.features()
    assert visit.selected() == rows[0]
    page.keyboard.press("j")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("k")
    assert visit.selected() == rows[1]
    page.keyboard.press("Enter")
    visit.wait_feature(rows[1])
    page.keyboard.press("ArrowRight")
    visit.wait_feature(rows[2])
    page.keyboard.press("k")
    visit.wait_feature(rows[1])
    page.keyboard.press("Escape")
    visit.wait("#/features")
    assert visit.selected() == rows[1]
    page.keyboard.press("End")
    last = visit.selected()
    page.keyboard.press("Home")
    assert visit.selected() != last


def test_links_lead_from_view_to_view(visit: Visitor, dictionaries) -> None:
    page = visit.page
    visit.open("#/overview")
    page.click(f'main a[href="#/features/one?class={find_class(dictionaries[0])[0]}"]')
    visit.wait("#/features")
    page.locator(".grid-row a").first.click()
    visit.wait("#/feature")
    first = page.inner_text("#feature-title")
    page.locator(".data .feature-link").last.click()
    page.wait_for_function("first => document.getElementById('feature-title')?.innerText !== first", arg=first)
    edge = dictionaries[0].crossed.edges["i"][0].as_py()
    visit.open(f"#/feature/one/{edge}")
    page.click("text=In the graph")
    visit.wait("#/bridge")
    assert page.url.endswith(f"?ego={edge}")
    page.click("nav >> text=Map")
    visit.wait("#/map")
    page.select_option("#sae", "two")
    page.wait_for_function("location.hash.startsWith('#/map/two')")


def test_the_terms_of_a_pair_and_the_rest_are_its_similarity(visit: Visitor) -> None:
    visit.open("#/pairs/one/1")
    total, listed, rest = (float(visit.page.inner_text(f"#{name}")) for name in ("total", "listed", "rest"))
    assert listed + rest == pytest.approx(total, abs=2e-4)
    shown = visit.page.locator("#terms tbody tr td:last-child").evaluate_all(
        "cells => cells.map(cell => Number(cell.innerText))"
    )
    assert sum(shown) == pytest.approx(listed, abs=1e-3 * len(shown))
    visit.page.locator(".pick-caption a").nth(1).click()
    visit.page.wait_for_selector(".pick-caption li:nth-child(2).current")
    assert float(visit.page.inner_text("#total")) != total


def test_what_is_drawn_around_on_the_map_is_listed(visit: Visitor, dictionaries) -> None:
    visit.open("#/map/one")
    box = visit.page.locator("canvas").bounding_box()
    visit.page.keyboard.down("Shift")
    left, top, right, bottom = box["x"] + 2, box["y"] + 2, box["x"] + box["width"] - 2, box["y"] + box["height"] - 2
    visit.page.mouse.move(left, top)
    visit.page.mouse.down()
    for x, y in ((right, top), (right, bottom), (left, bottom)):
        visit.page.mouse.move(x, y)
    visit.page.mouse.up()
    visit.page.keyboard.up("Shift")
    visit.wait("#/features")
    visit.page.wait_for_selector("#grid")
    assert visit.count() == int(dictionaries[0].alive().sum())


def test_the_graph_shows_the_edges_that_pass_the_filters(visit: Visitor, dictionaries) -> None:
    visit.open("#/bridge/one?q=0.05&count=5&most=1000")
    edges = dictionaries[0].crossed.edges.to_pylist()
    passing = [one for one in edges if one["i"] != one["j"] and one["count"] >= 5 and one["q"] <= 0.05]
    assert passing
    assert visit.page.inner_text("#graph-status").startswith(f"{len(passing)} of {len(passing)} edges")
    visit.page.fill("label:has-text('pairs at least') input", "100000")
    visit.page.keyboard.press("Enter")
    visit.page.wait_for_function("document.getElementById('graph-status').innerText.startsWith('0 of 0')")


def test_choosing_a_point_marks_its_column(visit: Visitor) -> None:
    visit.open("#/compare")
    visit.page.locator('.point[data-sae="two"]').focus()
    visit.page.keyboard.press("Enter")
    visit.page.wait_for_selector('.point[data-sae="two"][aria-pressed="true"]')
    assert visit.page.locator("#compare th.current").inner_text() == "two"
    visit.page.click("#compare thead button >> text=one")
    visit.page.wait_for_selector('.point[data-sae="one"][aria-pressed="true"]')


def test_the_saved_table_holds_every_row_that_is_listed(visit: Visitor, tmp_path: Path) -> None:
    visit.open("#/features/one?q=mu_energy%3E0.3&sort=-mu_energy")
    with visit.page.expect_download() as download:
        visit.page.click("#csv")
    download.value.save_as(tmp_path / "table.csv")
    with (tmp_path / "table.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == visit.count()
    assert [int(row["feature"]) for row in rows][:10] == visit.features()[:10]
    assert rows[0]["name_image"].startswith(HOSTILE)
    assert all(float(row["mu_energy"]) > 0.3 for row in rows)


def test_only_rows_in_sight_are_in_the_page(visit: Visitor) -> None:
    visit.open("#/features/one")
    before = visit.features()
    assert len(before) < visit.count() or visit.count() < 60
    visit.page.focus("#grid")
    visit.page.keyboard.press("End")
    assert visit.features()[-1] == visit.selected()


def test_a_theme_that_was_chosen_wins_over_the_system(visit: Visitor) -> None:
    visit.open("#/overview")
    color = "getComputedStyle(document.body).backgroundColor"
    light = visit.page.evaluate(color)
    visit.page.click("#theme")
    visit.wait("#/overview")
    assert visit.page.evaluate(color) != light
    visit.page.click("#theme")
    assert visit.page.evaluate(color) == light


def test_a_page_that_is_not_there_says_so(visit: Visitor) -> None:
    visit.open("#/feature/one/99999")
    assert "no feature 99999" in visit.page.inner_text("[role=alert]")


def test_the_way_back_to_the_table_keeps_its_search_and_a_search_says_what_it_does_not_know(visit: Visitor) -> None:
    page = visit.page
    visit.open("#/features/one?q=rho%3E0&sort=feature")
    found = visit.features()
    page.click(f'[data-feature="{found[1]}"] a')
    visit.wait_feature(found[1])
    page.click("#back")
    visit.wait("#/features")
    assert (page.input_value("#search"), visit.features()) == ("rho>0", found)
    page.fill("#search", "score>=0")
    by_title = visit.count()
    page.fill("#search", "mu_energy>=0")
    assert visit.count() == by_title > 0
    assert page.is_hidden("#none")
    page.fill("#search", "roh>0.3")
    assert "no column roh" in page.inner_text("#none")


def test_every_class_is_explained_where_it_is_named_and_on_the_page_of_words(visit: Visitor) -> None:
    visit.open("#/overview")
    assert visit.page.locator("main .chip:not([title])").count() == 0
    visit.page.click("#words")
    visit.wait("#/words")
    kinds = visit.page.evaluate("THRESHER.CLASSES")
    assert [kind for kind in kinds if visit.page.locator(f"dt .chip:text-is('{kind}')").count() != 1] == []


CROWD = """() => {
  const { run } = THRESHER;
  for (let k = 0; k < 12; k++) {
    const copy = structuredClone(run.saes.one);
    for (const panel of Object.values(copy.reconstruction)) { panel.l0.value += 0.01 * k; panel.r2.value -= 0.001 * k; }
    run.saes[`dictionary-${k}`] = copy;
    run.all.push(`dictionary-${k}`);
  }
}"""
LAPPING = """boxes => boxes.flatMap((a, k) => boxes.slice(k + 1).filter(b =>
  Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1 && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 4))"""


def test_names_of_dictionaries_of_nearly_equal_numbers_do_not_lie_on_each_other(visit: Visitor) -> None:
    visit.open("#/overview")
    visit.page.evaluate(CROWD)
    visit.page.click("nav >> text=Compare")
    visit.wait("#/compare")
    names = visit.page.locator(".pareto .point .label")
    assert names.count() == 14
    assert names.evaluate_all(f"nodes => ({LAPPING})(nodes.map(node => node.getBoundingClientRect()))") == []
