"""A number that says how many things it was measured on, in which unit, and how sure it is."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

LEVEL = 0.95
"""Coverage of every interval of this package."""


class Estimate(NamedTuple):
    """One reported number."""

    value: float | None
    """None where the measure is undefined (nothing to divide by)."""
    low: float | None
    """Lower end of the 95 % interval; None when there is none."""
    high: float | None
    n: int
    """How many units the number was measured on."""
    unit: str
    """What `n` counts: rows, items, features, concepts, documents."""


def estimate(replicates: Float[np.ndarray, " replicate"], n: int, unit: str) -> Estimate:
    """The measure on the data as they are (replicate 0) with the percentile interval of the other replicates.

    NaN means undefined: a NaN value becomes None, NaN replicates are left out of the interval.
    """
    value = _defined(float(replicates[0]))
    resampled = replicates[1:][np.isfinite(replicates[1:])]
    if value is None or len(resampled) == 0:
        return Estimate(value, None, None, n, unit)
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(low), float(high), n, unit)


def exact(value: float, n: int, unit: str) -> Estimate:
    """A number without an interval: a count, or a property of the dictionary."""
    return Estimate(_defined(value), None, None, n, unit)


def _defined(value: float) -> float | None:
    return value if np.isfinite(value) else None
