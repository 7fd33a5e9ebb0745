"""The laws of figures and of the report: the data behind each figure, nothing from outside, nothing unescaped."""

import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csc_array

from thresher.analyze.figures import draw_concepts, draw_confusion, draw_modality, draw_reconstruction, save_chart
from thresher.analyze.gallery import Card, Shown, find_first, strongest
from thresher.analyze.metrics.modality import histogram
from thresher.analyze.report import Figure, Page, show_interval, show_number, show_percent, show_share, write_report
from thresher.analyze.results import summary_table

HOSTILE = "<script>alert('a caption')</script> & \"quotes\""


def number(value: float | None, n: int = 10) -> dict[str, object]:
    return {"value": value, "low": value and value - 0.1, "high": value and value + 0.1, "n": n, "unit": "rows"}


RECONSTRUCTION = {
    key: number(value)
    for key, value in {"r2": 0.8, "fvu": 0.2, "nmse": 0.1, "cosine": 0.9, "cosine_of_mean": 0.5, "l0": 8.0}.items()
}


def make_results(**more) -> dict:
    sae = {"reconstruction": {"text": RECONSTRUCTION}, "dead": {"text": number(0.1)}, "d_sae": 4} | more
    panel = {"hook_point": "text.0", "n_items": 5, "n_rows": 10, "width": 3}
    return {
        "store": {"model": HOSTILE, "source": "made", "fingerprint": "0" * 64, "path": "store"},
        "held_out": {"fraction": 0.1, "seed": 0, "records": 5, "panels": {"text": panel}},
        "thresholds": {"image_above": 0.9, "text_below": 0.1, "rare_below": 20, "min_score": 0.3, "alpha": 0.05},
        "n_bootstrap": 20,
        "order": ["one"],
        "saes": {"one": sae},
        "warnings": [HOSTILE],
    }


class Outside(HTMLParser):
    """Collects everything a browser would fetch, and whether tags are balanced."""

    VOID = frozenset({"meta", "link", "img", "br", "input", "use", "path"})

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.open: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "srcset", "data", "poster") or (tag in ("link", "use", "image") and name.endswith("href")):
                self.fetched.append(value)
            if tag == "a" and name == "href":
                self.links.append(value)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag, tag


def read_page(path: Path) -> tuple[str, Outside]:
    text = path.read_text()
    page = Outside()
    page.feed(text)
    assert page.open == []
    return text, page


def assert_offline(path: Path) -> str:
    text, page = read_page(path)
    assert [found for found in page.fetched if not found.startswith(("data:", "#"))] == []
    assert [link for link in page.links if re.match(r"\w+:|//", link)] == []
    assert not re.search(r"url\((?!#|data:|\"#|'#)|@import|fetch\(|XMLHttpRequest|sendBeacon|WebSocket", text)
    return text


