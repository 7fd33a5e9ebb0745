"""Figures 10, 12 and 13: what happens without a class, whether features mean one thing, and the same on both sides."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from thresher.analyze.battery.classes import CLASSES
from thresher.analyze.plots.dynamics import list_series, pick
from thresher.analyze.plots.read import Columns
from thresher.analyze.plots.style import (
    CLASS_COLOURS,
    GREY,
    INK,
    PAGE,
    PRINT,
    Chart,
    error_of,
    finite,
    grid_width,
    make_figure,
    series_style,
    side_colour,
    value_of,
)

SCORES = {"ms_image": "MS, images", "ms_text": "MS, texts", "mms": "MMS, across"}
LEAST_PAIRS = 30
"""Pairs of items that a point needs to be drawn; the CSV has all."""
PAIRED = {"image and image": "image", "text and text": "text", "image and text": "both"}


def plot_meaning(features: Mapping[str, Columns], least_fires: int) -> Chart:
    """Cumulative distributions of monosemanticity within and across modalities, of features with enough firings."""
    rows: list[dict[str, Any]] = []
    with mpl.rc_context(PRINT):
        figure = make_figure(PAGE, 2.2)
        axes = figure.subplots(1, len(SCORES), sharey=True)
        for axis, (column, title) in zip(axes, SCORES.items(), strict=True):
            counts: list[str] = []
            for index, (name, table) in enumerate(features.items()):
                enough = np.minimum(finite(table["n_fire_image"]), finite(table["n_fire_text"])) >= least_fires
                if column != "mms":
                    enough = finite(table[f"n_fire_{column.removeprefix('ms_')}"]) >= least_fires
                score = finite(table[column])
                score = np.sort(score[np.isfinite(score) & enough])
                if len(score) == 0:
                    continue
                share = np.arange(1, len(score) + 1) / len(score)
                axis.step(score, share, where="post", color=series_style(index)["color"], label=name)
                counts.append(str(len(score)))
                rows += [{"sae": name, "score": column, "value": a, "share": b} for a, b in zip(score, share, strict=True)]
            axis.axvline(0, color=GREY, linestyle=":")
            axis.set(title=f"{title}\nn = {', '.join(counts) or '0'}", xlabel="mean cosine", ylim=(0, 1.02))
        axes[0].set_ylabel("share of the features")
        lines = [axes[0].plot([], [], color=series_style(index)["color"], label=name)[0] for index, name in enumerate(features)]
        figure.legend(lines, list(features), loc="outside lower center", ncols=6)
    return Chart(figure, rows, "Distributions of monosemanticity scores.")


def plot_sharing(curves: Mapping[str, Columns]) -> Chart:
    """Mean similarity of two items that are no pair, by how many of their five strongest features they share."""
    rows: list[dict[str, Any]] = []
    with mpl.rc_context(PRINT):
        figure = make_figure(grid_width(len(curves)), 2.3)
        axes = figure.subplots(1, len(curves), squeeze=False, sharey=True)[0]
        for axis, (name, table) in zip(axes, curves.items(), strict=True):
            n = finite(table["n"])
            for series in list_series(table, "shared_features"):
                x, y = pick(table, "shared_features", series)
                pairs = n[(table["curve"] == "shared_features") & (table["series"] == series)]
                enough = pairs >= LEAST_PAIRS
                axis.plot(x[enough], y[enough], "-o", color=side_colour(PAIRED[series]), markersize=3, label=series)
                rows += [
                    {"sae": name, "items": series, "shared": int(a), "similarity": b, "n_pairs": int(c)}
                    for a, b, c in zip(x, y, pairs, strict=True)
                ]
            axis.axhline(0, color=GREY, linestyle=":", linewidth=0.8)
            axis.set(title=name, xlabel="shared features of the top 5")
        axes[0].set_ylabel("mean similarity")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return Chart(figure, rows, "Similarity of items by the number of features they share.")


def plot_categories(categories: Mapping[str, Columns], agreement: Mapping[str, Mapping[str, float]]) -> Chart:
    """AUROC on texts (columns: categories there) of the feature that is best for each category on images (rows)."""
    rows: list[dict[str, Any]] = []
    names = list(dict.fromkeys(str(one) for table in categories.values() for one in table["category_image"]))
    size = min(max(1.8, 0.11 * len(names)), 2.5)
    # Weak detection is seen too: the scale ends where the scores do.
    far = max(0.1, max(float(np.nanmax(np.abs(finite(table["auroc_text"]) - 0.5), initial=0)) for table in categories.values()))
    with mpl.rc_context(PRINT):
        figure = make_figure(1.4 + (size + 0.1) * len(categories), size + 1.2)
        axes = figure.subplots(1, len(categories), squeeze=False, sharey=True)[0]
        image = None
        for axis, (name, table) in zip(axes, categories.items(), strict=True):
            grid = np.full((len(names), len(names)), np.nan)
            for i, j, score in zip(table["category_image"], table["category_text"], finite(table["auroc_text"]), strict=True):
                grid[names.index(str(i)), names.index(str(j))] = score
            image = axis.imshow(grid, cmap="PuOr", vmin=0.5 - far, vmax=0.5 + far, interpolation="nearest", aspect="auto")
            axis.set_xticks(range(len(names)), names, rotation=90, fontsize=4.5)
            axis.set_yticks(range(len(names)), names, fontsize=4.5)
            axis.tick_params(length=0)
            told = agreement[name]
            axis.set_title(f"{name}: same feature {told['share']:.0%} (chance {told['chance']:.0%})", fontsize=6.5)
            axis.set_xlabel("category on texts")
            rows += [
                {"sae": name} | {column: table[column][row] for column in table} for row in range(len(table["auroc_text"]))
            ]
        axes[0].set_ylabel("best feature on images for")
        if image is not None:
            figure.colorbar(image, ax=list(axes), label="AUROC on texts", shrink=0.7, aspect=20)
    return Chart(figure, rows, "How well the best feature of a category on images detects categories on texts.")


def plot_ablation(rows: Sequence[Mapping[str, Any]]) -> Chart:
    """Measures without each class of features beside those without random features of equal energy; dashed: with all.

    `rows`: `sae`, `measure`, `ablated`, `whole`, `value`, `low`, `high` and `control_value`, `control_low`, `control_high`.
    """
    saes, measures = (list(dict.fromkeys(row[key] for row in rows)) for key in ("sae", "measure"))
    with mpl.rc_context(PRINT):
        figure = make_figure(PAGE, 1.5 + 0.95 * len(saes))
        axes = figure.subplots(len(saes), len(measures), squeeze=False, sharex=True, sharey="col")
        places = [label for label in CLASSES if any(row["ablated"] == label for row in rows)]
        for line, sae in zip(axes, saes, strict=True):
            for axis, measure in zip(line, measures, strict=True):
                chosen = [row for row in rows if row["sae"] == sae and row["measure"] == measure]
                for row in chosen:
                    place = places.index(row["ablated"])
                    colour = CLASS_COLOURS[row["ablated"]]
                    for offset, prefix, fill in ((-0.2, "", colour), (0.2, "control_", "white")):
                        estimate = {key: row[f"{prefix}{key}"] for key in ("value", "low", "high")}
                        if estimate["value"] is None:
                            continue
                        below, above = error_of(estimate)
                        axis.bar(place + offset, value_of(estimate), 0.38, color=fill, edgecolor=colour, linewidth=0.7)
                        axis.errorbar(place + offset, value_of(estimate), yerr=[[below], [above]], color=INK, linewidth=0.7)
                if chosen:
                    axis.axhline(chosen[0]["whole"], color=INK, linewidth=0.8, linestyle="--")
            line[0].set_ylabel(sae)
        for axis, measure in zip(axes[0], measures, strict=True):
            axis.set_title(measure)
        for axis in axes[-1]:
            axis.set_xticks(range(len(places)), places, rotation=40, ha="right", fontsize=5.5)
        marks: list[Artist] = [Patch(facecolor=GREY, edgecolor=GREY), Patch(facecolor="white", edgecolor=GREY)]
        marks.append(Line2D([], [], color=INK, linewidth=0.8, linestyle="--"))
        labels = ["class left out", "random features of equal energy left out", "nothing left out"]
        figure.legend(handles=marks, labels=labels, loc="outside lower center", ncols=3)
    return Chart(figure, [dict(row) for row in rows], "Measures without each class of features.")
