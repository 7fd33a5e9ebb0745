"""How sparse codes are: per row over atoms, and per feature over rows."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.sparse import csr_array

from thresher.analyze.metrics.codes import count_active
from thresher.analyze.metrics.grouping import count_columns, count_rows
from thresher.analyze.metrics.needs import divide, need_items


class RowSparsity(NamedTuple):
    """One number per row of codes."""

    l0: Float[np.ndarray, " row"]
    """Different active atoms: a count. MSAE prints the share of zeros, overcomplete the share of non-zeros, as "L0"."""
    l1: Float[np.ndarray, " row"]
    """Sum of |z|."""
    hoyer: Float[np.ndarray, " row"]
    """(sqrt M - L1 / L2) / (sqrt M - 1): 1 for a single active atom, 0 when all are equally active; NaN for a row of zeros."""
    kurtosis: Float[np.ndarray, " row"]
    """kappa_4 = sum z^4 / (sum z^2)^2 (Hurley & Rickard 2009): 1 for a single active atom, 1 / L0 when L0 are equal."""


def measure_rows(codes: csr_array) -> RowSparsity:
    """Sparsity of each row of codes [row, d_sae]. Raises AnalysisError: fewer than 2 atoms."""
    n_atoms = count_columns(codes)
    need_items("Hoyer's sparsity", n_atoms, 2, "atoms")
    l1, square, fourth = (np.asarray(abs(codes).power(power).sum(axis=1), dtype=np.float64) for power in (1, 2, 4))
    root = np.sqrt(n_atoms)
    return RowSparsity(
        l0=count_active(codes).astype(np.float64),
        l1=l1,
        hoyer=(root - divide(l1, np.sqrt(square))) / (root - 1),
        kurtosis=divide(fourth, square**2),
    )


class FeatureSparsity(NamedTuple):
    """How the activity |z| of each feature spreads over the rows; NaN for dead features."""

    entropy: Float[np.ndarray, " feature"]
    """-sum p log p / log(rows), p = |z| / sum |z|: 0 when it fires once, 1 when on all rows alike."""
    gini: Float[np.ndarray, " feature"]
    """0 when on all rows alike, (rows - 1) / rows when it fires once."""


def measure_features(codes: csr_array) -> FeatureSparsity:
    """Entropy and Gini coefficient of |z| over rows. Raises AnalysisError: fewer than 2 rows."""
    n_rows, n_features = count_rows(codes), count_columns(codes)
    need_items("entropy over rows", n_rows, 2, "rows")
    entries = abs(codes).tocoo()
    order = np.lexsort((entries.data, entries.col))
    column, size = entries.col[order], entries.data[order]
    fires = np.bincount(column, minlength=n_features)
    total = np.bincount(column, weights=size, minlength=n_features)
    p = size / total[column]
    surprise = -np.bincount(column, weights=p * np.log(p), minlength=n_features)
    # Zeros come first in ascending order, so the j-th of n firings has rank rows - n + j.
    place = np.arange(len(column)) - np.repeat(np.cumsum(fires) - fires, fires)
    rank = n_rows - fires[column] + place + 1
    ranked = np.bincount(column, weights=rank * size, minlength=n_features)
    is_dead = fires == 0
    return FeatureSparsity(
        entropy=np.where(is_dead, np.nan, surprise / np.log(n_rows)),
        gini=2 * divide(ranked, n_rows * total) - np.where(is_dead, np.nan, (n_rows + 1) / n_rows),
    )


class Densities(NamedTuple):
    """Shares of features that fire often, and how persistent firing is (SAEBench, arXiv 2503.09532)."""

    above_1_percent: float
    above_10_percent: float
    rows_per_record: Float[np.ndarray, " feature"]
    """Firing rows per record in which the feature fires at all: 1 for one row per record; NaN for dead features."""


def measure_density(
    fires: Float[np.ndarray, " feature"], firing_records: Float[np.ndarray, " feature"], n_rows: float
) -> Densities:
    """From the counts of firing rows, and of records (prompts, images) with at least one. Raises AnalysisError: no rows."""
    need_items("density", int(n_rows), 1, "rows")
    rate = fires / n_rows
    return Densities(float((rate > 0.01).mean()), float((rate > 0.1).mean()), divide(fires, firing_records))
