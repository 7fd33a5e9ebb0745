"""One walk over the cross-modal Gram matrix: best partners, strongest edges, sums of the bridges."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int

from thresher.analyze.metrics.bridge import BridgeSums, add_bridges, start_bridges
from thresher.analyze.metrics.pairs import Best, correlate_rows, find_best
from thresher.analyze.statistics.gram import GramRows
from thresher.analyze.statistics.paired import Marginals

WAITING = 2_000_000
"""Edges that wait to be sorted out, at 40 bytes each."""


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
    bridges: BridgeSums | None


class Bridging(NamedTuple):
    """What the sums of the bridges need besides the Gram matrix."""

    dictionary: Float[np.ndarray, "feature d_in"]
    labels: Int[np.ndarray, "labelling feature"]
    """A number below `n_labels` for each feature, in several ways."""
    n_labels: int


def walk_gram(blocks: Iterable[GramRows], marginals: Marginals, n_partners: int, bridging: Bridging | None = None) -> Walk:
    """Keep the `n_partners` best text features of each image feature and the other way round; forget the rest.

    Memory: one block and 2 * feature * n_partners edges. Ties go to the lower index, so blocks of any size give the same.
    """
    n_features, n_tests = len(marginals.image), 0
    across, down = [_nothing()], _Kept(n_features, n_partners)
    bridges = None if bridging is None else start_bridges(n_features, len(bridging.labels), bridging.n_labels)
    for rows in blocks:
        rho = correlate_rows(rows, marginals)
        n_tests += rho.size
        rho[rows.cofires == 0] = 0
        across.append(_keep(_take(rows, rho, rho >= _last_of_best(rho, n_partners)), n_partners, side=0))
        down.add(_take(rows, rho, rho > down.least[rows.text]))
        if bridges is not None and bridging is not None:
            bridges = add_bridges(bridges, rows, marginals, bridging.dictionary, bridging.labels)
    edges = _unite(_join(across), down.finish())
    return Walk(find_best(edges.i, edges.j, edges.rho, n_features), edges, n_tests, bridges)


class _Kept:
    """The best edges of each text feature so far. Sorted out only when many have come together."""

    def __init__(self, n_features: int, n_partners: int) -> None:
        self.least = np.zeros(n_features)
        self._n_partners = n_partners
        self._parts: list[Edges] = []
        self._n_waiting = 0

    def add(self, edges: Edges) -> None:
        """Take edges that are better than `least` of their text feature; image features come in ascending order."""
        self._parts.append(edges)
        self._n_waiting += len(edges.i)
        if self._n_waiting > WAITING:
            self._sort_out()

    def finish(self) -> Edges:
        """The best of all."""
        self._sort_out()
        return self._parts[0]

    def _sort_out(self) -> None:
        kept = _keep(_join([_nothing(), *self._parts]), self._n_partners, side=1)
        self._parts, self._n_waiting = [kept], 0
        features, first, counts = np.unique(kept.j, return_index=True, return_counts=True)
        full = counts == self._n_partners
        self.least[features[full]] = kept.rho[(first + counts - 1)[full]]


def _nothing() -> Edges:
    empty = np.zeros(0, np.int64)
    return Edges(empty, empty, np.zeros(0), empty, np.zeros(0))


def _join(parts: Sequence[Edges]) -> Edges:
    return Edges(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _last_of_best(rho: np.ndarray, n_partners: int) -> np.ndarray:
    """The value of the last entry kept of each row [row, 1]; above 0."""
    smallest = np.nextafter(0, 1)
    if rho.shape[1] <= n_partners:
        return np.full((len(rho), 1), smallest)
    found = torch.topk(torch.from_numpy(rho), n_partners, dim=1, sorted=False).values.amin(1, keepdim=True)
    return np.maximum(found.numpy(), smallest)


def _take(rows: GramRows, rho: np.ndarray, chosen: np.ndarray) -> Edges:
    r, c = np.nonzero(chosen)
    return Edges(rows.image[r], rows.text[c], rows.products[r, c], rows.cofires[r, c].astype(np.int64), rho[r, c])


def _keep(edges: Edges, n_partners: int, side: int) -> Edges:
    """The best edges of each feature of the images (side 0) or the texts (side 1), sorted by feature, best first."""
    here, there = edges[side], edges[1 - side]
    order = np.lexsort((there, -edges.rho, here))
    here = here[order]
    rank = np.arange(len(here)) - np.searchsorted(here, here)
    return Edges(*(part[order[rank < n_partners]] for part in edges))


def _unite(first: Edges, second: Edges) -> Edges:
    both = _join([first, second])
    order = np.lexsort((both.j, both.i))
    i, j = both.i[order], both.j[order]
    is_new = np.ones(len(i), dtype=bool)
    is_new[1:] = (i[1:] != i[:-1]) | (j[1:] != j[:-1])
    return Edges(*(part[order[is_new]] for part in both))
