"""One walk over the cross-modal Gram matrix: best partners, strongest edges, sums of the bridges."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from thresher.analyze.metrics.bridge import BridgeSums, add_bridges, start_bridges
from thresher.analyze.metrics.pairs import Best, correlate_rows, start_best, update_best
from thresher.analyze.statistics.gram import GramRows
from thresher.analyze.statistics.paired import Marginals

N_BINS = 2000
"""Bins of the histogram of correlations on [-1, 1]."""


class Edges(NamedTuple):
    """Pairs of an image feature i and a text feature j that fire together, with positive correlation; sorted by (i, j)."""

    i: Int[np.ndarray, " edge"]
    j: Int[np.ndarray, " edge"]
    product: Float[np.ndarray, " edge"]
    """sum over pairs of z_i^image z_j^text."""
    cofires: Int[np.ndarray, " edge"]
    """Images that fire i and have a text that fires j."""
    rho: Float[np.ndarray, " edge"]


class Walk(NamedTuple):
    """What was found on the way."""

    best: Best
    edges: Edges
    n_tests: int
    """Pairs of features that were looked at."""
    histogram: Int[np.ndarray, " bin"]
    """Correlations of all of them, N_BINS bins on [-1, 1]."""
    largest: float
    """The largest correlation of two features that fire together; -inf when none do."""
    bridges: BridgeSums | None


class Bridging(NamedTuple):
    """What the sums of the bridges need besides the Gram matrix."""

    dictionary: Float[np.ndarray, "feature d_in"]
    labels: Int[np.ndarray, "labelling feature"]
    """A small number for each feature, in several ways."""


def walk_gram(blocks: Iterable[GramRows], marginals: Marginals, n_partners: int, bridging: Bridging | None = None) -> Walk:
    """Keep the `n_partners` best text features of each image feature and the other way round; forget the rest.

    Memory: one block and 2 * feature * n_partners edges. Ties go to the lower index, so blocks of any size give the same.
    """
    n_features = len(marginals.image)
    best, largest, n_tests = start_best(n_features), -np.inf, 0
    across, down = _nothing(), _nothing()
    histogram = np.zeros(N_BINS, np.int64)
    bridges = None if bridging is None else start_bridges(n_features, bridging.labels)
    for rows in blocks:
        rho = correlate_rows(rows, marginals)
        n_tests += rho.size
        histogram += np.bincount(np.clip((rho.ravel() + 1) * (N_BINS / 2), 0, N_BINS - 1).astype(np.int64), minlength=N_BINS)
        together = rows.cofires > 0
        largest = max(largest, float(rho.max(initial=-np.inf, where=together)))
        best = update_best(best, rows, rho)
        across = _join(across, _choose(rows, rho, n_partners, axis=1))
        down = _keep(_join(down, _choose(rows, rho, n_partners, axis=0)), n_partners, side=1)
        if bridges is not None and bridging is not None:
            bridges = add_bridges(bridges, rows, marginals, bridging.dictionary, bridging.labels)
    return Walk(best, _unite(across, down), n_tests, histogram, largest, bridges)


def _nothing() -> Edges:
    empty = np.zeros(0, np.int64)
    return Edges(empty, empty, np.zeros(0), empty, np.zeros(0))


def _join(first: Edges, second: Edges) -> Edges:
    return Edges(*(np.concatenate([a, b]) for a, b in zip(first, second, strict=True)))


def _choose(rows: GramRows, rho: np.ndarray, n_partners: int, axis: int) -> Edges:
    """The best entries of each row (axis 1) or column (axis 0) of the block."""
    allowed = np.where((rows.cofires > 0) & (rho > 0), rho, 0.0)
    length = allowed.shape[axis]
    if length > n_partners:
        least = np.partition(allowed, length - n_partners, axis=axis).take([length - n_partners], axis=axis)
        allowed[allowed < least] = 0
    r, c = np.nonzero(allowed)
    found = Edges(rows.image[r], rows.text[c], rows.products[r, c], rows.cofires[r, c].astype(np.int64), rho[r, c])
    return _keep(found, n_partners, side=1 - axis)


def _keep(edges: Edges, n_partners: int, side: int) -> Edges:
    """The best edges of each feature of the images (side 0) or the texts (side 1)."""
    here, there = edges[side], edges[1 - side]
    order = np.lexsort((there, -edges.rho, here))
    here = here[order]
    rank = np.arange(len(here)) - np.searchsorted(here, here)
    return Edges(*(part[order[rank < n_partners]] for part in edges))


def _unite(first: Edges, second: Edges) -> Edges:
    both = _join(first, second)
    order = np.lexsort((both.j, both.i))
    i, j = both.i[order], both.j[order]
    is_new = np.ones(len(i), dtype=bool)
    is_new[1:] = (i[1:] != i[:-1]) | (j[1:] != j[:-1])
    return Edges(*(part[order[is_new]] for part in both))
