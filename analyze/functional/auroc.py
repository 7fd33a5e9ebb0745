"""How well scores tell items with a label from those without, in every resample."""

import numpy as np
from jaxtyping import Bool, Float


def weigh_auroc(
    scores: Float[np.ndarray, " item"], present: Bool[np.ndarray, " item"], weights: Float[np.ndarray, "replicate item"]
) -> Float[np.ndarray, " replicate"]:
    """P(score of a random item with the label > of one without), ties half, items weighted; NaN where a side has no weight."""
    order = np.argsort(scores, kind="stable")
    ordered, positive = scores[order], present[order]
    starts = np.concatenate([[0], 1 + np.flatnonzero(ordered[1:] != ordered[:-1])])
    has = np.add.reduceat(weights[:, order] * positive, starts, axis=1)
    lacks = np.add.reduceat(weights[:, order] * ~positive, starts, axis=1)
    below = np.cumsum(lacks, axis=1) - lacks / 2
    total = has.sum(axis=1) * lacks.sum(axis=1)
    return np.divide((has * below).sum(axis=1), total, out=np.full(len(weights), np.nan), where=total > 0)


def average_auroc(
    scores: Float[np.ndarray, "item label"],
    present: Bool[np.ndarray, "item label"],
    weights: Float[np.ndarray, "replicate item"],
) -> Float[np.ndarray, " replicate"]:
    """Mean over labels; resamples without a label's items leave that label out."""
    found = np.stack([weigh_auroc(scores[:, c], present[:, c], weights) for c in range(scores.shape[1])])
    n = np.isfinite(found).sum(axis=0)
    return np.divide(np.nansum(found, axis=0), n, out=np.full(found.shape[1], np.nan), where=n > 0)
