"""The laws of the figures for papers: drawn from the files alone, with the data beside them, left out with a reason."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from thresher.analyze.plots.draw import draw_run, list_figures
from thresher.analyze.plots.modality import plot_histograms
from thresher.analyze.plots.overview import plot_pareto
from thresher.analyze.plots.read import read_run
from thresher.analyze.plots.style import PAGE
from thresher.analyze.run import AnalyzeConfig, run
from thresher.config import validate
from thresher.errors import AnalysisError


@pytest.fixture(scope="module")
def index(scenes_report: Path) -> dict:
    return json.loads((scenes_report.parent / "figures" / "index.json").read_text())


def test_every_figure_of_the_list_is_there_as_pdf_png_and_csv_or_has_a_reason(scenes_report: Path, index: dict) -> None:
    folder = scenes_report.parent / "figures"
    names = [one["name"] for one in index["figures"]]
    assert {name for name, _, _ in list_figures()} <= set(names)
    for one in index["figures"]:
        assert bool(one["files"]) != bool(one["left_out"]), one
        for file in one["files"]:
            content = (folder / file).read_bytes()
            assert content.startswith({"pdf": b"%PDF", "png": b"\x89PNG"}.get(file[-3:], b"")), file
            assert file[-3:] != "csv" or content.count(b"\n") > 1
        pictures = [Image.open(folder / file) for file in one["files"] if file.endswith("png")]
        assert all(picture.width <= 1.03 * PAGE * 200 for picture in pictures), one
        assert all(np.asarray(picture.convert("L")).min() < 100 for picture in pictures), one


def test_a_figure_without_its_data_says_what_it_needs(index: dict) -> None:
    reasons = {one["name"]: one["left_out"] for one in index["figures"]}
    assert reasons["07-stability"] == "needs dictionaries that differ by seed alone"
    assert reasons["08-steps"] is None


def test_figures_are_drawn_from_the_files_alone_and_the_same_twice(scenes_report: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(scenes_report.parent, copy, ignore=shutil.ignore_patterns("figures", "site"))
    written = draw_run(copy, "few")
    assert {name[:2] for name in written if name != "index.json"} == {"01", "02", "05", "06", "08"}
    for name in written:
        if name != "index.json":
            assert (copy / "figures" / name).read_bytes() == (scenes_report.parent / "figures" / name).read_bytes(), name
    assert draw_run(copy, "none") == []
    with pytest.raises(AnalysisError, match=r"metrics.json is missing"):
        draw_run(tmp_path, "all")


def test_the_rows_behind_the_histograms_are_the_shares_of_the_features(scenes_report: Path) -> None:
    tables = read_run(scenes_report.parent)
    one = tables.saes["mp"]
    assert one.features is not None
    assert one.groups is not None
    assert one.dictionary is not None
    chart = plot_histograms({"mp": one.features}, {"mp": one.dictionary["histogram_all"]}, {"mp": one.groups}, 30)
    score = one.features["mu_energy"]
    for kind in ("unweighted", "energy-weighted", "n_fire >= 30"):
        shares = [row["share"] for row in chart.rows if row["row"] == kind]
        assert sum(shares) == pytest.approx(1)
    first = [row for row in chart.rows if row["row"] == "unweighted"]
    assert first[0]["share"] == pytest.approx(np.mean(score[np.isfinite(score)] < 0.05))
    assert sum(row["expected"] for row in first) == pytest.approx(1)


def test_dictionaries_that_differ_by_seed_are_one_point_with_a_band() -> None:
    rows = [
        {"sae": name, "family": "mp 64", "kind": kind, "modality": "image", "l0": l0, "r2": r2, "fvu": 1 - r2, "cosine": r2}
        | {"cosine_of_mean": 0.2}
        for name, kind, l0, r2 in (("a", "k8", 8.0, 0.8), ("b", "k8", 8.0, 0.9), ("c", "k4", 4.0, 0.5))
    ]
    chart = plot_pareto(rows)
    line = next(line for line in chart.figure.axes[0].lines if line.get_label() == "mp 64")
    assert np.asarray(line.get_xydata()) == pytest.approx(np.array([[4.0, 0.5], [8.0, 0.85]]))
    assert [row["sae"] for row in chart.rows] == ["a", "b", "c"]


def test_one_modality_has_figures_of_its_reconstruction_and_reasons_for_the_rest(make_store, make_sae, tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", 60, modalities=("image",))
    sae = make_sae(store, tmp_path / "sae", ("vision.embed",), rows=3000)
    values = {"store": store, "saes": {"only": sae}, "out": tmp_path / "out", "n_bootstrap": 20, "figures": "all"}
    out = run(validate(AnalyzeConfig, values, "test")).parent
    found = {one["name"]: one for one in json.loads((out / "figures" / "index.json").read_text())["figures"]}
    drawn = {name for name, one in found.items() if one["files"]}
    assert drawn == {"01-pareto", "09-recovery", "09-rank-and-babel"}
    assert pq.read_schema(out / "only" / "curves.parquet").names == ["curve", "series", "x", "y", "n"]
    assert not (out / "space.json").exists()
