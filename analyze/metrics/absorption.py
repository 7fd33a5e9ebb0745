"""Did a dictionary learn a tree of concepts as it is? For toys whose true atoms are known."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from thresher.analyze.metrics.needs import need_equal, need_items, normalize_rows
from thresher.analyze.metrics.stability import match_dictionaries

RECOVERED = 0.5
"""Least cosine of a learned atom with the true one to say that it was learned; a child that swallowed its parent has 0.71."""


class TreeRecovery(NamedTuple):
    """Scores of learned atoms matched one to one with the true ones."""

    flat: float
    """Mean over pairs of siblings of (cos learned - cos true)^2; NaN without siblings."""
    hierarchical: float
    """The same over pairs of a concept and one above it."""
    absorption: float
    """Mean cosine of a recovered child's learned atom with its true parent, 0 when orthogonal parents stay out of it
    (arXiv 2506.03093, table 1); NaN when no child is recovered."""
    recovered: float
    """Share of concepts whose learned atom has a cosine of at least 0.5 with the true one."""
    atom: Int[np.ndarray, " concept"]
    """The learned atom of each concept; -1 when there are fewer atoms than concepts."""


def score_tree(
    learned: Float[np.ndarray, "d_sae d_in"], true: Float[np.ndarray, "concept width"], parent: Sequence[int]
) -> TreeRecovery:
    """Compare a dictionary with the true atoms of a tree (`parent` of each concept, -1 for roots), matched by cosine.

    The paper defines its flat score as the deviation from the true correlations within a level, its hierarchical score as
    unintended correlations across levels, and prints no formula: these are one reading of those words. Concepts without an
    atom are left out of both. Raises AnalysisError: no child in the tree, or widths differ.
    """
    need_equal("tree recovery", "concepts of the dictionary and of the tree", len(true), len(parent))
    above = np.array(parent, dtype=np.int64)
    need_items("tree recovery", int((above >= 0).sum()), 1, "concepts with a parent")
    matched = match_dictionaries(true, learned)
    atoms, truth = normalize_rows(learned)[matched.partner], normalize_rows(true)
    has_atom = matched.partner >= 0
    deviation = np.square(atoms @ atoms.T - truth @ truth.T)
    usable = np.triu(has_atom[:, None] & has_atom[None, :], 1)
    siblings = (above[:, None] == above[None, :]) & (above >= 0)[:, None]
    up = _mark_ancestors(above)
    is_recovered = has_atom & (np.nan_to_num(matched.cosine, nan=-1.0) >= RECOVERED)
    children = is_recovered & (above >= 0)
    leak = (atoms * truth[above]).sum(axis=1)[children]
    return TreeRecovery(
        flat=_mean(deviation[usable & siblings]),
        hierarchical=_mean(deviation[usable & (up | up.T)]),
        absorption=_mean(leak),
        recovered=float(is_recovered.mean()),
        atom=matched.partner,
    )


def _mark_ancestors(above: np.ndarray) -> np.ndarray:
    found = np.zeros((len(above), len(above)), dtype=bool)
    step = above.copy()
    for _ in range(len(above)):
        inside = np.flatnonzero(step >= 0)
        found[inside, step[inside]] = True
        step = np.where(step >= 0, above[step], -1)
    return found


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float("nan")
