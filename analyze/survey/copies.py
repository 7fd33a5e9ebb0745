"""How many features of each class remain when atoms that are almost the same count as one."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from thresher.analyze.battery.classes import CLASSES, DEAD
from thresher.analyze.statistics.rows import iterate_blocks

NEAR = 0.95
"""Cosine above which two atoms count as copies."""
AT_ONCE = 1024


def count_merged(atoms: Float[np.ndarray, "feature d_in"], classes: np.ndarray) -> Mapping[str, int]:
    """Per class the groups of unit atoms that cosines above NEAR join, within the class; dead ones are left out.

    Matching pursuit tolerates atoms that are alike, so that counts of its features may count copies.
    """
    counts: dict[str, int] = {}
    for name in CLASSES:
        if name == DEAD:
            continue
        chosen = atoms[classes == name]
        first: list[np.ndarray] = []
        second: list[np.ndarray] = []
        for rows in iterate_blocks(len(chosen), AT_ONCE):
            i, j = np.nonzero(chosen[rows] @ chosen.T > NEAR)
            first.append(i + rows.start)
            second.append(j)
        if not first:
            counts[name] = 0
            continue
        ends = np.concatenate(first), np.concatenate(second)
        graph = coo_array((np.ones(len(ends[0])), ends), shape=(len(chosen), len(chosen)))
        counts[name] = int(connected_components(graph, directed=False)[0])
    return counts
