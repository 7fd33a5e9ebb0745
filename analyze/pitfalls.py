"""Mistakes that published numbers rest on, where this analysis shows their trace: what to know before comparing with them."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from thresher.analyze.cautions import Caution
from thresher.analyze.inputs import Inputs

MANY = 0.1
FEW_CANDIDATES = 1000
"""Images below which a recall is of a small search."""
SILENT = 0.01
ROWS_PER_FEATURE = 20
"""Held-out rows per feature below which features die for want of rows."""
LOOKED_AT = 2000
"""Rows of the images that are looked at for copies."""


def warn_about_rows(inputs: Inputs, results: Mapping[str, Any]) -> Iterator[Caution]:
    """Unequal modalities, and images that a table repeats once per caption."""
    panels = results["held_out"]["panels"]
    n = {name: panel["n_rows"] for name, panel in panels.items()}
    if len(n) == 2 and max(n.values()) > 2 * min(n.values()):
        text = (
            f"{n['image']} rows of images and {n['text']} of texts: scores and shares are means over the rows of each, but "
            "counts of firings, of dead and of rare features depend on how many rows there are."
        )
        yield Caution("unequal-rows", None, text, n)
    if "image" not in panels or panels["image"]["n_rows"] != panels["image"]["n_items"]:
        return
    hook_point = panels["image"]["hook_point"]
    n_rows = min(len(inputs.store.item_of(hook_point)), LOOKED_AT)
    rows = inputs.store.read_rows(hook_point, np.arange(n_rows)).float().numpy()
    copies = n_rows - len(np.unique(rows, axis=0))
    if copies > MANY * n_rows:
        text = (
            f"{copies} of the first {n_rows} images have the activation of another one: where a table has an image once per "
            "caption, firings, effective sample sizes and intervals count it so often. Store each image once, with its pairs."
        )
        yield Caution("repeated-images", None, text, {"n": copies, "of": n_rows})


def warn_about_all(results: Mapping[str, Any]) -> Iterator[Caution]:
    """What concerns all dictionaries: numbers of living features, the definition of R2, the size of the search."""
    saes = results["saes"]
    alive = {name: one["modality"]["share"]["shared"]["n"] for name, one in saes.items() if "modality" in one}
    if len(alive) > 1 and max(alive.values()) > 1.5 * min(alive.values()):
        shown = ", ".join(f"{name} {value}" for name, value in alive.items())
        text = f"Numbers of living features differ ({shown}): shares of features and histograms of scores do not compare."
        yield Caution("unequal-alive", None, text, alive)
    yield from _about_r2(saes)
    n = [one["functional"]["raw"]["image_to_text_r1"]["n"] for one in saes.values() if "raw" in one.get("functional", {})]
    if n and min(n) < FEW_CANDIDATES:
        text = f"Retrieval is among {min(n)} images: recall at 1 falls with more candidates, and batches are not a search."
        yield Caution("few-candidates", None, text, {"n": min(n)})


def _about_r2(saes: Mapping[str, Any]) -> Iterator[Caution]:
    """Where the two definitions differ most."""
    worst: tuple[float, str, str, float, float] | None = None
    for name, one in saes.items():
        for side, found in one["reconstruction"].items():
            own, other = found["r2"]["value"], found["r2_scalar_mean"]["value"]
            if side == "pooled" or own is None or other is None or other <= own + MANY * max(1 - own, 0.1):
                continue
            worst = max(worst or (0.0, "", "", 0.0, 0.0), ((other - own) / max(1 - own, 0.1), name, side, own, other))
    if worst is not None:
        _, name, side, own, other = worst
        text = (
            "R2 is around the mean vector. Around the mean of all numbers, as published values often are, it would be more: "
            f"{other:.3f} in place of {own:.3f} for the {side}s of {name}. Do not compare the two."
        )
        yield Caution("scalar-mean-r2", None, text, {"sae": name, "side": side, "r2": own, "r2_scalar_mean": other})


def warn_about_numbers(name: str, one: Mapping[str, Any], results: Mapping[str, Any]) -> Iterator[Caution]:
    """What of one dictionary other definitions would have shown otherwise."""
    n_rows = min(panel["n_rows"] for panel in results["held_out"]["panels"].values())
    dead = one["dead"]["both"] if "both" in one["dead"] else next(iter(one["dead"].values()))
    if dead["value"] > MANY and n_rows < ROWS_PER_FEATURE * one["d_sae"]:
        text = (
            f"{dead['value']:.0%} of the features fire on no held-out row, of {n_rows} rows for {one['d_sae']} features: dead "
            "is never z != 0 on these rows; more rows would show some of them alive, and other thresholds give other numbers."
        )
        yield Caution("dead-by-few-rows", name, text, {"share": dead["value"], "rows": n_rows})
    silent = {side: share for side, share in one.get("silent", {}).items() if share > SILENT}
    if silent:
        shown = ", ".join(f"{share:.0%} of the {side}s" for side, share in silent.items())
        text = f"{shown} have no active feature: in a search by codes they are tied, and ties rank last."
        yield Caution("silent-items", name, text, silent)
    if "battery" in one:
        yield from _about_bridge(name, one["battery"]["crossmodal"]["bridge"])


def _about_bridge(name: str, bridge: Mapping[str, Any]) -> Iterator[Caution]:
    ratios = {kind: bridge[kind]["value"] for kind in ("alignment_ratio", "alignment_ratio_raw")}
    centred, raw = ratios.values()
    if centred is not None and raw is not None and (centred > 1) != (raw > 1):
        text = (
            f"of the bridges features of both modalities carry {_compare(raw)} than of the energy without centring (ratio "
            f"{raw:.2f}), {_compare(centred)} with it ({centred:.2f}): frequent features make uncentred bridges."
        )
        yield Caution("uncentred-bridge", name, text, ratios)


def _compare(ratio: float) -> str:
    return "more" if ratio > 1 else "less"
