"""Figures for papers and for the report (matplotlib). Each function gives the figure and the rows of data behind it."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from thresher.analyze.metrics.modality import Histogram
from thresher.analyze.tables import write_rows
from thresher.files import write_atomic

IMAGE_COLOUR, TEXT_COLOUR, SHARED_COLOUR, GREY = "#0072b2", "#d55e00", "#009e73", "#8c8c8c"
"""Okabe and Ito's palette, told apart with any colour vision."""
INK = "#010203"
"""Colour of text and lines; the report replaces it by the colour of the page's own text."""
PAGE_COLOURS = {IMAGE_COLOUR: "--image", TEXT_COLOUR: "--text", SHARED_COLOUR: "--shared"}
"""Variables of the report's style sheet, which are lighter on a dark page."""
DOTS_PER_INCH = 150
STYLE: dict[Any, Any] = {
    "font.size": 8.5,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.titlesize": 9,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
}
KINDS = ("shared", "image", "text")
MARKERS = "osD^vP*X<>"
HISTOGRAMS = {"features": "every feature counts once", "energy": "weighted by energy", "frequent": "without rare features"}


class Chart(NamedTuple):
    """A figure with its data."""

    figure: Figure
    rows: list[dict[str, Any]]
    """One dict per mark, the same keys in each."""
    alt: str
    """What the figure shows, for those who cannot see it."""


