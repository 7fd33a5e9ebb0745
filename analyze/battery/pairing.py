"""Does a feature fire on both sides of the same pairs? Its correlation with itself and with its best partners, and chance."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from thresher.analyze.metrics.association import control_false_discoveries
from thresher.analyze.metrics.null import Side, chance_of_pairing
from thresher.analyze.metrics.pairs import Best, correlation, is_mutual
from thresher.analyze.metrics.permutation import Levels, find_levels
from thresher.analyze.statistics.gram import iterate_gram
from thresher.analyze.statistics.paired import PairSums, find_marginals, sum_pairs
from thresher.analyze.statistics.pairing import Pairing, derange
from thresher.analyze.statistics.partners import Edges as Strongest
from thresher.analyze.statistics.partners import walk_gram
from thresher.analyze.statistics.rows import release, transpose

MEMORY = 3e8
"""Bytes of the cross-modal Gram matrix held at once."""


class Totals(NamedTuple):
    """A pairing with the sums of its pairs."""

    pairing: Pairing
    sums: PairSums
    image: Levels
    """Codes of the images, by feature."""
    text: Levels
    """Codes of their captions added up."""


def total(pairing: Pairing, scratch: Path | None = None) -> Totals:
    """Sums over pairs, and the levels of the codes; what is made on the way lies in `scratch`, without it in memory."""
    n = len(pairing.record)
    levels = [find_levels(postings, n) for postings in (pairing.postings, transpose(pairing.texts.total, scratch))]
    release(pairing.postings)
    return Totals(pairing, sum_pairs(pairing), *levels)


def derange_totals(totals: Totals, seed: int) -> Totals:
    """The same with the captions of other records; dealing captions changes no level."""
    pairing = derange(totals.pairing, seed)
    return totals._replace(pairing=pairing, sums=sum_pairs(pairing))


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


def measure_edges(
    totals: Totals,
    i: Int[np.ndarray, " edge"],
    j: Int[np.ndarray, " edge"],
    products: Float[np.ndarray, " edge"],
    cofires: Int[np.ndarray, " edge"],
) -> Edges:
    """A_ij, rho_ij and their chance for chosen pairs of features, given their sums of products over pairs.

    Units are images with all their captions: captions of one image are not independent.
    """
    marginals, sums = find_marginals(totals.sums), totals.sums
    image, text = (marginals.image[i], marginals.image_deviation[i]), (marginals.text[j], marginals.text_deviation[j])
    rho = correlation(products, marginals.n, image, text)
    sides = Side(sums.image_powers, totals.image).take(i), Side(sums.text_powers, totals.text).take(j)
    varies = (image[1] > 0) & (text[1] > 0)
    p = np.where(varies, chance_of_pairing(products, cofires, *sides, sums.n_images), np.nan)
    return Edges(i, j, products / marginals.n, np.where(varies, rho, np.nan), cofires, p)


def measure_self(totals: Totals) -> Edges:
    """Each feature with itself."""
    every = np.arange(totals.pairing.n_features)
    return measure_edges(totals, every, every, totals.sums.groups.product.sum(axis=0), totals.sums.both)


class Partners(NamedTuple):
    """Best partners, and the strongest edges."""

    best: Best
    edges: Strongest
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
    return Partners(walk.best, walk.edges, (len(rows), len(columns)))


def measure_found(totals: Totals, edges: Strongest, chosen: Int[np.ndarray, " edge"] | slice = slice(None)) -> Edges:
    """The chance of edges that a walk has found, or of the `chosen` ones."""
    i, j, products, cofires = (part[chosen] for part in (edges.i, edges.j, edges.product, edges.cofires))
    return measure_edges(totals, i.astype(np.int64), j.astype(np.int64), products, cofires)


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
    # The best partner of a feature is among its strongest edges, which are sorted by i, then j.
    width = len(every)
    edges = measure_found(totals, partners.edges, np.searchsorted(partners.edges.i * width + partners.edges.j, i * width + j))
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
