"""Which items a dashboard shows: the strongest, and samples from the rest of the range."""

import itertools
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csc_array, csr_array

N_BANDS = 4
"""Quarters of the firing items, from the strongest to the weakest."""


class Chosen(NamedTuple):
    """Items of one feature and modality, as positions in the panel, with the codes they have."""

    top: Int[np.ndarray, " item"]
    top_codes: Float[np.ndarray, " item"]
    bands: list[Int[np.ndarray, " item"]]
    """A few items of each quarter of those it fires on; empty when all are among the strongest."""
    band_codes: list[Float[np.ndarray, " item"]]
    n: int
    """Items it fires on, equal texts counted once."""


def choose_items(codes: csr_array, same: Int[np.ndarray, " item"], n_top: int, n_samples: int) -> list[Chosen]:
    """For each feature the `n_top` items of the largest |z| and `n_samples` of each quarter, evenly spaced by rank.

    Items with equal numbers in `same` (equal captions) count as one, the strongest. Ties go to the first item. Costs a sort per
    feature.
    """
    columns = csc_array(codes)
    columns.sort_indices()
    return [_choose(*_column(columns, feature), same, n_top, n_samples) for feature in range(len(columns.indptr) - 1)]


def number_first(kinds: Int[np.ndarray, " item"]) -> Int[np.ndarray, " item"]:
    """0, 1, ... per different kind, in the order in which they first come."""
    _, first, place = np.unique(kinds, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[place]


def _column(columns: csc_array, feature: int) -> tuple[np.ndarray, np.ndarray]:
    start, stop = columns.indptr[feature], columns.indptr[feature + 1]
    values = np.asarray(columns.data[start:stop], dtype=np.float64)
    rows = np.asarray(columns.indices[start:stop], dtype=np.int64)
    return rows[values != 0], values[values != 0]


def _choose(rows: np.ndarray, values: np.ndarray, same: np.ndarray, n_top: int, n_samples: int) -> Chosen:
    order = np.lexsort((rows, -np.abs(values)))
    rows, values = rows[order], values[order]
    _, first = np.unique(same[rows], return_index=True)
    first.sort()
    rows, values = rows[first], values[first]
    places = _spread(len(rows), n_samples) if len(rows) > n_top else []
    return Chosen(
        rows[:n_top], values[:n_top], [rows[place] for place in places], [values[place] for place in places], len(rows)
    )


def _spread(n: int, n_samples: int) -> list[np.ndarray]:
    """Ranks in the middle of equal parts of each quarter of `n` ranks."""
    edges = np.linspace(0, n, N_BANDS + 1)
    middles = (np.arange(n_samples) + 0.5) / max(n_samples, 1)
    ranks = [np.unique((low + middles * (high - low)).astype(np.int64)) for low, high in itertools.pairwise(edges)]
    return [one for one in ranks if len(one)]
