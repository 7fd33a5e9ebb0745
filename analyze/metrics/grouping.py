"""Rows to items to records: sums and maxima over rows that belong together."""

from typing import cast

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_array


def membership(group: Int[np.ndarray, " row"], n_groups: int) -> csr_array:
    """The 0/1 matrix [group, row] whose product with anything per row is its sum per group."""
    n_rows = len(group)
    entries = (np.ones(n_rows), (group, np.arange(n_rows)))
    return csr_array(entries, shape=(n_groups, n_rows))


def sum_rows(
    values: Float[np.ndarray, "row width"], group: Int[np.ndarray, " row"], n_groups: int
) -> Float[np.ndarray, "group width"]:
    """Sums of dense rows per group, float64."""
    return membership(group, n_groups) @ values.astype(np.float64)


def max_rows(matrix: csr_array, group: Int[np.ndarray, " row"], n_groups: int) -> csr_array:
    """The largest absolute entry of each column within each group [group, column]; entries that are not stored are 0."""
    entries = matrix.tocoo()
    order = np.lexsort((np.abs(entries.data), entries.col, group[entries.row]))
    groups, columns, values = group[entries.row][order], entries.col[order], np.abs(entries.data)[order]
    is_last = np.ones(len(values), dtype=bool)
    is_last[:-1] = (groups[1:] != groups[:-1]) | (columns[1:] != columns[:-1])
    kept = (values[is_last], (groups[is_last], columns[is_last]))
    return csr_array(kept, shape=(n_groups, count_columns(matrix)))


def count_columns(matrix: csr_array) -> int:
    """The width of a sparse matrix."""
    return cast(tuple[int, int], matrix.shape)[1]


def count_rows(matrix: csr_array) -> int:
    """The height of a sparse matrix."""
    return cast(tuple[int, int], matrix.shape)[0]
