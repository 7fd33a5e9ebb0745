"""Figure 11: which layers of the two towers have the same geometry, and what a shift along the gap does."""

from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import numpy as np

from thresher.analyze.plots.style import GREY, IMAGE_COLOUR, PAGE, PRINT, TEXT_COLOUR, Chart, finite, label_panels, make_figure

MAPS = {"cka_unbiased": "CKA, unbiased", "cknna": "CKNNA", "mutual_neighbours": "mutual neighbours"}


def plot_layers(space: Mapping[str, Any]) -> Chart:
    """Likeness of every two hook points on the same records: unbiased CKA, CKNNA, shared neighbours."""
    names = [one["hook_point"] for one in space["layers"]]
    colours = [IMAGE_COLOUR if one["modality"] == "image" else TEXT_COLOUR for one in space["layers"]]
    with mpl.rc_context(PRINT):
        figure = make_figure(PAGE, 2.6)
        axes, image = figure.subplots(1, len(MAPS), sharey=True), None
        for axis, (measure, title) in zip(axes, MAPS.items(), strict=True):
            grid = np.full((len(names), len(names)), np.nan)
            for one in space["similarity"]:
                i, j = names.index(one["first"]), names.index(one["second"])
                grid[i, j] = grid[j, i] = np.nan if one[measure] is None else one[measure]
            image = axis.imshow(grid, cmap="cividis", vmin=0, vmax=1)
            if len(names) <= 8:
                for (i, j), value in np.ndenumerate(grid):
                    if np.isfinite(value):
                        axis.text(
                            j,
                            i,
                            f"{value:.2f}",
                            ha="center",
                            va="center",
                            fontsize=5,
                            color="white" if value < 0.55 else "black",
                        )
            axis.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=6)
            axis.set_yticks(range(len(names)), names, fontsize=6)
            for label, colour in zip(axis.get_xticklabels(), colours, strict=True):
                label.set_color(colour)
            axis.tick_params(length=0)
            axis.set_title(title)
        if image is not None:
            figure.colorbar(image, ax=list(axes), shrink=0.7, aspect=18)
        for label, colour in zip(axes[0].get_yticklabels(), colours, strict=True):
            label.set_color(colour)
    rows = [
        {"first": one["first"], "second": one["second"]} | {key: one[key] for key in one if key not in ("first", "second")}
        for one in space["similarity"]
    ]
    return Chart(figure, rows, "Likeness of the hook points' geometry.")


def plot_shift(space: Mapping[str, Any]) -> Chart:
    """Gap left and cosine of pairs when images and texts are moved towards each other; 1 closes the gap."""
    shift, norm = space["shift"], space["gap"]["norm"]
    x = finite(shift["lambda"]) / norm
    with mpl.rc_context(PRINT):
        figure = make_figure(PAGE * 0.75, 2.1)
        left, right = figure.subplots(1, 2)
        left.plot(x, finite(shift["norm"]), color="#0072b2")
        left.set_ylabel("norm of the gap")
        left.set_ylim(bottom=0)
        right.plot(x, finite(shift["paired"]), color="#009e73", label="pairs")
        right.plot(x, finite(shift["unpaired"]), "--", color=GREY, label="no pairs")
        right.set_ylabel("mean cosine")
        right.legend()
        for axis in (left, right):
            axis.axvline(0, color=GREY, linestyle=":", linewidth=0.8)
            axis.set_xlabel("shift, in gaps (0: as it is, 1: closed)")
        label_panels([left, right])
    keys = ("norm", "paired", "unpaired")
    rows = [{"shift": float(at)} | {key: shift[key][place] for key in keys} for place, at in enumerate(x)]
    return Chart(figure, rows, "What a shift along the gap does.")
