"""Figure 2: how much of the shape of a histogram of modality scores is the number of firings."""

from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes

from thresher.analyze.plots.read import Columns
from thresher.analyze.plots.style import GREY, IMAGE_COLOUR, INK, PRINT, TEXT_COLOUR, Chart, finite, grid_width, make_figure

N_BINS = 20
BALANCED = "#009e73"


def plot_histograms(
    features: Mapping[str, Columns],
    controls: Mapping[str, Mapping[str, Any] | None],
    groups: Mapping[str, Mapping[str, Any]],
    least_fires: int,
) -> Chart:
    """Rows: every alive feature alike, weighted by energy, those of at least `least_fires` firings; a column per dictionary.

    Dark lines: what the same firings give when each falls on either modality alike. `controls` has it for every feature,
    `groups` for the frequent ones.
    """
    rows: list[dict[str, Any]] = []
    with mpl.rc_context(PRINT):
        figure = make_figure(grid_width(len(features)), 3.9)
        axes = figure.subplots(3, len(features), squeeze=False, sharex=True)
        for column, (name, table) in enumerate(features.items()):
            frequent = groups[name]["histogram"]
            edges = np.linspace(0, 1, N_BINS + 1)
            every, weighted, n = _count(table, edges)
            rows += _draw(axes[0, column], name, "unweighted", edges, every, controls.get(name), n)
            rows += _draw(axes[1, column], name, "energy-weighted", edges, weighted, None, n)
            rows += _draw(
                axes[2, column],
                name,
                f"n_fire >= {least_fires}",
                finite(frequent["edges"]),
                finite(frequent["observed_energy"]),
                frequent,
                int(frequent["n"]),
            )
            axes[0, column].set_title(name, pad=10)
            axes[2, column].set_xlabel("modality score")
            axes[2, column].set_xticks([0, 0.5, 1], ["text", "0.5", "image"])
        for axis, label in zip(axes[:, 0], ("every feature", "by energy", f"n_fire >= {least_fires}"), strict=True):
            axis.set_ylabel(f"{label}\nshare")
        line = axes[0, 0].plot([], [], color=INK, linewidth=1)[0]
        figure.legend([line], ["expected if each firing fell on either modality alike"], loc="outside lower center")
    return Chart(figure, rows, "Histograms of modality scores beside what chance gives.")


def _count(table: Columns, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    score, energy = finite(table["mu_energy"]), finite(table["energy_image"]) + finite(table["energy_text"])
    alive = np.isfinite(score)
    every = np.histogram(score[alive], edges)[0].astype(np.float64)
    weighted = np.histogram(score[alive], edges, weights=energy[alive])[0]
    return every / max(every.sum(), 1), weighted / max(weighted.sum(), 1e-300), int(alive.sum())


def _draw(
    axis: Axes, name: str, kind: str, edges: np.ndarray, share: np.ndarray, expected: Mapping[str, Any] | None, n: int
) -> list[dict[str, Any]]:
    middle = (edges[1:] + edges[:-1]) / 2
    colours = [TEXT_COLOUR if at < 0.1 else IMAGE_COLOUR if at > 0.9 else BALANCED for at in middle]
    axis.bar(middle, share, width=np.diff(edges) * 0.9, color=colours, linewidth=0)
    null = np.full(len(share), np.nan) if expected is None or n == 0 else finite(expected["expected_energy"])
    if np.isfinite(null).any():
        axis.stairs(null, edges, color=INK, linewidth=1)
    axis.text(0.5, 1.0, f"n = {n}", transform=axis.transAxes, ha="center", va="bottom", fontsize=6, color=GREY)
    axis.set_xlim(0, 1)
    if n == 0:
        axis.text(0.5, 0.5, "no feature", transform=axis.transAxes, ha="center", va="center", color=GREY)
    return [
        {"sae": name, "row": kind, "from": low, "to": high, "share": one, "expected": chance, "n_features": n}
        for low, high, one, chance in zip(edges[:-1], edges[1:], share, null, strict=True)
    ]
