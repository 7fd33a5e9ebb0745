"""Figures 5 and 6: which features carry the alignment of pairs, and whether partners have the same atom."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from thresher.analyze.battery.classes import CLASSES, HETEROGENEOUS, SHARED
from thresher.analyze.plots.read import Columns
from thresher.analyze.plots.style import (
    CLASS_COLOURS,
    GREY,
    IMAGE_COLOUR,
    INK,
    PAGE,
    PRINT,
    TEXT_COLOUR,
    Chart,
    error_of,
    finite,
    grid_width,
    label_panels,
    make_figure,
    value_of,
)

REGIONS = ("text", "both", "image")
BRIDGED = CLASS_COLOURS[HETEROGENEOUS]
STACK = {
    "both, both": (CLASS_COLOURS[SHARED], ((1, 1),)),
    "both with one-sided": ("#7fceb9", ((1, 0), (0, 1), (1, 2), (2, 1))),
    "image with text": (BRIDGED, ((2, 0), (0, 2))),
    "image with image": (IMAGE_COLOUR, ((2, 2),)),
    "text with text": (TEXT_COLOUR, ((0, 0),)),
}
"""Colour and cells [image side, text side] of each layer."""
PUBLISHED = 0.05
PARTS = {
    "shared_self": ("shared with itself", CLASS_COLOURS[SHARED]),
    "shared_cross": ("two shared", "#7fceb9"),
    "bridged": ("bridged", BRIDGED),
    "rest": ("rest", GREY),
}
EDGES = {
    "other": ("#6f7782", "."),
    "shared": (CLASS_COLOURS[SHARED], "o"),
    "self": ("#e69f00", "s"),
    "bridge": (BRIDGED, "^"),
}
"""Colour and marker of the kinds of edges, the most frequent first, so that it lies below."""


def plot_bridge_mass(groups: Mapping[str, Mapping[str, Any]]) -> Chart:
    """Where the mass of |Bc| lies by region of the modality score, at several margins; and the nine regions at 0.05."""
    rows: list[dict[str, Any]] = []
    with mpl.rc_context(PRINT):
        figure = make_figure(grid_width(len(groups)), 3.9)
        axes = figure.subplots(2, len(groups), squeeze=False, sharey="row", height_ratios=(1.2, 1))
        for column, (name, one) in enumerate(groups.items()):
            bridge = one["crossmodal"]["bridge"]
            margins = finite(bridge["region_margins"])
            mass = finite(bridge["regions"]["absolute"])
            mass = mass / np.maximum(mass.sum(axis=(1, 2), keepdims=True), 1e-300)
            parts = [sum(mass[:, i, j] for i, j in cells) for _, cells in STACK.values()]
            axes[0, column].stackplot(margins, parts, colors=[c for c, _ in STACK.values()], labels=list(STACK), linewidth=0)
            axes[0, column].set(title=name, xlabel="margin of the score", xlim=(margins[0], margins[-1]), ylim=(0, 1))
            _draw_grid(axes[1, column], mass[int(np.abs(margins - PUBLISHED).argmin())])
            rows += [
                {"sae": name, "margin": margin, "image_side": REGIONS[i], "text_side": REGIONS[j], "share": float(grid[i, j])}
                for margin, grid in zip(margins, mass, strict=True)
                for i in range(3)
                for j in range(3)
            ]
        axes[0, 0].set_ylabel("share of |Bc|")
        axes[1, 0].set_ylabel("image feature is of")
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3 if len(groups) > 1 else 2)
    return Chart(figure, rows, "Mass of the centred bridge matrix by region of the modality score.")


def _draw_grid(axis: Axes, grid: np.ndarray) -> None:
    axis.imshow(grid, cmap="Greens", vmin=0, vmax=max(float(grid.max()), 1e-9))
    for (i, j), share in np.ndenumerate(grid):
        axis.text(
            j, i, f"{share:.0%}", ha="center", va="center", fontsize=6.5, color="white" if share > 0.6 * grid.max() else INK
        )
    axis.set_xticks(range(3), REGIONS)
    axis.set_yticks(range(3), REGIONS)
    axis.tick_params(length=0)
    axis.set_xlabel("text feature is of")


def plot_shares(groups: Mapping[str, Mapping[str, Any]]) -> Chart:
    """The contrastive margin and the gap, part by part up to the whole: waterfalls with intervals."""
    rows: list[dict[str, Any]] = []
    with mpl.rc_context(PRINT):
        figure = make_figure(PAGE, 0.7 + 1.4 * len(groups))
        axes = figure.subplots(len(groups), 2, squeeze=False, sharex="col", width_ratios=(1, 1.9))
        for line, (name, one) in zip(axes, groups.items(), strict=True):
            margin = [(label, one["margin"][key], colour) for key, (label, colour) in PARTS.items()]
            gap = [(label, one["gap"][label], CLASS_COLOURS[label]) for label in CLASSES]
            rows += _draw_waterfall(line[0], name, "margin", margin)
            rows += _draw_waterfall(line[1], name, "gap", gap)
            line[0].set_ylabel(f"{name}\nshare of the margin")
            line[1].set_ylabel("share of the gap")
            if not one["gap_is_beyond_noise"]:
                line[1].text(0.98, 0.06, "gap within noise", transform=line[1].transAxes, ha="right", color=GREY)
        label_panels(list(axes[0]))
    return Chart(figure, rows, "Waterfalls of the contrastive margin and of the modality gap.")


def _draw_waterfall(
    axis: Axes, name: str, what: str, parts: Sequence[tuple[str, Mapping[str, Any], str]]
) -> list[dict[str, Any]]:
    done, rows = 0.0, []
    for place, (label, estimate, colour) in enumerate(parts):
        value = value_of(estimate)
        rows.append({"sae": name, "of": what, "part": label} | _bounds(estimate))
        if not np.isfinite(value):
            continue
        axis.bar(place, value, bottom=done, color=colour, width=0.75, linewidth=0.3, edgecolor=INK)
        below, above = error_of(estimate)
        axis.errorbar(place, done + value, yerr=[[below], [above]], color=INK, linewidth=0.8, capsize=1.5)
        axis.plot([place - 0.375, min(place + 1.375, len(parts) - 0.6)], [done + value] * 2, color=INK, linewidth=0.4)
        done += value
    if all(row["value"] is None for row in rows):
        axis.text(0.5, 0.5, "undefined: the margin is not above 0", transform=axis.transAxes, ha="center", color=GREY)
    axis.axhline(0, color=INK, linewidth=0.5)
    axis.axhline(1, color=GREY, linewidth=0.5, linestyle=":")
    axis.set_xticks(range(len(parts)), [label for label, _, _ in parts], rotation=35, ha="right", fontsize=6)
    return rows


def _bounds(estimate: Mapping[str, Any]) -> dict[str, Any]:
    return {key: estimate[key] for key in ("value", "low", "high")}


def plot_partners(edges: Mapping[str, Columns], groups: Mapping[str, Mapping[str, Any]]) -> Chart:
    """Correlation over pairs against the cosine of the two atoms, for partners; grey: not beyond chance (q > 0.05)."""
    rows: list[dict[str, Any]] = []
    with mpl.rc_context(PRINT):
        figure = make_figure(grid_width(len(edges)), 2.6)
        axes = figure.subplots(1, len(edges), squeeze=False, sharex=True, sharey=True)[0]
        for axis, (name, table) in zip(axes, edges.items(), strict=True):
            rho, cosine, label = finite(table["rho"]), finite(table["cos"]), table["class"]
            significant = finite(table["q"]) <= 0.05
            _draw_density(axis, cosine[~significant], rho[~significant], groups[name]["crossmodal"]["deranged"]["largest_rho"])
            for kind, (colour, marker) in EDGES.items():
                chosen = (label == kind) & significant
                axis.plot(
                    cosine[chosen], rho[chosen], marker, color=colour, markersize=2.5, alpha=0.8, label=f"{kind}, q <= 0.05"
                )
            axis.set(title=name, xlabel="cosine of the two atoms", xlim=(-1.05, 1.05), ylim=(0, 1.02))
            rows += [
                {"sae": name, "i": int(i), "j": int(j), "cos": c, "rho": r, "class": str(k), "q": q}
                for i, j, c, r, k, q in zip(table["i"], table["j"], cosine, rho, label, finite(table["q"]), strict=True)
            ]
        axes[0].set_ylabel("rho over pairs")
        handles, labels = axes[0].get_legend_handles_labels()
        handles.append(Line2D([], [], marker="h", color=GREY, linestyle="none", markersize=4))
        columns = 3 if len(edges) > 1 else 2
        figure.legend(handles, [*labels, "q > 0.05"], loc="outside lower center", ncols=columns)
    return Chart(figure, rows, "Correlation of partners over pairs against the cosine of their atoms.")


def _draw_density(axis: Axes, cosine: np.ndarray, rho: np.ndarray, largest: float | None) -> None:
    if len(rho):
        axis.hexbin(
            cosine, rho, gridsize=(24, 16), cmap="Greys", bins="log", mincnt=1, extent=(-1, 1, 0, 1), linewidths=0.2, alpha=0.6
        )
    if largest is not None:
        axis.axhline(largest, color="#d55e00", linewidth=0.8, linestyle="--", label="largest rho of deranged pairs")
