"""How the rows of a batch are divided among hook points and stores."""

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Literal

from thresher.errors import ConfigError

Balance = Literal["equal", "rows"]


def weigh(hook_points: Mapping[str, int], balance: Balance, weights: Mapping[str, float]) -> list[Fraction]:
    """What each hook point weighs in a batch, exactly; `hook_points` with their rows. Raises ConfigError: unknown names."""
    unknown = [name for name in weights if name not in hook_points]
    if unknown:
        raise ConfigError(f"weights: {unknown[0]!r} is none of the hook points that are trained on ({', '.join(hook_points)})")
    if weights:
        return [_exact(weights.get(name, 1.0)) for name in hook_points]
    return [Fraction(1 if balance == "equal" else rows) for rows in hook_points.values()]


def weigh_parts(hook_point: Fraction, parts: Sequence[float]) -> list[Fraction]:
    """The weight of a hook point divided among the stores that have it, in proportion to `parts`."""
    exact = [_exact(part) for part in parts]
    return [hook_point * part / sum(exact) for part in exact]


def to_integers(weights: Sequence[Fraction]) -> list[int]:
    """The same proportions in integers; integers stay what they are."""
    scale = math.lcm(*(weight.denominator for weight in weights))
    return [int(weight * scale) for weight in weights]


def _exact(weight: float) -> Fraction:
    """0.1 as 1 / 10, and not as the nearest sum of powers of two."""
    return Fraction(str(weight))


def share_out(n: int, weights: Sequence[int], credit: Sequence[int]) -> tuple[list[int], list[int]]:
    """Divide `n` rows by weight: the counts, and the credit to give to the next call.

    What a weight is owed and did not get (in units of 1 / sum(weights) of a row) is carried over, so that counts of many
    calls add up to the exact proportion within a row or two.
    """
    total = sum(weights)
    owed = [n * weight + carried for weight, carried in zip(weights, credit, strict=True)]
    counts = [max(0, value // total) for value in owed]
    left = [value - count * total for value, count in zip(owed, counts, strict=True)]
    while (missing := n - sum(counts)) != 0:
        step = 1 if missing > 0 else -1
        candidates = [index for index, count in enumerate(counts) if step > 0 or count > 0]
        chosen = max(candidates, key=lambda index: step * left[index])
        counts[chosen] += step
        left[chosen] -= step * total
    return counts, left
