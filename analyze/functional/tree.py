"""Are features nested as the concepts that they track? Scored against the tree of the source."""

from typing import Any

import numpy as np
from jaxtyping import Int
from scipy.sparse import csr_array

from thresher.analyze.battery.steps import is_pursuit
from thresher.analyze.functional.held import Half
from thresher.analyze.metrics.estimate import estimate, exact
from thresher.analyze.metrics.grouping import count_rows
from thresher.analyze.metrics.hierarchy import Nesting, count_precedence, find_nesting, precede, score_nesting
from thresher.analyze.panels import Panel
from thresher.data.store import Store
from thresher.train.checkpoint import TrainedSAE

LEAST_UP, MOST_DOWN, LEAST_FIRES, LEAST_LIFT = 0.8, 0.8, 10, 1.2
"""P(parent | child), P(child | parent), firings of the child, P(parent | child) / P(parent)."""
RESAMPLES = 40
"""Resamples of the records; in each the edges are found again."""


def score_tree(half: Half, concept: Int[np.ndarray, " feature"], parent: Int[np.ndarray, " concept"]) -> dict[str, Any]:
    """Precision and recall of nested firing against the tree, beside what edges at random would have."""
    tree = [int(above) for above in parent]
    scores = [
        score_nesting(_nest(half.codes, half.weights[line]), concept, tree) for line in range(min(len(half.weights), RESAMPLES))
    ]
    own = scores[0]
    return {
        "precision": estimate(np.array([one.precision for one in scores]), own.n_found, "edges"),
        "recall": estimate(np.array([one.recall for one in scores]), own.n_true, "true edges"),
        "by_chance": exact(own.by_chance, own.n_found, "edges"),
    }


def measure_precedence(
    trained: TrainedSAE, store: Store, panel: Panel, half: Half, concept: Int[np.ndarray, " feature"], parent: np.ndarray
) -> dict[str, Any]:
    """How often a parent is picked before its child, over nested features (`nested`) and over those whose concepts are
    parent and child in the tree (`true`); empty unless the codes are those of a pursuit. 0.5 says no order.
    """
    if not is_pursuit(trained):
        return {}
    rows = np.flatnonzero(np.isin(panel.item, half.items))
    x = store.read_rows(panel.hook_point, panel.rows[rows]).float()
    codes = trained.encode(x, panel.hook_point)
    order = count_precedence(
        codes.indices.cpu().numpy().astype(np.int64), codes.values.double().cpu().numpy(), trained.sae.d_sae
    )
    nested = _nest(half.codes, half.weights[0])
    children = np.flatnonzero((concept >= 0) & (parent[concept] >= 0))
    pairs = [(child, above) for child in children for above in np.flatnonzero(concept == parent[concept[child]])]
    true = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    found: dict[str, Any] = {}
    for name, above, child in (("nested", nested.parent, nested.child), ("true", true[:, 1], true[:, 0])):
        share = precede(order, above, child)
        met = share[np.isfinite(share)]
        replicates = _resample_edges(met, half)
        found[f"precedence_{name}"] = estimate(replicates, len(met), "edges")
    return found


def _resample_edges(shares: np.ndarray, half: Half) -> np.ndarray:
    """Mean over edges; the interval resamples edges, since precedence is counted over all records at once."""
    if not len(shares):
        return np.full(len(half.weights), np.nan)
    generator = np.random.default_rng(0)
    drawn = generator.choice(shares, (len(half.weights) - 1, len(shares))).mean(axis=1)
    return np.concatenate([[shares.mean()], drawn])


def _nest(codes: csr_array, weights: np.ndarray) -> Nesting:
    """Nesting among items that stand as often as their record was drawn."""
    rows = np.repeat(np.arange(count_rows(codes)), np.rint(weights).astype(np.int64))
    return find_nesting(csr_array(codes[rows]), LEAST_UP, MOST_DOWN, LEAST_FIRES, LEAST_LIFT)
