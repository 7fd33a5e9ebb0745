"""Means over seeds with their intervals, and what members had reached when they had used equal time."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from thresher.train.sweep.outcome import Cost


class Estimate(NamedTuple):
    """A mean over seeds."""

    mean: float
    half: float
    """Half the width of its 95 % interval; NaN for fewer than two values."""

    @property
    def low(self) -> float:
        """Lower end of the interval."""
        return self.mean - self.half

    @property
    def high(self) -> float:
        """Upper end of the interval."""
        return self.mean + self.half


def estimate(values: Sequence[float]) -> Estimate:
    """Mean of finite values and its 95 % interval by Student's t; NaN where there are none."""
    finite = np.array([value for value in values if math.isfinite(value)], np.float64)
    if len(finite) == 0:
        return Estimate(math.nan, math.nan)
    if len(finite) == 1:
        return Estimate(float(finite[0]), math.nan)
    spread = finite.std(ddof=1) / math.sqrt(len(finite))
    return Estimate(float(finite.mean()), float(stats.t.ppf(0.975, len(finite) - 1) * spread))


def reach_by(cost: Cost, seconds: float) -> Mapping[str, float]:
    """R2 by hook point when a member had spent so much time: between two evaluations on a straight line.

    NaN before its first evaluation and after its end. Its learning rate had then not decayed as at the end of a training
    of that length, so that this understates what such a training would reach.
    """
    times = [float(point["seconds"]) for point in cost.curve]
    names = cost.curve[0]["r2"] if cost.curve else {}
    is_inside = bool(times) and times[0] <= seconds <= times[-1]
    values: dict[str, Any] = {name: [point["r2"][name] for point in cost.curve] for name in names}
    return {name: float(np.interp(seconds, times, line)) if is_inside else math.nan for name, line in values.items()}
