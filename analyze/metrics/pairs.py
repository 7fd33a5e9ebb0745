"""How features of images and features of texts go together over pairs: co-activation, correlation, best partners."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_array

from thresher.analyze.statistics.gram import GramRows
from thresher.analyze.statistics.paired import Grouped, Marginals
from thresher.analyze.statistics.rows import iterate_blocks, shape_of


def correlation(
    products: Float[np.ndarray, "*#any"],
    n_pairs: float,
    image: tuple[Float[np.ndarray, "*#any"], Float[np.ndarray, "*#any"]],
    text: tuple[Float[np.ndarray, "*#any"], Float[np.ndarray, "*#any"]],
) -> Float[np.ndarray, "*#any"]:
    """rho_ij = (A_ij - m_i m'_j) / (s_i s'_j): Pearson's correlation over pairs, from sums. Measure D2.

    `image` and `text` are (mean, standard deviation) over pairs, broadcast against `products`. NaN where a side is constant.
    Signed codes: as they are; a feature whose two sides have opposite signs has a negative correlation.
    """
    rho = products / n_pairs
    rho -= image[0] * text[0]
    for deviation in (image[1], text[1]):
        rho *= np.divide(1, deviation, out=np.full_like(deviation, np.nan), where=deviation > 0)
    return np.clip(rho, -1, 1, out=rho)


def correlate_rows(rows: GramRows, marginals: Marginals) -> Float[np.ndarray, "row column"]:
    """Correlations of a block of the Gram matrix; 0 where a side is constant, so that it is nobody's partner."""
    spread = [np.where(one > 0, one, np.inf) for one in (marginals.image_deviation, marginals.text_deviation)]
    image = marginals.image[rows.image, None], spread[0][rows.image, None]
    text = marginals.text[None, rows.text], spread[1][None, rows.text]
    return correlation(rows.products, marginals.n, image, text)


def correlate_self(groups: Grouped, weights: Float[np.ndarray, "replicate group"]) -> Float[np.ndarray, "replicate feature"]:
    """rho_ii of each feature with itself on the other side of the pair, per resample of the groups of records.

    Line 0 of `weights` is all ones for the data as they are. A resample without any pair gives 0.
    """
    n = np.maximum(weights @ groups.pairs, 1)[:, None]
    image, text = weights @ groups.image / n, weights @ groups.text / n
    deviations = []
    for mean, energy in ((image, groups.image_energy), (text, groups.text_energy)):
        square = weights @ energy / n
        variance = square - mean**2
        deviations.append(np.sqrt(np.where(variance > 1e-14 * square, variance, 0)))
    covariance = weights @ groups.product / n - image * text
    scale = deviations[0] * deviations[1]
    return np.clip(np.divide(covariance, scale, out=np.zeros_like(covariance), where=scale > 0), -1, 1)


class Best(NamedTuple):
    """The best partner of each feature on the other side, by correlation; -1 where none goes with it."""

    text_of_image: Int[np.ndarray, " feature"]
    """j*(i) = argmax_j rho_ij for feature i of the images."""
    rho_of_image: Float[np.ndarray, " feature"]
    """NaN where there is no partner."""
    image_of_text: Int[np.ndarray, " feature"]
    """i*(j) = argmax_i rho_ij for feature j of the texts."""
    rho_of_text: Float[np.ndarray, " feature"]


def find_best(
    i: Int[np.ndarray, " edge"], j: Int[np.ndarray, " edge"], rho: Float[np.ndarray, " edge"], n_features: int
) -> Best:
    """Best partners among edges (i on images, j on texts) that hold the strongest of every feature; ties to the lower index."""
    found: list[np.ndarray] = []
    for here, there in ((i, j), (j, i)):
        order = np.lexsort((there, -rho, here))
        heads, first = np.unique(here[order], return_index=True)
        partner, strength = np.full(n_features, -1, np.int64), np.full(n_features, np.nan)
        partner[heads], strength[heads] = there[order[first]], rho[order[first]]
        found += [partner, strength]
    return Best(*found)


def is_mutual(best: Best, i: Int[np.ndarray, " edge"], j: Int[np.ndarray, " edge"]) -> Bool[np.ndarray, " edge"]:
    """Whether image feature i and text feature j are each other's best partner. Measure D6."""
    return (best.text_of_image[i] == j) & (best.image_of_text[j] == i)


class Dominance(NamedTuple):
    """Sums of the modality dominance score over pairs in which the feature fires at all."""

    ratio: Float[np.ndarray, " feature"]
    """Sum of |z^image| / (|z^image| + |z^text|)."""
    pairs: Int[np.ndarray, " feature"]
    """Pairs with a firing on either side."""


def sum_dominance(image: csr_array, text: csr_array) -> Dominance:
    """Sums over the rows of two matrices [pair, feature]: row n of both is one pair."""
    n, n_features = shape_of(image)
    ratio, pairs = np.zeros(n_features), np.zeros(n_features, np.int64)
    for rows in iterate_blocks(n):
        one, other = abs(image[rows]), abs(text[rows])
        either = csr_array(one + other)
        inverse = csr_array((np.reciprocal(either.data), either.indices, either.indptr), shape=either.shape)
        ratio += np.asarray(one.multiply(inverse).sum(axis=0))
        pairs += np.bincount(either.indices, minlength=n_features)
    return Dominance(ratio, pairs)


def score_dominance(sums: Dominance) -> Float[np.ndarray, " feature"]:
    """R_i = mean of z^image / (z^image + z^text) over the pairs in which the feature fires. Measure C2, arXiv 2502.14888.

    1 for a feature of images, 0 of texts; NaN where it never fires. A ratio per pair, not of means: pairs where only one side
    fires count as 1 or 0. Signed codes: |z|.
    """
    return np.divide(sums.ratio, sums.pairs, out=np.full(len(sums.ratio), np.nan), where=sums.pairs > 0)


def classify_dominance(score: Float[np.ndarray, " feature"]) -> np.ndarray:
    """`image` above mean + sd of the scores, `text` below mean - sd, `cross` between, `dead` for NaN (arXiv 2502.14888)."""
    classes = np.full(len(score), "cross", dtype="<U5")
    alive = np.isfinite(score)
    if alive.any():
        mean, spread = score[alive].mean(), score[alive].std()
        classes[score > mean + spread], classes[score < mean - spread] = "image", "text"
    classes[~alive] = "dead"
    return classes
