"""The numbers per class of features: how many, how much energy, margin and gap; with intervals, beside what chance gives."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from thresher.analyze.battery.classes import BRIDGED, CLASSES, DEAD, SHARED, count, count_gates, count_with_and_without
from thresher.analyze.battery.finite import control_histogram
from thresher.analyze.battery.judge import Judged, Settings, find_bridged, reclassify, weigh_groups
from thresher.analyze.battery.pairing import derange_totals
from thresher.analyze.metrics.estimate import Estimate, estimate
from thresher.analyze.metrics.margin import divide_margin_by_class
from thresher.analyze.metrics.needs import divide
from thresher.analyze.statistics.margins import sum_class_margins
from thresher.analyze.statistics.paired import sum_products
from thresher.analyze.statistics.rows import iterate_blocks

LABELS: Mapping[str, int] = {name: index for index, name in enumerate(CLASSES)}
UNIT = "records"
NEAR, ATOMS = 0.95, 1024
"""Cosine above which two atoms are copies; atoms compared at once."""


def summarize(judged: Judged, settings: Settings) -> dict[str, Any]:
    """What groups.json says of one dictionary, less what needs other dictionaries or ground truth."""
    found = count_with_and_without(judged.gates, settings.battery)
    false = expect_false(judged, settings)
    n = judged.sides.n_records
    control = control_histogram(
        judged.sides.image.codes,
        judged.sides.text.codes,
        settings.battery.histogram_fires,
        (settings.thresholds.text_below, settings.thresholds.image_above),
        settings.resample.seed,
    )
    energy = {
        f"energy_{name}": _by_class(judged.classes, _normalize(side.activity.energy), n)
        for name, side in (("image", judged.sides.image), ("text", judged.sides.text))
    }
    return {
        "classes": {name: {"n": n_class} | _describe_false(name, false) for name, n_class in count(judged.classes).items()},
        "gates": count_gates(judged.gates),
        "counts": found,
        **energy,
        **divide_by_class(judged, settings),
        "gap_is_beyond_noise": judged.gaps.is_beyond_noise,
        "gap": _by_class(judged.classes, judged.gaps.replicates, n),
        "histogram": control._asdict(),
        "near_duplicates": _count_near(judged),
    }


def expect_false(judged: Judged, settings: Settings) -> dict[str, float] | None:
    """Mean counts of the classes when images get the captions of other records: the whole rule run again each time.

    None without derangements. Every `shared` or `bridged` found then is false.
    """
    seeds = range(settings.resample.seed + 1, settings.resample.seed + 1 + settings.battery.n_derangements)
    counts = [count(reclassify(judged, derange_totals(judged.totals, seed), settings)) for seed in seeds]
    if not counts:
        return None
    return {name: float(np.mean([one[name] for one in counts])) for name in (SHARED, *BRIDGED)}


def divide_by_class(judged: Judged, settings: Settings) -> dict[str, Any]:
    """The contrastive margin divided among the classes; no shares where its interval reaches 0."""
    n, pairing = judged.sides.n_records, judged.totals.pairing
    weights = weigh_groups(judged.totals, settings.resample)
    labels = np.array([LABELS[str(name)] for name in judged.classes], dtype=np.int64)
    by_class = divide_margin_by_class(sum_class_margins(pairing, judged.sides.dictionary, labels, len(CLASSES)), weights)
    whole = judged.margins.total
    own = judged.margins.own[:, judged.classes == SHARED].sum(axis=1)
    cross = by_class.parts[:, LABELS[SHARED], LABELS[SHARED]] - own
    bridged = margin_of_edges(judged, weights, *find_bridges(judged, settings))
    found = {"total": estimate(whole, n, UNIT)}
    low = found["total"].low
    scale = whole if low is not None and low > 0 else np.full_like(whole, np.nan)
    parts = {"shared_self": own, "shared_cross": cross, "bridged": bridged, "rest": whole - own - cross - bridged}
    found |= {name: estimate(divide(part, scale), n, UNIT) for name, part in parts.items()}
    left_out = {name: estimate(divide(by_class.left_out[:, LABELS[name]], scale), n, UNIT) for name in CLASSES}
    return {"margin": found, "margin_by_class": left_out}


def find_bridges(judged: Judged, settings: Settings) -> tuple[Int[np.ndarray, " edge"], Int[np.ndarray, " edge"]]:
    """The edges (i on images, j on texts) that make features bridged, each once."""
    members = np.flatnonzero(np.isin(judged.classes, BRIDGED) & find_bridged(judged.pairings, settings))
    partner, is_image = judged.pairings.partner.feature[members], judged.activation.is_image[members]
    edges = np.stack([np.where(is_image, members, partner), np.where(is_image, partner, members)], axis=1)
    edges = np.unique(edges, axis=0).astype(np.int64)
    return edges[:, 0], edges[:, 1]


def margin_of_edges(
    judged: Judged, weights: Float[np.ndarray, "replicate group"], i: Int[np.ndarray, " edge"], j: Int[np.ndarray, " edge"]
) -> Float[np.ndarray, " replicate"]:
    """Sum of Bc_ij over chosen edges, in each resample."""
    if len(i) == 0:
        return np.zeros(len(weights))
    groups, dictionary = judged.totals.sums.groups, judged.sides.dictionary
    products = sum_products(judged.totals.pairing, i, j)
    n = np.maximum(weights @ groups.pairs, 1)[:, None]
    covariance = weights @ products / n - (weights @ groups.image[:, i] / n) * (weights @ groups.text[:, j] / n)
    return covariance @ np.einsum("ij,ij->i", dictionary[i], dictionary[j])


def _count_near(judged: Judged) -> dict[str, Any]:
    """Alive features whose atom has another alive atom within a cosine of NEAR."""
    atoms = judged.sides.dictionary[judged.activation.status != DEAD]
    n = 0
    for rows in iterate_blocks(len(atoms), ATOMS):
        cosine = atoms[rows] @ atoms.T
        cosine[np.arange(rows.stop - rows.start), np.arange(rows.start, rows.stop)] = -1.0
        n += int((cosine > NEAR).any(axis=1).sum())
    return {"value": n, "n": len(atoms), "unit": "alive features"}


def _by_class(classes: np.ndarray, shares: Float[np.ndarray, "replicate feature"], n: int) -> dict[str, Estimate]:
    return {name: estimate(shares[:, classes == name].sum(axis=1), n, UNIT) for name in CLASSES}


def _normalize(energy: Float[np.ndarray, "replicate feature"]) -> Float[np.ndarray, "replicate feature"]:
    return divide(energy, energy.sum(axis=1, keepdims=True))


def _describe_false(name: str, false: dict[str, float] | None) -> dict[str, Any]:
    return {} if false is None or name not in false else {"expected_false": false[name]}
