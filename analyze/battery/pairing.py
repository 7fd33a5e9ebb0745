"""Does a feature fire on both sides of the same pairs? Its correlation with itself and with its best partners, and chance."""

import itertools
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import csc_array, csr_array
from scipy.stats import hypergeom

from thresher.analyze.metrics.association import control_false_discoveries
from thresher.analyze.metrics.null import chance_of_products
from thresher.analyze.metrics.pairs import Best, correlation, is_mutual
from thresher.analyze.statistics.gram import iterate_gram
from thresher.analyze.statistics.paired import PairSums, Powers, find_marginals, sum_pairs
from thresher.analyze.statistics.pairing import Pairing
from thresher.analyze.statistics.partners import walk_gram

MEMORY = 3e8
"""Bytes of the cross-modal Gram matrix held at once."""
ENTRIES = 20_000_000
"""Entries of the columns that are multiplied at once."""
EXPECTED = 10.0
"""Joint firings that chance has to give before the smooth approximation replaces the exact count."""


class Totals(NamedTuple):
    """A pairing with the sums of its pairs."""

    pairing: Pairing
    sums: PairSums
    image_units: Int[np.ndarray, " feature"]
    """Images that fire it."""
    text_units: Int[np.ndarray, " feature"]
    """Images with a caption that fires it."""
    image: csc_array
    """Codes of the images by feature [image, feature]."""
    text: csc_array
    """Codes of their captions added up [image, feature]."""


def total(pairing: Pairing) -> Totals:
    """Sums over pairs, and the codes by feature."""
    text = csr_array(pairing.texts.total[pairing.partner])
    units = [np.bincount(one.indices, minlength=pairing.n_features).astype(np.int64) for one in (pairing.image, text)]
    return Totals(pairing, sum_pairs(pairing), units[0], units[1], pairing.image.tocsc(), text.tocsc())


class Edges(NamedTuple):
    """Pairs of features: i on images, j on texts."""

    i: Int[np.ndarray, " edge"]
    j: Int[np.ndarray, " edge"]
    product: Float[np.ndarray, " edge"]
    """A_ij = E_pair[z_i z'_j]."""
    rho: Float[np.ndarray, " edge"]
    cofires: Int[np.ndarray, " edge"]
    """Images that fire i and have a caption that fires j."""
    p: Float[np.ndarray, " edge"]
    """Chance of such a product when the captions are dealt to the images at random; NaN where a side never varies."""


def measure_edges(totals: Totals, i: Int[np.ndarray, " edge"], j: Int[np.ndarray, " edge"]) -> Edges:
    """A_ij, rho_ij and their chance for chosen pairs of features.

    The tail of `chance_of_products`; where chance gives fewer than 10 joint firings, the exact chance of so many joint firings
    or more (hypergeometric), because a sum of so few terms has no smooth distribution. Units are images with all their
    captions. The choice between the two looks at each side alone, so it does not spoil the test.
    """
    products, cofires = np.zeros(len(i)), np.zeros(len(i), dtype=np.int64)
    for part in _split(totals.image_units[i] + totals.text_units[j]):
        both = csr_array(totals.image[:, i[part]].multiply(totals.text[:, j[part]]))
        products[part] = np.asarray(both.sum(axis=0), dtype=np.float64)
        cofires[part] = np.bincount(both.indices, minlength=part.stop - part.start)
    marginals = find_marginals(totals.sums)
    image, text = (marginals.image[i], marginals.image_deviation[i]), (marginals.text[j], marginals.text_deviation[j])
    rho = correlation(products, marginals.n, image, text)
    n = totals.sums.n_images
    smooth = chance_of_products(products, _pick(totals.sums.image_powers, i), _pick(totals.sums.text_powers, j), n)
    exact = hypergeom.sf(cofires - 1, n, totals.image_units[i], totals.text_units[j])
    is_many = totals.image_units[i] * totals.text_units[j] >= EXPECTED * n
    varies = (image[1] > 0) & (text[1] > 0)
    p = np.where(varies, np.where(is_many, smooth, exact), np.nan)
    return Edges(i, j, products / marginals.n, np.where(varies, rho, np.nan), cofires, p)


