"""Reaching a wanted L0 by trying: the setting for the next training from what earlier ones reached."""

import math
from collections.abc import Sequence
from typing import NamedTuple

LARGEST_STEP = 4.0
"""Factor by which a setting changes at most while the wanted L0 is not yet between two that were reached."""
INNER = 0.1
"""A setting between two others stays this share of their (logarithmic) distance away from both: so each try narrows it."""


class Tried(NamedTuple):
    """A training that asked for one L0 and reached another."""

    asked: float
    """What the architecture was set to reach (`with_l0`)."""
    reached: float
    """Realised L0 on held-out rows; NaN when the training diverged."""


def ask_next(tried: Sequence[Tried], wanted: float, largest: float) -> float:
    """What to ask for so that `wanted` is reached, when L0 grows with what is asked for.

    Between the nearest tries on both sides by regula falsi in logarithms, kept away from both ends as in bisection; outside
    by the ratio by which the last try missed. At most `largest`.
    """
    usable = [one for one in tried if math.isfinite(one.reached)]
    if not usable:
        return wanted
    below = max((one for one in usable if one.reached < wanted), key=lambda one: one.asked, default=None)
    above = min((one for one in usable if one.reached >= wanted), key=lambda one: one.asked, default=None)
    if below is not None and above is not None and below.asked < above.asked:
        return _interpolate(below, above, wanted)
    nearest = min(usable, key=lambda one: miss(one.reached, wanted))
    ratio = wanted / nearest.reached if nearest.reached > 0 else LARGEST_STEP
    return min(nearest.asked * min(max(ratio, 1 / LARGEST_STEP), LARGEST_STEP), largest)


def _interpolate(below: Tried, above: Tried, wanted: float) -> float:
    low, high = math.log(below.asked), math.log(above.asked)
    # One active atom in ten rows stands for none: its logarithm is finite.
    reached = [math.log(max(one.reached, 0.1)) for one in (below, above)]
    share = (math.log(wanted) - reached[0]) / (reached[1] - reached[0]) if reached[1] > reached[0] else 0.5
    return math.exp(low + (high - low) * min(max(share, INNER), 1 - INNER))


def miss(reached: float, wanted: float) -> float:
    """How far off an L0 is, as |log(reached / wanted)|; infinite for none and for a training that diverged."""
    return abs(math.log(reached / wanted)) if reached > 0 and math.isfinite(reached) else math.inf


def is_reached(reached: float, wanted: float | None, tolerance: float) -> bool:
    """Whether an L0 deviates by at most `tolerance`, relative; anything does when nothing is wanted."""
    return wanted is None or abs(reached / wanted - 1) <= tolerance
