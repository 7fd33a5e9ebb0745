"""What all figures have in common: sizes, colours, files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from thresher.analyze.battery.classes import (
    BIAS,
    COLLINEAR,
    DEAD,
    HETEROGENEOUS,
    POLYSEMANTIC,
    RARE,
    SHARED,
    SPECIFIC,
    UNDECIDED,
)
from thresher.analyze.figures import GREY, IMAGE_COLOUR, INK, STYLE, TEXT_COLOUR, Chart, render
from thresher.analyze.tables import write_rows
from thresher.files import write_atomic

__all__ = ["GREY", "IMAGE_COLOUR", "INK", "TEXT_COLOUR", "Chart"]

COLUMN, PAGE = 3.4, 7.0
"""Widths of a column and of a page, inches; text is 7 points there."""
PER_FIGURE = 4
"""Dictionaries side by side in one figure; more go to further figures."""
PRINT: dict[Any, Any] = STYLE | {
    "font.size": 7,
    "axes.titlesize": 7.5,
    "axes.labelsize": 7,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "legend.fontsize": 6.5,
    "legend.handlelength": 1.4,
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
}
DOTS_PER_INCH = 200
CLASS_COLOURS: Mapping[str, str] = {
    SHARED: "#009e73",
    POLYSEMANTIC: "#ba8d00",
    COLLINEAR: "#7f0830",
    HETEROGENEOUS: "#7a4cc0",
    BIAS: "#2c1263",
    SPECIFIC: "#4f8ff7",
    UNDECIDED: "#808790",
    RARE: "#b3bac2",
    DEAD: "#e4e7eb",
}
"""Those of the site by day: at least 11 apart (CIEDE2000) with any colour vision, none that of a modality; greys for what says
nothing."""
SERIES = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#332288", "#000000"),
    *("#999933", "#882255", "#44aa99", "#ddcc77"),
)
"""Colours of dictionaries, the first eight told apart with any colour vision; `MARKERS` tells all apart."""
MARKERS = "osD^vP*X<>ph"


class Plot(NamedTuple):
    """A figure of the list, or why there is none."""

    name: str
    """File name without ending."""
    title: str
    """What it answers."""
    chart: Chart | None
    reason: str | None = None
    """Why it is left out."""


def make_figure(width: float, height: float) -> Figure:
    """An empty figure, inches."""
    return Figure(figsize=(width, height), layout="constrained")


def grid_width(n: int) -> float:
    """Width of a figure with a panel for each of `n` dictionaries: a column at least, a page at most."""
    return max(COLUMN, min(PAGE, 0.5 + 1.65 * n))


def fit_columns(labels: Sequence[str]) -> int:
    """Columns of a legend that a page has room for."""
    longest = max((len(label) for label in labels), default=1)
    return max(1, min(len(labels), 5, 110 // (longest + 6)))


def count_axis(axis: Axes) -> None:
    """A logarithmic x axis of whole numbers, with powers of two as ticks."""
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))


def side_colour(name: str) -> str:
    """Blue for images, orange for texts, grey for both."""
    return {"image": IMAGE_COLOUR, "text": TEXT_COLOUR}.get(name, GREY)


def series_style(index: int) -> dict[str, Any]:
    """Colour and marker of the n-th dictionary."""
    return {"color": SERIES[index % len(SERIES)], "marker": MARKERS[index % len(MARKERS)]}


def label_panels(axes: Sequence[Axes]) -> None:
    """a, b, c, ... at the upper left of each panel."""
    for axis, letter in zip(axes, "abcdefghijklmnop", strict=False):
        axis.set_title(letter, loc="left", fontweight="bold", fontsize=8)


def finite(values: Any) -> np.ndarray:
    """As floats; what is undefined is NaN."""
    return np.asarray(values, dtype=np.float64)


def value_of(estimate: Mapping[str, Any] | None) -> float:
    """The value of an estimate of JSON; NaN where it is undefined."""
    value = None if estimate is None else estimate["value"]
    return float("nan") if value is None else float(value)


def error_of(estimate: Mapping[str, Any]) -> tuple[float, float]:
    """How far the interval reaches below and above the value; 0 without one."""
    if estimate["value"] is None or estimate["low"] is None:
        return 0.0, 0.0
    return max(estimate["value"] - estimate["low"], 0.0), max(estimate["high"] - estimate["value"], 0.0)


def save_plot(folder: Path, plot: Plot) -> list[str]:
    """Write PDF, PNG and CSV of a figure that is there; returns the names of the files."""
    if plot.chart is None:
        return []
    figure = plot.chart.figure
    with mpl.rc_context(PRINT):
        figure.draw_without_rendering()
        # The layout is settled: two formats need not compute it twice.
        figure.set_layout_engine("none")
        write_atomic(folder / f"{plot.name}.pdf", [render(figure, "pdf", {"CreationDate": None, "Producer": None})])
        write_atomic(folder / f"{plot.name}.png", [render(figure, "png", {"Software": None}, dpi=DOTS_PER_INCH)])
    write_rows(folder / f"{plot.name}.csv", plot.chart.rows)
    return [f"{plot.name}.{ending}" for ending in ("pdf", "png", "csv")]