def test_a_report_without_modalities_fetches_nothing_and_escapes_what_comes_from_data(tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", Page(make_results(), [], {}, []))
    text = assert_offline(tmp_path / "report.html")
    assert "<script>alert" not in text
    assert text.count("&lt;script&gt;alert") == 2


def test_a_spliced_loss_is_shown_with_its_documents(tmp_path: Path) -> None:
    names = (
        "clean",
        "spliced",
        "zero",
        "mean",
        "recovered_from_zero",
        "recovered_from_mean",
        "kl_spliced",
        "kl_recovered_from_mean",
    )
    results = make_results(splice={name: number(1.5, 77) for name in names})
    write_report(tmp_path / "report.html", Page(results, [], {}, []))
    text = assert_offline(tmp_path / "report.html")
    assert "<td>77</td>" in text
    assert {"measure": "loss, spliced", "one": "1.500"} in summary_table(results)


def test_the_report_of_a_run_fetches_nothing_links_to_files_that_are_there_and_is_light(scenes_report: Path) -> None:
    text = assert_offline(scenes_report)
    _, page = read_page(scenes_report)
    for link in page.links:
        found = text.count(f'id="{link[1:]}"') if link.startswith("#") else (scenes_report.parent / link).is_file()
        assert found, link
    assert scenes_report.stat().st_size < 10_000_000
    assert "data:image/png;base64," in text


def find_chromium() -> str | None:
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.skipif(find_chromium() is None, reason="no chromium on this machine: apt-get install chromium")
def test_a_browser_opens_the_report_without_an_error_or_a_request(scenes_report: Path, tmp_path: Path) -> None:
    log = tmp_path / "net.json"
    quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
    command = [
        str(find_chromium()),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        *quiet,
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    command += ["--enable-logging=stderr", f"--log-net-log={log}", "--virtual-time-budget=3000", "--dump-dom"]
    done = subprocess.run(
        [*command, scenes_report.resolve().as_uri()],
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert "CONSOLE" not in done.stderr
    assert "Uncaught" not in done.stderr
    # The script ran: every header of a sortable table became a button.
    assert done.stdout.count("<button>") > 10
    page_requests = re.findall(r'"url":"(https?://[^"]*)"', log.read_text())
    assert [url for url in page_requests if "google" not in url and "gvt1" not in url] == []


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (show_number(number(0.12345), 2), "0.12"),
        (show_number(number(None)), "-"),
        (show_number(float("nan")), "-"),
        (show_interval(number(0.5), 1), "[0.4, 0.6]"),
        (show_interval(number(None)), ""),
        (show_percent(0.25), "25.0%"),
        (show_share(number(0.5)), "50.0% (40 to 60)"),
        (show_share(number(None)), "-"),
    ],
)
def test_numbers_are_shown_with_their_intervals_and_undefined_ones_as_a_dash(shown: str, expected: str) -> None:
    assert shown == expected


def make_histograms(seed: int = 0):
    score = np.random.default_rng(seed).random(50)
    everything = np.ones(50, dtype=bool)
    return {kind: histogram(score, np.ones(50), everything, 20) for kind in ("features", "energy", "frequent")}


def make_concepts(n: int = 5) -> list[dict]:
    kinds = ("shared", "image", "text")
    return [
        {"sae": sae, "concept": f"c{i}", "visibility": kinds[i % 3], "score": i / n, "recovered": i > 2}
        for sae in ("one", "two")
        for i in range(n)
    ]


def test_the_histogram_figure_comes_with_one_row_per_bar() -> None:
    chart = draw_modality({"one": make_histograms(), "two": make_histograms(1)})
    assert len(chart.rows) == 2 * 3 * 20
    shares = [row["share"] for row in chart.rows if (row["sae"], row["histogram"]) == ("two", "energy")]
    assert sum(shares) == pytest.approx(1)
    assert len(chart.figure.axes) == 6


def test_the_reconstruction_figure_comes_with_one_row_per_point_and_draws_undefined_ones_nowhere() -> None:
    undefined = RECONSTRUCTION | {"r2": number(None)}
    chart = draw_reconstruction({"one": {"image": RECONSTRUCTION, "text": undefined}, "two": {"text": RECONSTRUCTION}})
    assert [(row["sae"], row["modality"], row["r2"]) for row in chart.rows] == [
        ("one", "image", 0.8),
        ("one", "text", None),
        ("two", "text", 0.8),
    ]


@pytest.mark.parametrize("n", [1, 2, 5, 40])
def test_the_concept_figure_has_room_for_any_number_of_concepts(n: int) -> None:
    chart = draw_concepts(make_concepts(n))
    assert len(chart.rows) == 2 * n


def test_the_confusion_figure_comes_with_one_row_per_cell() -> None:
    table = {name: {"shared": 1, "image": 0, "text": 2} for name in ("shared", "image", "text", "undecided")}
    chart = draw_confusion({"one": table})
    assert len(chart.rows) == 12
    assert sum(row["n_features"] for row in chart.rows) == 12


def test_a_saved_figure_has_three_files_the_same_bytes_each_time_and_follows_the_colour_of_the_page(tmp_path: Path) -> None:
    first = save_chart(draw_modality({"one": make_histograms()}), tmp_path / "a", "modality")
    second = save_chart(draw_modality({"one": make_histograms()}), tmp_path / "b", "modality")
    assert first == second
    assert first.startswith("<svg")
    assert "currentColor" in first
    for ending in ("png", "pdf", "csv"):
        one, other = ((tmp_path / folder / f"modality.{ending}").read_bytes() for folder in "ab")
        assert one == other, ending
        assert len(one) > 500


def test_figures_are_embedded_with_their_description(tmp_path: Path) -> None:
    svg = save_chart(draw_modality({HOSTILE: make_histograms()}), tmp_path / "figures", "modality")
    figures = [Figure("modality", "Title.", "Caption.", svg, "what it shows")]
    write_report(tmp_path / "report.html", Page(make_results(), figures, {}, []))
    text = assert_offline(tmp_path / "report.html")
    assert 'aria-label="what it shows"' in text
    assert "<script>alert" not in text


def test_the_strongest_items_come_first_and_ties_in_the_order_of_the_items() -> None:
    column = csc_array(np.array([[0.0], [2.0], [5.0], [2.0], [1.0]]))
    rows, values = strongest(column, 0, 3)
    assert rows.tolist() == [2, 1, 3]
    assert values.tolist() == [5, 2, 2]


def test_a_caption_that_many_items_share_is_shown_once() -> None:
    assert find_first(["person", "person", "chef", "person", "cook", "nurse"], 3) == [0, 2, 4]
    assert find_first([], 3) == []


def test_dictionaries_of_nearly_equal_l0_are_not_drawn_far_apart() -> None:
    near = {name: {"text": RECONSTRUCTION | {"l0": number(l0)}} for name, l0 in (("one", 8.0), ("two", 8.08))}
    for axis in draw_reconstruction(near).figure.axes:
        left, right = axis.get_xlim()
        assert 0.08 / (right - left) < 0.1
        assert left < 8.0 < 8.08 < right


def test_captions_on_cards_are_escaped(tmp_path: Path, scenes_report: Path) -> None:
    from thresher.analyze.run import load_results

    results = load_results(scenes_report.parent)
    shown = Shown(HOSTILE, "", 1.0)
    card = Card(3, "shared", 0.5, 0.4, 0.6, 9, 9, 0.1, HOSTILE, "shared", 0.5, 0.5, [shown], [shown])
    write_report(tmp_path / "report.html", Page(results, [], {"topk": [card]}, []))
    text = assert_offline(tmp_path / "report.html")
    assert "<script>alert" not in text
    assert text.count("&lt;script&gt;alert") == 3
