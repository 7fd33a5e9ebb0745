"""space.json: the activations themselves, before any dictionary."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from thresher.analyze.battery.sources import Judges
from thresher.analyze.metrics.similarity import (
    compare_neighbours,
    measure_cka,
    measure_cka_unbiased,
    measure_cknna,
    measure_svcca,
    sum_cross,
)
from thresher.analyze.metrics.space import measure_cone, measure_space_gap, measure_spectrum, sweep_shift
from thresher.analyze.panels import Panel
from thresher.analyze.results import plain
from thresher.analyze.survey.sample import read_items
from thresher.data.store import Store
from thresher.errors import AnalysisError

MOST_ITEMS = 500
"""Records that spaces are compared on; CKNNA and neighbours depend on how many there are."""
LEAST_ITEMS = 12
NEIGHBOURS = 10
DIRECTIONS = 10
"""Leading directions that SVCCA compares."""
LAYERS = 8
"""Hook points of a modality, evenly spaced in the order of the store, the analyzed one always among them."""
SHIFTS = np.linspace(-0.5, 1.5, 21)
"""Shifts along the gap, in units of the gap: 1 closes it."""


def survey_space(store: Store, panels: Mapping[str, Panel], seed: int) -> dict[str, Any] | None:
    """Gap, cones, spectra and likeness of the hook points, on one image and one text of each of at most 500 records.

    None with one modality or with fewer than 12 such records.
    """
    if len(panels) < 2:
        return None
    items = {name: _thin(one) for name, one in Judges(panels, seed).stored.items()}
    n = len(items["image"])
    if n < LEAST_ITEMS:
        return None
    names = [name for modality in ("image", "text") for name in _choose_hook_points(store, panels[modality])]
    x = {name: read_items(store, name, items[store.hook_points[name].modality]) for name in names}
    complete = np.all([np.isfinite(one).all(axis=1) for one in x.values()], axis=0)
    if complete.sum() < LEAST_ITEMS:
        return None
    x = {name: one[complete] for name, one in x.items()}
    image, text = (x[panels[modality].hook_point] for modality in ("image", "text"))
    modalities = {name: store.hook_points[name].modality for name in names}
    return plain(
        {
            "n": int(complete.sum()),
            "hook_points": {"image": panels["image"].hook_point, "text": panels["text"].hook_point},
            "cone": {"image": measure_cone(image), "text": measure_cone(text)},
            "spectrum": {name: _describe_spectrum(one) for name, one in (("image", image), ("text", text))},
            **_describe_gap(image, text),
            "layers": [{"hook_point": name, "modality": modalities[name]} for name in names],
            "similarity": _compare(x),
            "neighbours": NEIGHBOURS,
        }
    )


def _choose_hook_points(store: Store, panel: Panel) -> list[str]:
    names = [name for name, info in store.hook_points.items() if info.modality == panel.modality]
    if len(names) <= LAYERS:
        return names
    kept = {names[place] for place in np.linspace(0, len(names) - 1, LAYERS).astype(np.int64)}
    return [name for name in names if name in kept or name == panel.hook_point]


def _thin(items: Int[np.ndarray, " item"]) -> Int[np.ndarray, " kept"]:
    return items[np.linspace(0, len(items) - 1, min(len(items), MOST_ITEMS)).astype(np.int64)]


def _describe_spectrum(x: Float[np.ndarray, "item d_in"]) -> dict[str, float]:
    found = measure_spectrum(x)
    return {"effective_rank": found.effective_rank, "participation": found.participation, "iso_score": found.iso_score}


def _describe_gap(image: Float[np.ndarray, "item _"], text: Float[np.ndarray, "item _"]) -> dict[str, Any]:
    """The gap needs a space in common; without one there is nothing to say."""
    if image.shape[1] != text.shape[1]:
        return {"gap": None, "shift": None}
    gap = measure_space_gap(image, text)
    if gap.norm == 0:
        return {"gap": gap, "shift": None}
    shifts = SHIFTS * gap.norm
    return {"gap": gap, "shift": {"lambda": shifts, **sweep_shift(image, text, shifts.tolist())._asdict()}}


def _compare(x: Mapping[str, Float[np.ndarray, "item _"]]) -> Sequence[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for first, second in itertools.combinations(x, 2):
        a, b = x[first], x[second]
        shared = compare_neighbours(a, b, NEIGHBOURS)
        found.append(
            {
                "first": first,
                "second": second,
                "cka": measure_cka(sum_cross(a, b)),
                "cka_unbiased": measure_cka_unbiased(a, b),
                "cknna": measure_cknna(a, b, NEIGHBOURS),
                "svcca": _compare_directions(a, b),
                "mutual_neighbours": shared.overlap,
                "mutual_neighbours_by_chance": shared.chance,
            }
        )
    return found


def _compare_directions(a: Float[np.ndarray, "item _"], b: Float[np.ndarray, "item _"]) -> float:
    """SVCCA; NaN where a space varies in fewer directions than are compared."""
    try:
        return measure_svcca(a, b, min(DIRECTIONS, len(a) - 1))
    except AnalysisError:
        return float("nan")
