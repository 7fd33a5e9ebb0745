"""Few cases out of many."""

import itertools
from collections.abc import Sequence
from typing import Any


def cover(*factors: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Cases, each a value of every factor, in which every two values of two factors meet: a pairwise covering array.

    Greedy, and the same every time; two factors give all their combinations.
    """
    cases = list(itertools.product(*(range(len(factor)) for factor in factors)))
    pairs = {case: set(itertools.combinations(enumerate(case), 2)) for case in cases}
    missing = set().union(*pairs.values())
    chosen = []
    while missing:
        chosen.append(max(cases, key=lambda case: len(pairs[case] & missing)))
        missing -= pairs[chosen[-1]]
    return [tuple(factor[place] for factor, place in zip(factors, case, strict=True)) for case in chosen]
