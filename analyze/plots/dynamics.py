"""Figures 7, 8 and 9: what other seeds find again, what a pursuit does step by step, what more coefficients bring."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from thresher.analyze.battery.classes import CLASSES
from thresher.analyze.plots.read import Columns
from thresher.analyze.plots.style import (
    CLASS_COLOURS,
    GREY,
    INK,
    PAGE,
    PRINT,
    Chart,
    count_axis,
    finite,
    grid_width,
    label_panels,
    make_figure,
    series_style,
    side_colour,
)

RESIDUALS = {"residual_gap": "gap left", "residual_auc": "AUC of a probe", "residual_cosine": "cosine of pairs"}


def pick(curves: Columns, curve: str, series: str) -> tuple[np.ndarray, np.ndarray]:
    """x and y of one series of a curve."""
    chosen = (curves["curve"] == curve) & (curves["series"] == series)
    return finite(curves["x"])[chosen], finite(curves["y"])[chosen]


def list_series(curves: Columns, curve: str) -> list[str]:
    """Names of the series of a curve, in order."""
    return list(dict.fromkeys(str(one) for one in curves["series"][curves["curve"] == curve]))


def plot_stability(features: Mapping[str, Columns], curves: Mapping[str, Columns]) -> Chart:
    """Matched cosine of each feature by rank of energy, its mean over the first K, and that of random dictionaries."""
    rows: list[dict[str, Any]] = []
    with mpl.rc_context(PRINT):
        figure = make_figure(grid_width(len(features)), 2.4)
        axes = figure.subplots(1, len(features), squeeze=False, sharey=True)[0]
        for axis, (name, table) in zip(axes, features.items(), strict=True):
            energy, cosine = finite(table["energy_image"]) + finite(table["energy_text"]), finite(table["stability"])
            order = np.argsort(-energy, kind="stable")
            order = order[np.isfinite(cosine[order])]
            ranks = np.arange(1, len(order) + 1)
            axis.plot(ranks, cosine[order], ".", color=GREY, markersize=1.5, alpha=0.6, label="a feature")
            rows += [
                {"sae": name, "series": "feature", "rank": int(rank), "cosine": value, "feature": int(feature)}
                for rank, value, feature in zip(ranks, cosine[order], order, strict=True)
            ]
            for series, style, label in (
                ("other seeds", "-", "mean of the first K"),
                ("random dictionaries", "--", "random dictionaries"),
            ):
                x, y = pick(curves[name], "stability", series)
                axis.plot(x, y, style, color="#0072b2" if style == "-" else "#d55e00", label=label)
                rows += [
                    {"sae": name, "series": series, "rank": int(a), "cosine": b, "feature": -1}
                    for a, b in zip(x, y, strict=True)
                ]
            axis.set(title=name, xlabel="rank of energy, K", xscale="log", ylim=(-0.05, 1.05))
        axes[0].set_ylabel("matched cosine")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return Chart(figure, rows, "How well other seeds find each feature again.")


def plot_steps(steps: Mapping[str, Columns]) -> Chart:
    """Per step of a pursuit: energy by class on images and on texts, and what the residual still tells of modality and pair."""
    rows: list[dict[str, Any]] = []
    with mpl.rc_context(PRINT):
        figure = make_figure(PAGE, 0.6 + 1.5 * len(steps))
        axes = figure.subplots(len(steps), 5, squeeze=False)
        for line, (name, table) in zip(axes, steps.items(), strict=True):
            rows += _tabulate_steps(name, table)
            for axis, side in zip(line[:2], ("image", "text"), strict=True):
                _draw_classes(axis, table, side)
                axis.set_title(f"energy, {side}s")
            _draw_residuals(list(line[2:]), table)
            line[0].set_ylabel(f"{name}\nshare of the energy")
            for axis in line:
                axis.set_xlabel("step")
                axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return Chart(figure, rows, "What each step of the pursuit codes and leaves.")


def _draw_classes(axis: Axes, table: Columns, side: str) -> None:
    of_side = table["modality"] == side
    shares = [np.nan_to_num(finite(table[_column(name)])[of_side]) for name in CLASSES]
    x = finite(table["step"])[of_side] + 1
    done = np.zeros(len(x))
    for name, share in zip(CLASSES, shares, strict=True):
        # Bars and not areas: steps are whole numbers.
        axis.bar(x, share, 1, bottom=done, color=CLASS_COLOURS[name], label=name, linewidth=0)
        done += share
    axis.set(ylim=(0, 1), xlim=(0.5, max(x.max(), 1) + 0.5))


def _draw_residuals(axes: Sequence[Axes], table: Columns) -> None:
    one = table["modality"] == "image"
    # Before the first step the residual is the input; analyses of earlier versions do not tell of it.
    x = np.concatenate([[0], finite(table["step"])[one] + 1])
    for axis, (column, label) in zip(axes, RESIDUALS.items(), strict=True):
        before = finite(table.get(column.replace("residual", "input"), table[column] * np.nan))[one][:1]
        y = np.concatenate([before, finite(table[column])[one]])
        axis.plot(x, y, "-o", color="#0072b2", markersize=2, clip_on=False)
        axis.set_title(label)
        axis.set_xlim(0, x.max() + 0.5)
    axes[0].set_ylim(0, 1.05 * max(axes[0].get_ylim()))
    axes[1].axhline(0.5, color=GREY, linestyle=":")
    axes[1].set_ylim(0.4, 1.05)
    axes[2].axhline(0, color=GREY, linestyle=":")


def _tabulate_steps(name: str, table: Columns) -> list[dict[str, Any]]:
    before = [column.replace("residual", "input") for column in RESIDUALS]
    columns = ["step", "modality", "mu", "gap", *before, *RESIDUALS, *(_column(one) for one in CLASSES)]
    known = [column for column in columns if column in table]
    return [{"sae": name} | {column: table[column][row] for column in known} for row in range(len(table["step"]))]


def _column(name: str) -> str:
    return f"energy_{name.replace('-', '_')}"


def plot_recovery(curves: Mapping[str, Columns]) -> Chart:
    """FVU and cosine with the first k' coefficients, and with another number of atoms at test time."""
    rows: list[dict[str, Any]] = []
    with mpl.rc_context(PRINT):
        figure = make_figure(PAGE, 2.5)
        axes = figure.subplots(1, 4, sharex=True)
        panels = (
            ("recovery_fvu", "FVU, first k'"),
            ("recovery_cosine", "cosine, first k'"),
            ("test_time_fvu", "FVU, k' at test time"),
            ("test_time_cosine", "cosine, k' at test time"),
        )
        for axis, (curve, title) in zip(axes, panels, strict=True):
            for index, (name, table) in enumerate(curves.items()):
                for side in list_series(table, curve):
                    x, y = pick(table, curve, side)
                    style = "--" if side == "text" else "-"
                    axis.plot(
                        x, y, linestyle=style, **series_style(index), markersize=2.5, label=name if style == "-" else None
                    )
                    rows += [{"sae": name, "curve": curve, "modality": side, "k": a, "y": b} for a, b in zip(x, y, strict=True)]
            axis.set(title=title, xlabel="coefficients k'")
            count_axis(axis)
            if curve.endswith("fvu"):
                axis.set_ylim(bottom=0)
        axes[0].plot([], [], "--", color=GREY, label="texts")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
        label_panels(list(axes))
    return Chart(figure, rows, "Recovery by number of coefficients.")


