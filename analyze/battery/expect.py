"""The class that a feature should have, from the concepts that it tracks; and how often the rule agrees."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from thresher.analyze.battery.classes import (
    BIAS,
    COLLINEAR,
    DEAD,
    HETEROGENEOUS,
    IMAGE,
    POLYSEMANTIC,
    RARE,
    SHARED,
    SPECIFIC,
    TEXT,
    UNDECIDED,
)
from thresher.analyze.truth import Rule, Tracking
from thresher.data.records import Concept

NOTHING = ""
"""Expected of a feature that tracks no concept."""
BRIDGE = "bridged"
"""Both kinds of bridge: ground truth knows of concepts, not of atoms."""
SCORED = (SHARED, POLYSEMANTIC, BRIDGE, SPECIFIC)
"""Classes that concepts can speak for."""
MERGED = {COLLINEAR: BRIDGE, HETEROGENEOUS: BRIDGE, BIAS: SPECIFIC}
"""What ground truth cannot tell apart: a feature of a concept that only one modality shows may carry the gap too."""


def expect_classes(found: Tracking, concepts: Sequence[Concept], activation: np.ndarray, rule: Rule) -> np.ndarray:
    """Class by what each feature tracks [feature]; empty where the truth does not say.

    `shared` when it tracks one concept on both modalities (at least half as well on the other one, and beyond chance);
    `bimodal-polysemantic` when it tracks different ones. Of the features that fire on one modality by the gate of `activation`:
    `bridged` when it tracks a concept that a feature of the other modality alone tracks there, else `modality-specific`. A
    feature that fires on both but tracks something on one only may stand for anything on the other.
    """
    on_image, on_text = found.detects
    visible = np.array([concept.visibility for concept in concepts]) == "shared"
    tracks = np.stack([on_image.any(axis=1), on_text.any(axis=1)])
    weakly = (found.phi >= rule.min_score / 2) & (found.q <= rule.alpha)
    same = ((on_image | on_text) & weakly.all(axis=0)).any(axis=1)
    partner = np.stack([_has_partner(on_image, on_text, visible), _has_partner(on_text, on_image, visible)])
    is_one_sided = np.isin(activation, (IMAGE, TEXT))
    rules = [
        (same, SHARED),
        (tracks.all(axis=0), POLYSEMANTIC),
        (is_one_sided & (tracks & partner).any(axis=0), BRIDGE),
        (is_one_sided & tracks.any(axis=0), SPECIFIC),
    ]
    return np.select([condition for condition, _ in rules], [name for _, name in rules], NOTHING)


def _has_partner(
    mine: Bool[np.ndarray, "feature concept"],
    theirs: Bool[np.ndarray, "feature concept"],
    visible: Bool[np.ndarray, " concept"],
) -> Bool[np.ndarray, " feature"]:
    """Whether a concept that the feature tracks on one modality is tracked by a feature of the other modality alone."""
    alone = theirs[~mine.any(axis=1)].any(axis=0) & visible
    return np.any(mine & alone, axis=1)


def score_expected(classes: np.ndarray, expected: np.ndarray) -> dict[str, Any]:
    """Precision and recall per class over the features that track something and whose class is decided, and the whole table."""
    found = np.array([MERGED.get(str(name), str(name)) for name in classes])
    scored = (expected != NOTHING) & ~np.isin(found, (UNDECIDED, RARE, DEAD))
    scores: dict[str, Any] = {}
    for name in SCORED:
        is_found, is_expected = scored & (found == name), scored & (expected == name)
        right = float((is_found & is_expected).sum())
        scores[name] = {
            "precision": _share(right, is_found),
            "recall": _share(right, is_expected),
        }
    names = sorted(set(found[expected != NOTHING].tolist()))
    table = {name: {seen: int(((found == name) & (expected == seen)).sum()) for seen in SCORED} for name in names}
    left_out = int(((expected != NOTHING) & ~scored).sum())
    return {"classes": scores, "confusion": table, "undecided": {"value": left_out, "unit": "features"}}


def _share(right: float, members: Bool[np.ndarray, " feature"]) -> dict[str, Any]:
    n = int(members.sum())
    return {"value": right / n if n else None, "n": n, "unit": "features"}
