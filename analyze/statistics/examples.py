"""The rows on which each feature is strongest."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_array

from thresher.analyze.statistics.rows import iterate_rows, read_entries, shape_of

ROWS = 65_536
"""Rows read at once. Any number gives the same examples."""


class Examples(NamedTuple):
    """The largest codes of each feature, strongest first; row -1 and value 0 where it fires less often."""

    row: Int[np.ndarray, "feature k"]
    value: Float[np.ndarray, "feature k"]
    """Signed."""


def find_examples(codes: csr_array, k: int) -> Examples:
    """The `k` rows of largest |z| per feature, in one pass over the rows; ties go to the earlier row. Memory: feature * k.

    Only entries that beat the k-th best so far are sorted, so the cost is soon that of reading.
    """
    n_features = shape_of(codes)[1]
    row, value = np.full((n_features, k), -1, np.int64), np.zeros((n_features, k))
    for block in iterate_rows(codes, block=ROWS):
        entries = read_entries(codes, block)
        better = np.abs(entries.value) > np.abs(value[entries.feature, k - 1])
        feature = entries.feature[better].astype(np.int64)
        if len(feature) == 0:
            continue
        changed = np.unique(feature)
        kept = row[changed] >= 0
        features = np.concatenate([np.repeat(changed, kept.sum(1)), feature])
        rows = np.concatenate([row[changed][kept], block.start + entries.row[better]])
        values = np.concatenate([value[changed][kept], entries.value[better]])
        order = np.lexsort((rows, -np.abs(values), features))
        features = features[order]
        rank = np.arange(len(features)) - np.searchsorted(features, features)
        first = rank < k
        place = features[first], rank[first]
        row[place], value[place] = rows[order][first], values[order][first]
    return Examples(row, value)
