"""The laws of what figures show: nothing of the data is left out, no name is cut, dictionaries keep their order."""

from itertools import combinations

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from thresher.analyze.compare.plots import MANY, plot_likeness
from thresher.analyze.plots.bridges import plot_partners
from thresher.analyze.plots.overview import plot_cumulative
from thresher.analyze.plots.pick import MEASURES, list_reconstructions
from thresher.analyze.plots.read import RunTables, SaeTables


def list_cut(figure: Figure) -> list[str]:
    """Texts of the axes that reach beyond the figure."""
    canvas = FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    whole, found = figure.bbox, []
    for axis in figure.axes:
        for text in (*axis.get_xticklabels(), *axis.get_yticklabels(), axis.title, axis.xaxis.label, axis.yaxis.label):
            box = text.get_window_extent(canvas.get_renderer())
            inside = whole.x0 - 1 <= box.x0 and box.x1 <= whole.x1 + 1 and whole.y0 - 1 <= box.y0 and box.y1 <= whole.y1 + 1
            if text.get_text() and text.get_visible() and not inside:
                found.append(text.get_text())
    return found


@pytest.mark.parametrize("n", [2, MANY, MANY + 1, 18])
def test_names_of_compared_dictionaries_are_not_cut(n: int) -> None:
    labels = [f"a-long-name-of-a-run/batch_topk-{k}" for k in range(n)]
    values = {"stability": 0.5, "stability_null": 0.1, "coverage_image": 0.4, "coverage_by_chance_image": 0.1}
    values |= {"coverage_back_image": 0.3, "coverage_back_by_chance_image": 0.1, "coverage_text": None}
    pairs = [{"first": a, "second": b} | values for a, b in combinations(labels, 2)]
    figure = plot_likeness(labels, pairs).figure
    assert list_cut(figure) == []
    named = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert named == labels


def test_every_significant_partner_is_drawn() -> None:
    generator = np.random.default_rng(0)
    kinds = np.array(["other", "shared", "self", "bridge"] * 30)
    edges = {"rho": generator.random(120), "cos": generator.uniform(-1, 1, 120), "q": generator.random(120), "class": kinds}
    edges |= {"i": np.arange(120), "j": np.arange(120)}
    groups = {"one": {"crossmodal": {"deranged": {"largest_rho": 0.3}}}}
    axis = plot_partners({"one": edges}, groups).figure.axes[0]
    drawn = np.concatenate([np.asarray(line.get_ydata()) for line in axis.lines if "q <= 0.05" in str(line.get_label())])
    assert sorted(drawn) == sorted(edges["rho"][edges["q"] <= 0.05])


def test_lines_of_up_to_twelve_dictionaries_have_a_colour_each() -> None:
    curve = {"curve": np.array(["energy"] * 4), "series": np.array(["image", "image", "text", "text"])}
    curve |= {"x": np.array([1.0, 2, 1, 2]), "y": np.array([0.5, 1, 0.4, 1])}
    names = [str(k) for k in range(12)]
    status = {"status": np.array(["ok", "rare"])}
    axis = plot_cumulative(dict.fromkeys(names, curve), dict.fromkeys(names, status)).figure.axes[0]
    assert len({line.get_color() for line in axis.lines if line.get_label() in names}) == 12


def test_dictionaries_are_listed_in_the_order_of_the_analysis() -> None:
    nothing = SaeTables(None, None, None, None, None, None, None, None)
    one = {"architecture": {"kind": "topk"}, "d_sae": 8, "reconstruction": {"image": {key: {"value": 0.5} for key in MEASURES}}}
    # JSON files have sorted keys.
    run = RunTables({"saes": {"a": one, "b": one | {"d_sae": 9}}}, None, {"b": nothing, "a": nothing})
    assert [row["sae"] for row in list_reconstructions(run)] == ["b", "a"]
