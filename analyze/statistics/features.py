"""What each feature does on the rows of one modality."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_array

from thresher.analyze.statistics.rows import iterate_rows, read_entries, shape_of

N_BINS = 64
"""Bins of the histogram of |z|."""
LOWEST, PER_OCTAVE = -16, 2
"""The first bin begins at 2^LOWEST (and takes what is below), two bins per factor of two; the last takes what is above."""


class FeatureSums(NamedTuple):
    """Sufficient statistics per feature over the rows of one modality."""

    n_rows: int
    fires: Int[np.ndarray, " feature"]
    """Rows with z != 0."""
    total: Float[np.ndarray, " feature"]
    """Sum of z."""
    absolute: Float[np.ndarray, " feature"]
    """Sum of |z|."""
    energy: Float[np.ndarray, " feature"]
    """Sum of z^2."""
    fourth: Float[np.ndarray, " feature"]
    """Sum of z^4."""
    largest: Float[np.ndarray, " feature"]
    """Largest |z|; 0 when it never fires."""
    n_negative: Int[np.ndarray, " feature"]
    """Rows with z < 0."""
    first: Int[np.ndarray, " feature"]
    """First row in which it fires; -1 when it never does."""
    last: Int[np.ndarray, " feature"]
    """Last row in which it fires; -1 when it never does."""
    histogram: Int[np.ndarray, "feature bin"]
    """Firing rows by |z|, in the bins of `bin_edges`."""


def bin_edges() -> Float[np.ndarray, " edge"]:
    """Edges of the histogram of |z|, [N_BINS + 1]: half octaves from 2^-16 to 2^16."""
    return 2.0 ** (LOWEST + np.arange(N_BINS + 1) / PER_OCTAVE)


def sum_features(codes: csr_array) -> FeatureSums:
    """Statistics of codes [row, feature], summed in blocks of a fixed size in order: the same rows give the same bits.

    Costs O(stored entries); memory beyond the result is one block.
    """
    n_rows, n_features = shape_of(codes)
    counts = np.zeros((2, n_features), np.int64)
    sums = np.zeros((4, n_features))
    largest, first, last = np.zeros(n_features), np.full(n_features, n_rows, np.int64), np.full(n_features, -1, np.int64)
    histogram = np.zeros(n_features * N_BINS, np.int64)
    for rows in iterate_rows(codes):
        row, feature, value = read_entries(codes, rows)
        size, square = np.abs(value), np.square(value)
        counts += np.stack([np.bincount(feature[chosen], minlength=n_features) for chosen in (value != 0, value < 0)])
        for total, weight in zip(sums, (value, size, square, np.square(square)), strict=True):
            total += np.bincount(feature, weights=weight, minlength=n_features)
        np.maximum.at(largest, feature, size)
        np.minimum.at(first, feature, rows.start + row)
        np.maximum.at(last, feature, rows.start + row)
        histogram += np.bincount(feature * np.int64(N_BINS) + _bin(size), minlength=len(histogram))
    first[counts[0] == 0] = -1
    return FeatureSums(
        n_rows=n_rows,
        fires=counts[0],
        total=sums[0],
        absolute=sums[1],
        energy=sums[2],
        fourth=sums[3],
        largest=largest,
        n_negative=counts[1],
        first=first,
        last=last,
        histogram=histogram.reshape(n_features, N_BINS),
    )


def _bin(size: Float[np.ndarray, " entry"]) -> Int[np.ndarray, " entry"]:
    return np.clip(np.searchsorted(bin_edges(), size, side="right") - 1, 0, N_BINS - 1)