def plot_ranks(curves: Mapping[str, Columns]) -> Chart:
    """Effective rank of the codes by number of coefficients; how alike the atoms are that are selected together."""
    rows: list[dict[str, Any]] = []
    with mpl.rc_context(PRINT):
        figure = make_figure(grid_width(len(curves)), 3.9)
        axes = figure.subplots(2, len(curves), squeeze=False, sharey="row")
        for column, (name, table) in enumerate(curves.items()):
            for row, curve in enumerate(("code_rank", "babel")):
                for index, series in enumerate(list_series(table, curve)):
                    x, y = pick(table, curve, series)
                    colour = side_colour(series.removeprefix("selected on ").removesuffix("s"))
                    colour = {"dictionary": INK, "drawn at random": GREY}.get(series, colour)
                    style = "--" if series == "drawn at random" else "-"
                    axes[row, column].plot(x, y, style, color=colour, marker="os^D"[index % 4], markersize=2.5, label=series)
                    rows += [{"sae": name, "curve": curve, "series": series, "x": a, "y": b} for a, b in zip(x, y, strict=True)]
            axes[0, column].set(title=name, xlabel="coefficients")
            axes[1, column].set(xlabel="other atoms", yscale="log")
            for axis in axes[:, column]:
                count_axis(axis)
        axes[0, 0].set_ylabel("effective rank of the codes")
        axes[1, 0].set_ylabel("Babel function")
        figure.legend(*axes[1, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4 if len(curves) > 1 else 2)
    return Chart(figure, rows, "Effective rank of codes and Babel function.")
