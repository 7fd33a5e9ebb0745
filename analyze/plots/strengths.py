"""How strongly features fire on images and on texts."""

from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes

from thresher.analyze.plots.read import Columns, Sums
from thresher.analyze.plots.style import IMAGE_COLOUR, INK, PRINT, TEXT_COLOUR, Chart, finite, grid_width, make_figure
from thresher.analyze.statistics.features import bin_edges

SIDES = {"image": (IMAGE_COLOUR, "-"), "text": (TEXT_COLOUR, "--")}
BALANCED = (0.1, 0.9)
"""Modality scores of the features in the lower row."""


def plot_strengths(sums: Mapping[str, Sums], features: Mapping[str, Columns]) -> Chart:
    """Firings per item by |z|, on images and on texts: of all features, and of those with a score from 0.1 to 0.9.

    Energies differ where one modality fires more often or more strongly; the lines tell which.
    """
    rows: list[dict[str, Any]] = []
    with mpl.rc_context(PRINT):
        figure = make_figure(grid_width(len(sums)), 3.2)
        axes = figure.subplots(2, len(sums), squeeze=False, sharex=True, sharey="row")
        for column, (name, one) in enumerate(sums.items()):
            score = finite(features[name]["mu_energy"])
            both = (score >= BALANCED[0]) & (score <= BALANCED[1])
            kinds = {"all features": np.ones(len(score), dtype=bool), "score 0.1 to 0.9": both}
            for axis, (kind, members) in zip(axes[:, column], kinds.items(), strict=True):
                rows += _draw(axis, name, kind, one, members)
            axes[0, column].set_title(name)
            axes[1, column].set_xlabel("|z|")
        for axis, kind in zip(axes[:, 0], ("all features", "score 0.1 to 0.9"), strict=True):
            axis.set_ylabel(f"{kind}\nfirings per item")
            # Only now: a limit stops the others of the line from making it wider.
            axis.set_ylim(bottom=0)
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return Chart(figure, rows, "Firings per item by strength, on images and on texts.")


def _draw(axis: Axes, name: str, kind: str, sums: Sums, members: np.ndarray) -> list[dict[str, Any]]:
    edges = bin_edges()
    counts = {side: sums[side].histogram[members].sum(axis=0) for side in SIDES}
    filled = np.flatnonzero(np.sum([sums[side].histogram.sum(axis=0) for side in SIDES], axis=0))
    if len(filled) == 0:
        return []
    shown = slice(int(filled[0]), int(filled[-1]) + 1)
    rows: list[dict[str, Any]] = []
    for side, (colour, style) in SIDES.items():
        per_item = counts[side][shown] / sums[side].n_rows
        axis.stairs(
            per_item, edges[shown.start : shown.stop + 1], color=colour, linestyle=style, linewidth=1.2, label=f"{side}s"
        )
        for low, high, y in zip(edges[shown], edges[shown.start + 1 : shown.stop + 1], per_item, strict=True):
            rows.append({"sae": name, "features": kind, "modality": side, "from": low, "to": high, "firings_per_item": y})
    axis.set_xscale("log", base=2)
    if not members.any():
        axis.text(0.5, 0.5, "no feature", transform=axis.transAxes, ha="center", va="center", color=INK)
    return rows
