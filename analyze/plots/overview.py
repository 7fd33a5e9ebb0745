"""Figures 1, 3 and 4: reconstruction against sparsity, the two energies of each feature, where the energy is."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from thresher.analyze.battery.classes import DEAD, RARE, SHARED
from thresher.analyze.plots.read import Columns
from thresher.analyze.plots.style import (
    CLASS_COLOURS,
    GREY,
    IMAGE_COLOUR,
    PAGE,
    PRINT,
    TEXT_COLOUR,
    Chart,
    finite,
    fit_columns,
    grid_width,
    label_panels,
    make_figure,
    series_style,
)

MEASURES = {"r2": "R2", "fvu": "FVU", "cosine": "cosine"}
FLOORS = {"r2": 0.0, "fvu": 1.0}
BALANCES = {0.1: ":", 0.5: "-", 0.9: ":"}
STATUSES = {"dead": CLASS_COLOURS[DEAD], "rare": CLASS_COLOURS[RARE], "one-sided": "#e69f00", "ok": CLASS_COLOURS[SHARED]}
BALANCE, ISO_ENERGY = "#009e73", "#56b4e9"


def plot_pareto(rows: Sequence[Mapping[str, Any]]) -> Chart:
    """R2, FVU and cosine against L0; dictionaries of one kind that differ in L0 are joined, seeds are a band.

    `rows`: one dict per dictionary and modality with `sae`, `family`, `kind`, `modality`, `l0`, the measures and
    `cosine_of_mean`.
    """
    sides = [name for name in ("image", "text") if any(row["modality"] == name for row in rows)]
    families = list(dict.fromkeys(row["family"] for row in rows))
    with mpl.rc_context(PRINT):
        figure = make_figure(PAGE, 0.4 + 1.7 * len(sides))
        axes = figure.subplots(len(sides), len(MEASURES), squeeze=False, sharex=True)
        for line, side in zip(axes, sides, strict=True):
            chosen = [row for row in rows if row["modality"] == side]
            for axis, measure in zip(line, MEASURES, strict=True):
                for index, family in enumerate(families):
                    _draw_family(axis, [row for row in chosen if row["family"] == family], measure, index)
                floor = FLOORS.get(measure, chosen[0]["cosine_of_mean"])
                if floor is not None:
                    axis.axhline(floor, color=GREY, linestyle=":", label="predicting the mean")
                axis.set_ylabel(f"{MEASURES[measure]}, {side}s")
        for axis in axes[-1]:
            axis.set_xlabel("L0, active atoms per row")
            axis.set_xlim(0, 1.06 * max(row["l0"] for row in rows))
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=fit_columns(labels))
        label_panels(list(axes.ravel()))
    return Chart(figure, [dict(row) for row in rows], "Reconstruction against the number of active atoms.")


def _draw_family(axis: Axes, rows: Sequence[Mapping[str, Any]], measure: str, index: int) -> None:
    """Mean and range over dictionaries that differ by seed alone, along L0."""
    points: list[tuple[float, float, float, float]] = []
    for kind in dict.fromkeys(row["kind"] for row in rows):
        members = [row for row in rows if row["kind"] == kind and row[measure] is not None]
        if members:
            values = [row[measure] for row in members]
            points.append((float(np.mean([row["l0"] for row in members])), float(np.mean(values)), min(values), max(values)))
    if not points:
        return
    l0, mean, low, high = np.array(sorted(points)).T
    style = series_style(index)
    axis.plot(l0, mean, label=rows[0]["family"], **style)
    if (high > low).any():
        axis.fill_between(l0, low, high, color=style["color"], alpha=0.2, linewidth=0)
        axis.vlines(l0, low, high, color=style["color"], linewidth=2, alpha=0.5)


def plot_energies(features: Mapping[str, Columns]) -> Chart:
    """Mean z^2 on texts against that on images, per feature, with lines of equal modality score and of equal energy."""
    rows: list[dict[str, Any]] = []
    with mpl.rc_context(PRINT):
        figure = make_figure(grid_width(len(features)), 2.6)
        axes = figure.subplots(1, len(features), squeeze=False, sharex=True, sharey=True)[0]
        bounds = _find_bounds(features)
        for axis, (name, table) in zip(axes, features.items(), strict=True):
            image, text = finite(table["energy_image"]), finite(table["energy_text"])
            rows += [
                {"sae": name, "feature": feature, "energy_image": float(image[feature]), "energy_text": float(text[feature])}
                for feature in range(len(image))
            ]
            _draw_energies(axis, image, text, bounds)
            axis.set_title(name)
            axis.set_xlabel("energy (mean $z^2$) on images")
        axes[0].set_ylabel("energy (mean $z^2$) on texts")
        figure.legend(handles=_list_marks(), loc="outside lower center", ncols=min(5, 1 + len(features)))
    return Chart(figure, rows, "Energy of features on texts against that on images.")


def _find_bounds(features: Mapping[str, Columns]) -> tuple[float, float]:
    energy = np.concatenate([finite(table[f"energy_{side}"]) for table in features.values() for side in ("image", "text")])
    known = energy[energy > 0]
    return (float(known.min()) / 3, float(known.max()) * 3) if len(known) else (0.1, 10.0)


def _draw_energies(axis: Axes, image: np.ndarray, text: np.ndarray, bounds: tuple[float, float]) -> None:
    both, (low, high) = (image > 0) & (text > 0), bounds
    if both.any():
        extent = (np.log10(low), np.log10(high), np.log10(low), np.log10(high))
        cells = axis.hexbin(
            image[both],
            text[both],
            xscale="log",
            yscale="log",
            gridsize=28,
            cmap="Greys",
            bins="log",
            mincnt=1,
            extent=extent,
            linewidths=0.2,
        )
        # A lone feature is grey, not black, where no cell has more.
        cells.set_clim(0.5, max(8.0, float(np.asarray(cells.get_array()).max())))
    # Features of one modality have no place in a double logarithmic plot but on its edges.
    of_image, of_text = image[(text == 0) & (image > 0)], text[(image == 0) & (text > 0)]
    axis.plot(of_image, np.full(len(of_image), low * 1.2), "|", color=IMAGE_COLOUR, alpha=0.5)
    axis.plot(np.full(len(of_text), low * 1.2), of_text, "_", color=TEXT_COLOUR, alpha=0.5)
    line = np.geomspace(low, high, 60)
    for mu, style in BALANCES.items():
        axis.plot(line, line * (1 - mu) / mu, linestyle=style, color=BALANCE, linewidth=0.9)
    for total in 10.0 ** np.arange(np.ceil(np.log10(low)), np.floor(np.log10(high)) + 1):
        part = np.geomspace(total * 1e-4, total * (1 - 1e-4), 80)
        axis.plot(part, total - part, color=ISO_ENERGY, linewidth=0.5, alpha=0.7)
    axis.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))


def _list_marks() -> list[Line2D]:
    """What the lines and the ticks at the edges are."""
    return [
        Line2D([], [], color=BALANCE, label="score 0.5"),
        Line2D([], [], color=BALANCE, linestyle=":", label="score 0.1, 0.9"),
        Line2D([], [], color=ISO_ENERGY, label="equal energy"),
        Line2D([], [], color=IMAGE_COLOUR, marker="|", linestyle="none", label="on images only"),
        Line2D([], [], color=TEXT_COLOUR, marker="_", linestyle="none", label="on texts only"),
    ]


def plot_cumulative(curves: Mapping[str, Columns], features: Mapping[str, Columns]) -> Chart:
    """Share of the energy in the features of most energy; how many features are alive, rare, of one modality."""
    rows: list[dict[str, Any]] = []
    with mpl.rc_context(PRINT):
        figure = make_figure(PAGE, 2.3 + 0.14 * -(-(len(curves) + 2) // 5))
        left, right = figure.subplots(1, 2, width_ratios=(1.5, 1))
        for index, (name, table) in enumerate(curves.items()):
            for side, style in (("image", "-"), ("text", "--")):
                chosen = (table["curve"] == "energy") & (table["series"] == side)
                x, y = finite(table["x"])[chosen], finite(table["y"])[chosen]
                left.plot(x, y, style, color=series_style(index)["color"], label=name if side == "image" else None)
                rows += [{"sae": name, "what": f"energy {side}", "x": a, "y": b} for a, b in zip(x, y, strict=True)]
        left.plot([], [], "-", color=GREY, label="on images")
        left.plot([], [], "--", color=GREY, label="on texts")
        left.set(xscale="log", xlabel="features, those of most energy first", ylabel="share of the energy", ylim=(0, 1.02))
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=fit_columns(labels))
        rows += _draw_statuses(right, features)
        label_panels([left, right])
    return Chart(figure, rows, "Cumulative energy of features, and how many are alive.")


def _draw_statuses(axis: Axes, features: Mapping[str, Columns]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    done = np.zeros(len(features))
    for status, colour in STATUSES.items():
        n = np.array([int((table["status"] == status).sum()) for table in features.values()], dtype=np.float64)
        share = n / np.array([len(table["status"]) for table in features.values()])
        axis.barh(range(len(features)), share, left=done, color=colour, label=status, height=0.7, linewidth=0)
        done += share
        rows += [
            {"sae": name, "what": status, "x": int(count), "y": part}
            for name, count, part in zip(features, n, share, strict=True)
        ]
    axis.set_yticks(range(len(features)), list(features))
    axis.set(xlim=(0, 1), xlabel="share of the features")
    axis.invert_yaxis()
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, columnspacing=0.8)
    return rows