def draw_modality(histograms: Mapping[str, Mapping[str, Histogram]]) -> Chart:
    """Histograms of the modality score: a line per dictionary; unweighted, energy-weighted, rare features left out."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9, 0.7 + 1.35 * len(histograms)), layout="constrained")
        axes = np.atleast_2d(figure.subplots(len(histograms), len(HISTOGRAMS), sharex=True, sharey="row", squeeze=False))
        rows: list[dict[str, Any]] = []
        for line, (name, found) in zip(axes, histograms.items(), strict=True):
            line[0].set_ylabel(f"{name}\nshare")
            for axis, kind in zip(line, HISTOGRAMS, strict=True):
                rows += _draw_histogram(axis, name, kind, found[kind])
        for axis, title in zip(axes[0], HISTOGRAMS.values(), strict=True):
            axis.set_title(title, pad=13)
        for axis in axes[-1]:
            axis.set_xlabel("modality score (0 text, 1 image)")
    return Chart(figure, rows, "Histograms of the modality score of features, one line per autoencoder.")


def _draw_histogram(axis: Axes, name: str, kind: str, found: Histogram) -> list[dict[str, Any]]:
    middle = (found.edges[1:] + found.edges[:-1]) / 2
    colours = [TEXT_COLOUR if at < 0.1 else IMAGE_COLOUR if at > 0.9 else SHARED_COLOUR for at in middle]
    axis.bar(middle, found.share, width=np.diff(found.edges) * 0.9, color=colours, linewidth=0)
    axis.text(0.5, 1.0, f"n = {found.n}", transform=axis.transAxes, ha="center", va="bottom", fontsize=7.5, color=GREY)
    axis.set_xlim(0, 1)
    return [
        {"sae": name, "histogram": kind, "from": low, "to": high, "share": share, "n_features": found.n}
        for low, high, share in zip(found.edges[:-1], found.edges[1:], found.share, strict=True)
    ]


def draw_reconstruction(results: Mapping[str, Mapping[str, Any]]) -> Chart:
    """R2 and cosine against L0 per dictionary and modality, with what predicting the mean scores.

    `results` holds for each dictionary the part `reconstruction` of metrics.json.
    """
    rows: list[dict[str, Any]] = []
    for name, found in results.items():
        for at in [at for at in ("image", "text") if at in found]:
            rows += [{"sae": name, "modality": at} | {key: one["value"] for key, one in found[at].items()}]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9, 3.3), layout="constrained")
        left, right = figure.subplots(1, 2)
        for axis, measure, floor in ((left, "r2", None), (right, "cosine", "cosine_of_mean")):
            _draw_against_l0(axis, rows, measure, floor)
        left.set_ylabel("R2 (share of variance explained)")
        right.set_ylabel("cosine with the activation")
    return Chart(figure, rows, "R2 and cosine of the reconstructions against the number of active atoms.")


def _draw_against_l0(axis: Axes, rows: Sequence[dict[str, Any]], measure: str, floor: str | None) -> None:
    names = list(dict.fromkeys(row["sae"] for row in rows))
    for row in rows:
        colour = IMAGE_COLOUR if row["modality"] == "image" else TEXT_COLOUR
        if row[measure] is None:
            continue
        axis.plot(
            row["l0"], row[measure], MARKERS[names.index(row["sae"]) % len(MARKERS)], color=colour, markersize=6, alpha=0.85
        )
    for at, colour in (("image", IMAGE_COLOUR), ("text", TEXT_COLOUR)):
        found = [row for row in rows if row["modality"] == at]
        height = (found[0][floor] if floor else 0.0) if found else None
        if height is not None:
            axis.axhline(height, color=colour, linestyle=":", linewidth=1)
    axis.set_xlabel("L0 (different atoms per row)")
    axis.set_ylim(top=1.02)
    drawn = [row["l0"] for row in rows if row[measure] is not None]
    if drawn:
        # Dictionaries matched in L0 differ by a percent; a tight axis would draw that as a spread.
        axis.set_xlim(0.8 * min(drawn), 1.2 * max(drawn) + 0.1)
    for name, marker in zip(names, MARKERS, strict=False):
        axis.plot([], [], marker, color=GREY, label=name)
    for at, colour in (("image", IMAGE_COLOUR), ("text", TEXT_COLOUR)):
        if any(row["modality"] == at for row in rows):
            axis.plot([], [], "-", color=colour, label=at, linewidth=4)
    axis.plot([], [], ":", color=GREY, label="predicting the mean")
    axis.legend(fontsize=7.5, loc="best")


def draw_concepts(concepts: Sequence[Mapping[str, Any]]) -> Chart:
    """How well each concept is tracked by the best feature of each dictionary; a dot where the class is right too.

    `concepts`: rows of concepts.csv. Score: phi, for shared concepts the smaller of the two modalities' phi.
    """
    saes = list(dict.fromkeys(row["sae"] for row in concepts))
    found = sorted({(KINDS.index(row["visibility"]), row["concept"]) for row in concepts})
    panels = [panel for panel in ([one for one in found if one[0] == 0], [one for one in found if one[0] > 0]) if panel]
    height = 1.1 + 0.155 * max(len(panel) for panel in panels)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(0.9 + len(panels) * (1.7 + 0.42 * len(saes)), height), layout="constrained")
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        images = [_draw_scores(axis, panel, saes, concepts) for axis, panel in zip(axes, panels, strict=True)]
        shrink = min(1.0, 3 / height)
        figure.colorbar(images[0], ax=list(axes), label="phi of the best feature", shrink=shrink, pad=0.02, aspect=14)
    return Chart(figure, [dict(row) for row in concepts], "How well each ground-truth concept is tracked by its best feature.")


def _draw_scores(
    axis: Axes, panel: Sequence[tuple[int, str]], saes: Sequence[str], concepts: Sequence[Mapping[str, Any]]
) -> AxesImage:
    names = [name for _, name in panel]
    scores, recovered = np.full((len(names), len(saes)), np.nan), np.zeros((len(names), len(saes)), dtype=bool)
    for row in concepts:
        if row["concept"] in names:
            at = names.index(row["concept"]), saes.index(row["sae"])
            scores[at], recovered[at] = row["score"], row["recovered"]
    image = axis.imshow(scores, aspect="auto", cmap="cividis", vmin=0, vmax=1, interpolation="nearest")
    axis.scatter(*np.nonzero(recovered)[::-1], s=9, color="white", edgecolors="black", linewidths=0.4)
    axis.set_xticks(range(len(saes)), saes, rotation=35, ha="left", rotation_mode="anchor")
    axis.xaxis.tick_top()
    axis.set_yticks(range(len(names)), names, fontsize=7)
    for label, (kind, _) in zip(axis.get_yticklabels(), panel, strict=True):
        label.set_color((SHARED_COLOUR, IMAGE_COLOUR, TEXT_COLOUR)[kind])
    axis.tick_params(length=0)
    for spine in axis.spines.values():
        spine.set_visible(False)
    return image


def draw_confusion(tables: Mapping[str, Mapping[str, Mapping[str, int]]]) -> Chart:
    """Class of the matched features (lines) against the true visibility of their concepts (columns), per dictionary."""
    rows: list[dict[str, Any]] = []
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(max(4.0, 2.3 * len(tables) + 0.6), 2.6), layout="constrained")
        axes = figure.subplots(1, len(tables), squeeze=False)[0]
        for axis, (name, table) in zip(axes, tables.items(), strict=True):
            rows += _draw_table(axis, name, table)
        axes[0].set_ylabel("class of the feature")
        axes[0].set_yticklabels(list(next(iter(tables.values()))))
    return Chart(figure, rows, "Class of matched features against the true visibility of the concept they track.")


def _draw_table(axis: Axes, name: str, table: Mapping[str, Mapping[str, int]]) -> list[dict[str, Any]]:
    lines, columns = list(table), list(next(iter(table.values())))
    counts = np.array([[table[line][column] for column in columns] for line in lines], dtype=float)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axis.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (row, column), count in np.ndenumerate(counts):
        colour = "white" if share[row, column] > 0.55 else "#1a1a1a"
        axis.text(column, row, f"{count:.0f}", ha="center", va="center", color=colour)
    axis.set_title(name)
    axis.set_xticks(range(len(columns)), columns)
    axis.set_yticks(range(len(lines)), [""] * len(lines))
    axis.set_xlabel("true visibility")
    axis.tick_params(length=0)
    return [
        {"sae": name, "class": line, "visibility": column, "n_features": int(table[line][column])}
        for line in lines
        for column in columns
    ]


def save_chart(chart: Chart, folder: Path, name: str) -> str:
    """Write `name`.png, .pdf and .csv; returns the figure as SVG for the report, in the colour of the text around it."""
    figure = chart.figure
    settings: dict[Any, Any] = STYLE | {"svg.hashsalt": name}
    with mpl.rc_context(settings):
        figure.draw_without_rendering()
        # The layout is settled: three formats need not compute it three times.
        figure.set_layout_engine("none")
        write_atomic(folder / f"{name}.png", [render(figure, "png", {"Software": None}, dpi=DOTS_PER_INCH)])
        write_atomic(folder / f"{name}.pdf", [render(figure, "pdf", {"CreationDate": None, "Producer": None})])
        svg = render(figure, "svg", {"Date": None, "Creator": None}, transparent=True).decode()
    write_rows(folder / f"{name}.csv", chart.rows)
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    for colour, variable in PAGE_COLOURS.items():
        svg = svg.replace(colour, f"var({variable}, {colour})")
    return svg


def render(figure: Figure, form: str, metadata: dict[str, Any], **options: Any) -> bytes:
    """The figure as a file of this form."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=form, metadata=metadata, **options)
    return buffer.getvalue()
