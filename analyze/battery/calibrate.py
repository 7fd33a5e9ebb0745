"""How often the rule, with the thresholds and the number of pairs of this analysis, is right where the truth is known."""

from typing import Any

import numpy as np

from thresher.analyze.battery.classes import CLASSES
from thresher.analyze.battery.judge import Settings, judge
from thresher.analyze.battery.toy import Toy, World, draw_toy

COSINES = (1.0, 0.8, 0.5, 0.0)
"""Cosines of the two atoms of a shared concept."""


def calibrate(n_pairs: int, settings: Settings) -> dict[str, Any]:
    """Precision and recall per class on the made world, one entry per cosine of the atoms of its shared concepts."""
    found: dict[str, Any] = {}
    for cosine in COSINES:
        toy = Toy(n_records=n_pairs, cosine=cosine, seed=settings.resample.seed)
        world = draw_toy(toy, settings.resample, settings.battery.collinear_above)
        found[f"{cosine:g}"] = score_classes(classify_world(world, settings), world.expected)
    return {"n_pairs": n_pairs, "by_cosine": found}


def classify_world(world: World, settings: Settings) -> np.ndarray:
    """The classes that the rule gives the features of a made world."""
    return judge(world.sides, world.embeddings, None, settings).classes


def score_classes(found: np.ndarray, expected: np.ndarray) -> dict[str, Any]:
    """Precision and recall of each class that occurs on either side, with the numbers of features behind them."""
    scores: dict[str, Any] = {}
    for name in CLASSES:
        is_found, is_expected = found == name, expected == name
        if not (is_found.any() or is_expected.any()):
            continue
        right = int((is_found & is_expected).sum())
        scores[name] = {
            "precision": {
                "value": right / is_found.sum() if is_found.any() else None,
                "n": int(is_found.sum()),
                "unit": "features",
            },
            "recall": {
                "value": right / is_expected.sum() if is_expected.any() else None,
                "n": int(is_expected.sum()),
                "unit": "features",
            },
        }
    return scores
