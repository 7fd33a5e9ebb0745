"""Which features are parts of which: firing that implies firing, order of selection, and a score against a true tree."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_array

from thresher.analyze.metrics.grouping import count_columns, count_rows
from thresher.analyze.metrics.needs import divide, need_equal, need_items

ROWS_AT_ONCE = 4096


class Nesting(NamedTuple):
    """Edges from features to features that fire nearly whenever they do."""

    child: Int[np.ndarray, " edge"]
    parent: Int[np.ndarray, " edge"]
    up: Float[np.ndarray, " edge"]
    """P(parent fires | child fires)."""
    down: Float[np.ndarray, " edge"]
    """P(child fires | parent fires): small for a parent of many children."""
    lift: Float[np.ndarray, " edge"]
    """P(parent | child) / P(parent); 1 for features that have nothing to do with each other."""


def find_nesting(codes: csr_array, least_up: float, most_down: float, min_fires: int, min_lift: float) -> Nesting:
    """Pairs with P(parent | child) >= `least_up` and P(child | parent) <= `most_down` over the rows of `codes`.

    The second bound tells a parent from a twin. A feature that fires on nearly every row is implied by all others, so the lift
    has to be at least `min_lift` too. Children that fire fewer than `min_fires` times are left out. Sparse: O(row k^2).
    Raises AnalysisError: no rows.
    """
    need_items("nesting", count_rows(codes), 1, "rows")
    fired = csr_array((np.ones(codes.nnz), codes.indices, codes.indptr), shape=codes.shape)
    fires = np.bincount(codes.indices, minlength=count_columns(codes)).astype(np.float64)
    together = (fired.T @ fired).tocoo()
    child, parent, both = together.row.astype(np.int64), together.col.astype(np.int64), together.data
    up, down = both / fires[child], both / fires[parent]
    lift = up / (fires[parent] / count_rows(codes))
    kept = (child != parent) & (up >= least_up) & (down <= most_down) & (fires[child] >= min_fires) & (lift >= min_lift)
    return Nesting(child[kept], parent[kept], up[kept], down[kept], lift[kept])


def count_precedence(indices: Int[np.ndarray, "row k"], values: Float[np.ndarray, "row k"], d_sae: int) -> csr_array:
    """O_ij = rows in which feature i is first picked before feature j is, both being picked [d_sae, d_sae]; the diagonal is 0.

    Codes in the order of selection; picks of coefficient 0 are padding. Costs O(row k^2).
    """
    total = csr_array((d_sae, d_sae))
    n_steps = indices.shape[1]
    earlier, later = np.triu_indices(n_steps, 1)
    for start in range(0, len(indices), ROWS_AT_ONCE):
        part, active = indices[start : start + ROWS_AT_ONCE], values[start : start + ROWS_AT_ONCE] != 0
        first = active.copy()
        for step in range(1, n_steps):
            first[:, step] &= ~((part[:, :step] == part[:, [step]]) & active[:, :step]).any(axis=1)
        both = first[:, earlier] & first[:, later]
        pairs = part[:, earlier][both], part[:, later][both]
        total = csr_array(total + csr_array((np.ones(len(pairs[0])), pairs), shape=(d_sae, d_sae)))
    return total


def precede(order: csr_array, first: Int[np.ndarray, " edge"], second: Int[np.ndarray, " edge"]) -> Float[np.ndarray, " edge"]:
    """P(first is picked before second | both are), from `count_precedence`; 0.5 says no order, NaN that they never meet.

    A parent that carries more of a row than its child is picked before it, so precedence should agree with nesting.
    """
    if not len(first):
        # SciPy gives no entries of a sparse array as a sparse array.
        return np.zeros(0)
    forth, back = (np.asarray(order[a, b], dtype=np.float64).ravel() for a, b in ((first, second), (second, first)))
    return divide(forth, forth + back)


class TreeScore(NamedTuple):
    """How found edges compare with a true tree, among features that stand for a concept."""

    precision: float
    """Share of found edges between features of different concepts whose parent is an ancestor of the child; NaN without one."""
    recall: float
    """Share of the tree's edges, with a feature for both ends, that some found edge shows; NaN without one."""
    by_chance: float
    """Share of ordered pairs of the same features that would be right: what edges at random score as precision."""
    n_found: int
    n_true: int


def score_nesting(nesting: Nesting, concept: Int[np.ndarray, " feature"], parent: Sequence[int]) -> TreeScore:
    """Compare nesting with a tree of concepts: `concept` is each feature's concept or -1, `parent` each concept's, or -1.

    Several features may share a concept: edges between those are left out. Raises AnalysisError: a concept beyond the tree.
    """
    need_items("tree score", len(parent), int(concept.max(initial=-1)) + 1, "concepts in the tree")
    ancestors = _list_ancestors(parent)
    child, above = concept[nesting.child], concept[nesting.parent]
    counted = (child >= 0) & (above >= 0) & (child != above)
    found = set(zip(child[counted].tolist(), above[counted].tolist(), strict=True))
    right = [bool(ancestors[a, b]) for a, b in zip(child[counted], above[counted], strict=True)]
    known = np.unique(concept[concept >= 0])
    true = [(int(c), int(parent[c])) for c in known if parent[c] in known]
    members = np.bincount(concept[concept >= 0], minlength=len(parent)).astype(np.float64)
    pairs = np.outer(members, members) * (1 - np.eye(len(parent)))
    return TreeScore(
        precision=float(np.mean(right)) if right else float("nan"),
        recall=float(np.mean([edge in found for edge in true])) if true else float("nan"),
        by_chance=float(divide((pairs * ancestors).sum(), pairs.sum())),
        n_found=len(right),
        n_true=len(true),
    )


def _list_ancestors(parent: Sequence[int]) -> np.ndarray:
    """[concept, concept]: whether the second is above the first."""
    found = np.zeros((len(parent), len(parent)))
    for concept in range(len(parent)):
        above = parent[concept]
        while above >= 0 and not found[concept, above]:
            found[concept, above] = 1
            above = parent[above]
    need_equal("tree of concepts", "concepts, and those not above themselves", len(parent), int((np.diag(found) == 0).sum()))
    return found
