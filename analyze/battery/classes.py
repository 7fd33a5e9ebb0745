"""The classes of features and the rule that gives each feature one."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from thresher.analyze.config import Battery

SHARED = "shared"
POLYSEMANTIC = "bimodal-polysemantic"
COLLINEAR = "bridged-collinear"
HETEROGENEOUS = "bridged-heterogeneous"
BIAS = "modality-bias"
SPECIFIC = "modality-specific"
UNDECIDED = "undecided"
RARE = "rare"
DEAD = "dead"
CLASSES = (SHARED, POLYSEMANTIC, COLLINEAR, HETEROGENEOUS, BIAS, SPECIFIC, UNDECIDED, RARE, DEAD)
"""All classes, in the order in which tables list them."""
BRIDGED = (COLLINEAR, HETEROGENEOUS)

PASS, FAIL, NOT_TESTED = "pass", "fail", "not tested"
BIMODAL, IMAGE, TEXT = "bimodal", "image", "text"
"""What the gate of activation says; the fourth is UNDECIDED."""
ONE_SIDED, OK = "one-sided", "ok"
"""What a status can be besides DEAD and RARE."""
ROUNDING = 1e-9
GATES = ("activation", "pairing", "meaning", "causal", "robustness")
USED = ("activation", "pairing", "meaning")
"""Gates that the rule always uses; the others only where the settings require them."""


class Gates(NamedTuple):
    """All that the rule looks at, one entry per feature."""

    status: np.ndarray
    """DEAD, RARE, ONE_SIDED or OK."""
    activation: np.ndarray
    """BIMODAL, IMAGE, TEXT or UNDECIDED."""
    pairing: np.ndarray
    """PASS, FAIL or NOT_TESTED, as for the other gates."""
    meaning: np.ndarray
    causal: np.ndarray
    robustness: np.ndarray
    has_partner: Bool[np.ndarray, " feature"]
    """Whether it has a mutual partner on the other modality, more strongly correlated than chance allows."""
    partner_cosine: Float[np.ndarray, " feature"]
    """Cosine of its atom with that of its best partner; NaN without one."""
    is_dense: Bool[np.ndarray, " feature"]
    gap_share: Float[np.ndarray, " feature"]
    gap_cosine: Float[np.ndarray, " feature"]


def classify(gates: Gates, settings: Battery) -> np.ndarray:
    """The class of each feature [feature], strings; deterministic, the first rule that applies decides.

    Dead; rare; undecided (the interval of the modality score crosses a threshold); then of the bimodal ones `shared` when
    pairing and meaning pass and `bimodal-polysemantic` otherwise; of those of one modality `modality-bias` when dense and
    carrying the gap, `bridged-*` with a significant mutual partner, else `modality-specific`. A gate that was not tested
    stops nothing.
    """
    kept = np.ones(len(gates.status), dtype=bool)
    for name in ("pairing", "meaning", *settings.require):
        kept &= getattr(gates, name) != FAIL
    carries_gap = (np.abs(gates.gap_share) >= settings.bias_gap_share) | (
        np.nan_to_num(gates.gap_cosine) >= settings.bias_cosine
    )
    is_bimodal = gates.activation == BIMODAL
    # A cosine that was set to the threshold is not above it by its rounding.
    collinear = np.nan_to_num(gates.partner_cosine, nan=-1.0) > settings.collinear_above + ROUNDING
    rules = [
        (gates.status == DEAD, DEAD),
        (gates.status == RARE, RARE),
        (gates.activation == UNDECIDED, UNDECIDED),
        (is_bimodal & kept, SHARED),
        (is_bimodal, POLYSEMANTIC),
        (gates.is_dense & carries_gap, BIAS),
        (gates.has_partner & collinear, COLLINEAR),
        (gates.has_partner, HETEROGENEOUS),
    ]
    return np.select([condition for condition, _ in rules], [name for _, name in rules], SPECIFIC)


def count(classes: np.ndarray) -> dict[str, int]:
    """How many features each class has."""
    return {name: int((classes == name).sum()) for name in CLASSES}


def count_with_and_without(gates: Gates, settings: Battery) -> dict[str, dict[str, int]]:
    """Counts of the classes by the rule, without each gate that it uses, and with each that it does not use.

    Without the gate of activation every feature that is neither dead nor rare counts as bimodal.
    """
    found = {"with_all": count(classify(gates, settings))}
    untested = np.full(len(gates.status), NOT_TESTED)
    for name in (*USED, *settings.require):
        changed = np.full(len(gates.status), BIMODAL) if name == "activation" else untested
        found[f"without_{name}"] = count(classify(gates._replace(**{name: changed}), settings))
    for name in GATES:
        if name not in (*USED, *settings.require):
            failing = np.where(getattr(gates, name) == FAIL, FAIL, gates.pairing)
            found[f"and_{name}"] = count(classify(gates._replace(pairing=failing), settings))
    return found


def count_gates(gates: Gates) -> dict[str, dict[str, int]]:
    """How many features pass, fail and were not tested, per gate; for activation how many have each outcome."""
    alive = gates.status != DEAD
    found: dict[str, dict[str, int]] = {}
    for name in GATES:
        outcome = getattr(gates, name)[alive]
        names = (BIMODAL, IMAGE, TEXT, UNDECIDED) if name == "activation" else (PASS, FAIL, NOT_TESTED)
        found[name] = {one.replace(" ", "_"): int((outcome == one).sum()) for one in names}
    return found
