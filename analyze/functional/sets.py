"""Sets of features to leave out or keep, and random sets beside them."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from thresher.analyze.battery.classes import BIMODAL, BRIDGED, CLASSES, DEAD, IMAGE, TEXT
from thresher.analyze.battery.judge import Judged
from thresher.analyze.metrics.needs import divide

TOLERANCE = 0.02
"""A random set of the same energy has it up to this share."""


class Sets(NamedTuple):
    """What can be left out, and what random sets are drawn from."""

    members: Mapping[str, Bool[np.ndarray, " feature"]]
    energy: Float[np.ndarray, " feature"]
    """Mean of a feature's shares of the energy of images and of texts; sums to 1."""
    alive: Bool[np.ndarray, " feature"]


def list_sets(judged: Judged) -> Sets:
    """The classes that have features, both kinds of bridged together, and what the gate of activation alone says
    (`fires_on_image`, `fires_on_text`, `fires_on_both`).
    """
    gate = judged.activation.gate
    members = {name: judged.classes == name for name in CLASSES if name != DEAD}
    members["bridged"] = np.isin(judged.classes, BRIDGED)
    members |= {f"fires_on_{name}": gate == kind for name, kind in (("image", IMAGE), ("text", TEXT), ("both", BIMODAL))}
    energies = [side.activity.energy[0] for side in (judged.sides.image, judged.sides.text)]
    shares = [np.nan_to_num(divide(energy, energy.sum())) for energy in energies]
    return Sets(
        {name: mask for name, mask in members.items() if mask.any()},
        (shares[0] + shares[1]) / 2,
        judged.classes != DEAD,
    )


def draw_of_energy(sets: Sets, members: Bool[np.ndarray, " feature"], generator: np.random.Generator) -> np.ndarray:
    """Alive features in random order, each taken if the set's energy is not exceeded by it. Members may be among them."""
    target, total = float(sets.energy[members].sum()), 0.0
    chosen = np.zeros(len(members), dtype=bool)
    for feature in generator.permutation(np.flatnonzero(sets.alive)):
        if total + sets.energy[feature] <= target * (1 + TOLERANCE):
            chosen[feature] = True
            total += float(sets.energy[feature])
        if total >= target * (1 - TOLERANCE):
            break
    return chosen


def draw_of_count(sets: Sets, members: Bool[np.ndarray, " feature"], generator: np.random.Generator) -> np.ndarray:
    """As many alive features, drawn at random. Members may be among them."""
    chosen = np.zeros(len(members), dtype=bool)
    chosen[generator.choice(np.flatnonzero(sets.alive), int(members.sum()), replace=False)] = True
    return chosen
