"""Figures of a comparison: Pareto plot, headline shares, likeness of the dictionaries."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from thresher.analyze.compare.open import Entry
from thresher.analyze.plots.overview import plot_pareto
from thresher.analyze.plots.pick import MEASURES, describe_family
from thresher.analyze.plots.style import (
    COLUMN,
    GREY,
    INK,
    PAGE,
    PRINT,
    Chart,
    Plot,
    error_of,
    make_figure,
    save_plot,
    series_style,
    value_of,
)

SHARES = (
    "margin share, shared self",
    "margin share, shared cross",
    "margin share, bridged",
    "energy share on images, shared",
    "energy share on texts, shared",
    "gap share, modality-specific",
)
MANY = 8
"""Dictionaries above which cells have no room for numbers."""
CELL, LETTER = 0.16, 0.052
"""Inches of a cell without a number, and of a letter of a label."""
GRIDS = {
    "stability": "matched cosine, less chance",
    "coverage_image": "coverage on images, less chance",
    "coverage_text": "coverage on texts, less chance",
}


def draw_comparison(
    folder: Path,
    entries: Sequence[Entry],
    rows: Sequence[Mapping[str, Any]],
    pairs: Sequence[Mapping[str, Any]],
    kinds: Mapping[str, str],
) -> list[str]:
    """Write the figures that the numbers allow; names of the files."""
    plots = [Plot("pareto", "Reconstruction against sparsity.", plot_pareto(_list_reconstructions(entries, kinds)))]
    if any(row["measure"] in SHARES and row["value"] is not None for row in rows):
        plots.append(Plot("shares", "Headline shares.", plot_headline(rows)))
    if pairs:
        plots.append(
            Plot("dictionaries", "Likeness of dictionaries.", plot_likeness([entry.label for entry in entries], pairs))
        )
    return [name for plot in plots for name in save_plot(folder, plot)]


def _list_reconstructions(entries: Sequence[Entry], kinds: Mapping[str, str]) -> list[dict[str, Any]]:
    """Rows of `plot_pareto`: a family is an architecture and size on one store."""
    stores = {entry.run.tables.metrics["store"]["fingerprint"] for entry in entries}
    rows: list[dict[str, Any]] = []
    for entry in entries:
        family = describe_family(entry.metrics)
        if len(stores) > 1:
            family += f", {entry.run.name}"
        for side in ("image", "text"):
            found = entry.metrics["reconstruction"].get(side)
            if found is not None:
                kind = kinds.get(entry.label, entry.label)
                row = {"sae": entry.label, "family": family, "kind": kind, "modality": side}
                rows.append(row | {key: found[key]["value"] for key in MEASURES})
    return rows


def plot_headline(rows: Sequence[Mapping[str, Any]]) -> Chart:
    """Shares of the margin, energy and gap with their intervals, a line per dictionary."""
    labels = list(dict.fromkeys(row["dictionary"] for row in rows))
    chosen = [row for row in rows if row["measure"] in SHARES]
    with mpl.rc_context(PRINT):
        figure = make_figure(PAGE, 0.9 + 0.32 * len(labels))
        axes = figure.subplots(1, len(SHARES), sharey=True)
        for axis, measure in zip(axes, SHARES, strict=True):
            for row in chosen:
                if row["measure"] == measure and row["value"] is not None:
                    place = labels.index(row["dictionary"])
                    below, above = error_of(row)
                    style = series_style(place)
                    axis.errorbar(
                        value_of(row), place, xerr=[[below], [above]], fmt=style["marker"], color=style["color"], capsize=2
                    )
            axis.axvline(0, color=GREY, linewidth=0.6, linestyle=":")
            axis.set_title(measure.replace(", ", "\n").replace(" on ", "\non "), fontsize=6.5)
            axis.set_ylim(len(labels) - 0.5, -0.5)
        axes[0].set_yticks(range(len(labels)), labels)
    return Chart(figure, [dict(row) for row in chosen], "Headline shares with intervals.")


def plot_likeness(labels: Sequence[str], pairs: Sequence[Mapping[str, Any]]) -> Chart:
    """Stability and coverage between every two dictionaries, less what chance gives; empty where it does not apply.

    Side by side with a number in each cell; of more than MANY dictionaries one below the other, without.
    """
    names = {key: title for key, title in GRIDS.items() if any(pair[key] is not None for pair in pairs)}
    many = len(labels) > MANY
    grids = {key: _fill(labels, pairs, key) for key in names}
    norm = _span(list(grids.values()))
    with mpl.rc_context(PRINT):
        figure, axes, bar = (_stack_panels if many else _line_up)(labels, max(len(names), 1))
        for axis, (key, title) in zip(axes, names.items(), strict=False):
            axis.imshow(grids[key], cmap="cividis", norm=norm)
            axis.set_xticks(range(len(labels)), [] if many else labels, rotation=45, ha="right", fontsize=6)
            axis.tick_params(length=0)
            axis.set_title(title, fontsize=6.5)
            if not many:
                _write_numbers(axis, grids[key], norm)
        for axis in axes if many else axes[:1]:
            axis.set_yticks(range(len(labels)), labels, fontsize=6)
        if many:
            axes[-1].set_xticks(range(len(labels)), labels, rotation=90, ha="center", fontsize=6)
        figure.colorbar(ScalarMappable(norm, "cividis"), label="less chance", **bar)
    return Chart(figure, [dict(pair) for pair in pairs], "Likeness of every two dictionaries.")


def _line_up(labels: Sequence[str], n: int) -> tuple[Figure, list[Axes], dict[str, Any]]:
    """`n` panels side by side, with room for a number in each cell, and where the scale goes."""
    size = max(1.3, 0.32 * len(labels))
    figure = make_figure(max(COLUMN, min(PAGE, 1.0 + (size + 0.35) * n)), size + 1.1)
    axes = list(figure.subplots(1, n, squeeze=False, sharey=True).ravel())
    return figure, axes, {"ax": axes, "shrink": 0.6, "aspect": 16}


def _stack_panels(labels: Sequence[str], n: int) -> tuple[Figure, list[Axes], dict[str, Any]]:
    """`n` panels one below the other, of exactly the size that their labels leave, and where the scale goes."""
    words, gap, beside = LETTER * max(len(label) for label in labels) + 0.1, 0.3, 0.75
    size = max(1.5, min(CELL * len(labels), PAGE - words - beside))
    width, height = words + size + beside, words + n * (size + gap)
    figure = make_figure(width, height)
    figure.set_layout_engine("none")
    share = (size / width, size / height)
    axes = [figure.add_axes((words / width, (words + k * (size + gap)) / height, *share)) for k in reversed(range(n))]
    # The scale lies beside the first panel.
    inner = figure.add_axes(((words + size + 0.15) / width, 1 - (gap + 0.8 * size) / height, 0.1 / width, 0.6 * share[1]))
    return figure, axes, {"cax": inner}


def _write_numbers(axis: Axes, grid: np.ndarray, norm: Normalize) -> None:
    for (i, j), value in np.ndenumerate(grid):
        if np.isfinite(value):
            colour = "white" if float(norm(value)) < 0.55 else INK
            axis.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=5.5, color=colour)


def _span(grids: Sequence[np.ndarray]) -> Normalize:
    """From 0, or the least where it is below, to the most: over all of 0 to 1 unlike dictionaries would all look alike."""
    values = np.concatenate([grid[np.isfinite(grid)] for grid in grids] or [np.zeros(0)])
    low, high = min(0.0, values.min(initial=0)), max(0.1, values.max(initial=0.1))
    return Normalize(float(np.floor(10 * low) / 10), float(np.ceil(10 * high) / 10))


def _fill(labels: Sequence[str], pairs: Sequence[Mapping[str, Any]], key: str) -> np.ndarray:
    """What the line has of the column, less chance."""
    grid = np.full((len(labels), len(labels)), np.nan)
    for pair in pairs:
        i, j = labels.index(pair["first"]), labels.index(pair["second"])
        if pair[key] is None:
            continue
        if key == "stability":
            grid[i, j] = grid[j, i] = pair[key] - pair["stability_null"]
            continue
        side = key.removeprefix("coverage_")
        grid[i, j] = pair[key] - pair[f"coverage_by_chance_{side}"]
        grid[j, i] = pair[f"coverage_back_{side}"] - pair[f"coverage_back_by_chance_{side}"]
    return grid
