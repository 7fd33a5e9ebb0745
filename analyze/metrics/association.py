"""Does a feature fire where a concept is present? Contingency tables, phi, F1, exact tests."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy.sparse import csr_array
from scipy.stats import hypergeom


class Contingency(NamedTuple):
    """Counts over items of one modality, per resample."""

    both: Float[np.ndarray, "replicate feature concept"]
    """Items where the feature fires and the concept is present."""
    feature: Float[np.ndarray, "replicate feature"]
    """Items where the feature fires."""
    concept: Float[np.ndarray, "replicate concept"]
    """Items where the concept is present."""
    n: Float[np.ndarray, " replicate"]
    """Items."""


def count_together(
    fired: csr_array, present: Bool[np.ndarray, "item concept"], weights: Float[np.ndarray, "replicate item"]
) -> Contingency:
    """Weighted counts of firing (0/1 matrix [item, feature]) against presence. Costs O(replicate * nnz * concept).

    Weights are small integers: their sums are exact in float32 up to 2^24 items.
    """
    n_replicates, n_items = weights.shape
    by_feature = fired.T.tocsr().astype(np.float32)
    light = np.ascontiguousarray(weights.T, dtype=np.float32)
    weighted = (light[:, :, None] * present[:, None, :]).reshape(n_items, -1)
    both = (by_feature @ weighted).reshape(-1, n_replicates, present.shape[1])
    return Contingency(
        both=both.transpose(1, 0, 2).astype(np.float64),
        feature=(by_feature @ light).T.astype(np.float64),
        concept=weights @ present.astype(np.float64),
        n=weights.sum(1),
    )


def phi(counts: Contingency) -> Float[np.ndarray, "replicate feature concept"]:
    """Correlation of two 0/1 variables (Matthews): 1 for a perfect detector, 0 under independence, and small for a feature
    that fires far more or far less often than the concept is there. 0 where either is constant.
    """
    n = counts.n[:, None, None]
    feature, concept = counts.feature[:, :, None], counts.concept[:, None, :]
    covariance = counts.both * n - feature * concept
    variance = feature * (n - feature) * concept * (n - concept)
    return np.divide(covariance, np.sqrt(np.maximum(variance, 0)), out=np.zeros_like(covariance), where=variance > 0)


def f1(counts: Contingency) -> Float[np.ndarray, "replicate feature concept"]:
    """2 * both / (feature + concept): harmonic mean of precision and recall of "fires" as a detector; 0 where neither occurs.

    Has a base rate: firing always scores 2p / (1 + p) on a concept of frequency p.
    """
    total = counts.feature[:, :, None] + counts.concept[:, None, :]
    return np.divide(2 * counts.both, total, out=np.zeros_like(counts.both), where=total > 0)


def chance_of(
    both: Float[np.ndarray, " pair"], feature: Float[np.ndarray, " pair"], concept: Float[np.ndarray, " pair"], n: float
) -> Float[np.ndarray, " pair"]:
    """P(at least `both` items in common) when the items of the feature are shuffled: hypergeometric, exact, one-sided."""
    return np.asarray(hypergeom.sf(both - 1, n, concept, feature), dtype=np.float64)


def control_false_discoveries(p: Float[np.ndarray, " test"], n_tests: int | None = None) -> Float[np.ndarray, " test"]:
    """q-values of Benjamini & Hochberg 1995: calling all with q <= a keeps the expected share of false calls below a.

    Of more tests (`n_tests`) only some may have been kept; the others count as p = 1. Then the values are right when the kept
    ones are those of the smallest p, and too large, never too small, otherwise.
    """
    n = len(p)
    order = np.argsort(p)
    scaled = p[order] * (n if n_tests is None else n_tests) / np.arange(1, n + 1)
    q = np.empty(n)
    q[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return q