def measure_self(totals: Totals) -> Edges:
    """Each feature with itself."""
    every = np.arange(totals.pairing.n_features)
    return measure_edges(totals, every, every)


class Partners(NamedTuple):
    """Best partners, and the strongest edges."""

    best: Best
    edges: Edges
    cofires: Int[np.ndarray, " edge"]
    """Pairs of which both ends fire."""
    n_candidates: tuple[int, int]
    """Features compared: on images, on texts."""


def find_partners(
    totals: Totals, on_image: Bool[np.ndarray, " feature"], on_text: Bool[np.ndarray, " feature"], n_edges: int
) -> Partners:
    """Best partners by rho among the features named, and the `n_edges` strongest of each feature on each side, rho above 0.

    Goes through the cross-modal Gram matrix in blocks of features; memory does not grow with the number of pairs.
    """
    rows, columns = np.flatnonzero(on_image), np.flatnonzero(on_text)
    blocks = iterate_gram(totals.pairing, rows, columns, MEMORY) if len(rows) and len(columns) else ()
    walk = walk_gram(blocks, find_marginals(totals.sums), n_edges)
    edges = measure_edges(totals, walk.edges.i.astype(np.int64), walk.edges.j.astype(np.int64))
    return Partners(walk.best, edges, walk.edges.cofires, (len(rows), len(columns)))


class Partner(NamedTuple):
    """The best partner of each feature on the modality that is not its own."""

    feature: Int[np.ndarray, " feature"]
    """-1 without one."""
    rho: Float[np.ndarray, " feature"]
    p: Float[np.ndarray, " feature"]
    """Chance that the best of as many candidates goes so far: 1 - (1 - p)^n (Sidak)."""
    q: Float[np.ndarray, " feature"]
    is_mutual: Bool[np.ndarray, " feature"]


def choose_partner(totals: Totals, partners: Partners, is_image: Bool[np.ndarray, " feature"]) -> Partner:
    """For features of images the best on texts, for the others the best on images."""
    best, every = partners.best, np.arange(len(is_image))
    feature = np.where(is_image, best.text_of_image, best.image_of_text)
    has = feature >= 0
    i, j = np.where(is_image, every, feature)[has], np.where(is_image, feature, every)[has]
    edges = measure_edges(totals, i, j)
    candidates = np.where(is_image[has], partners.n_candidates[1], partners.n_candidates[0])
    rho, p, mutual = np.full(len(every), np.nan), np.full(len(every), np.nan), np.zeros(len(every), dtype=bool)
    rho[has], p[has] = edges.rho, -np.expm1(candidates * np.log1p(-np.minimum(edges.p, 1 - 1e-16)))
    mutual[has] = is_mutual(best, i, j)
    return Partner(feature, rho, p, control(p), mutual)


def control(p: Float[np.ndarray, " test"], n_tests: int | None = None) -> Float[np.ndarray, " test"]:
    """Benjamini-Hochberg values of the finite entries, NaN where p is; `n_tests` when only the smallest of more are given."""
    q, tested = np.full(len(p), np.nan), np.isfinite(p)
    if tested.any():
        more = 1.0 if n_tests is None else max(n_tests / tested.sum(), 1.0)
        q[tested] = np.minimum(control_false_discoveries(p[tested]) * more, 1.0)
    return q


def _pick(powers: Powers, features: Int[np.ndarray, " edge"]) -> Powers:
    return Powers(*(one[features] for one in powers))


def _split(cost: Int[np.ndarray, " edge"]) -> list[slice]:
    """Slices of about equal work."""
    if len(cost) == 0:
        return []
    piece = np.cumsum(cost) // ENTRIES
    starts = [0, *(1 + np.flatnonzero(np.diff(piece))).tolist(), len(cost)]
    return [slice(start, stop) for start, stop in itertools.pairwise(starts)]
