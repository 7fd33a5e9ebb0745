"""Do features fire on the same things? Counts of joint firings, and supports of the codes of a pair."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_array

from thresher.analyze.metrics.needs import divide, need_equal, need_items
from thresher.analyze.statistics.rows import iterate_blocks, shape_of


class Overlap(NamedTuple):
    """Joint firing of an image feature and a text feature over pairs; NaN where undefined."""

    jaccard: Float[np.ndarray, "*any"]
    """P(both fire) / P(either fires)."""
    lift: Float[np.ndarray, "*any"]
    """P(both) / (P(image) P(text)): 1 under independence."""
    pmi: Float[np.ndarray, "*any"]
    """log2 of the lift: bits; -inf when both fire, but never in one pair."""


def measure_overlap(
    both: Int[np.ndarray, "*#any"], image: Int[np.ndarray, "*#any"], text: Int[np.ndarray, "*#any"], n: int
) -> Overlap:
    """Overlap of firings from counts of pairs in which both, the image, the text fire. Measure D8. Signed codes: z != 0."""
    lift = divide(both * float(n), image * text.astype(np.float64))
    with np.errstate(divide="ignore"):
        pmi = np.log2(lift)
    return Overlap(divide(both, image + text - both), lift, pmi)


class CodeSimilarity(NamedTuple):
    """How alike the codes of matched and of unmatched images and texts are: means over pairs."""

    cosine: float
    """Mean cosine of the codes of a pair."""
    cosine_unmatched: float
    """The same over all images and texts of the pairs, each with each."""
    jaccard: float
    """Mean over pairs of features active in both codes / in either."""
    jaccard_unmatched: float
    """The same with the texts shuffled."""


def compare_codes(image: csr_array, text: csr_array, seed: int) -> CodeSimilarity:
    """Similarity of the two codes of a pair, row by row [pair, feature]. Measure D8, by sample.

    Rows without any active feature have cosine and Jaccard 0. Signed codes: the cosine as they are, the Jaccard of z != 0.
    """
    n, n_features = shape_of(image)
    need_equal("similarity of codes", "rows of image and text", n, shape_of(text)[0])
    need_items("similarity of codes", n, 1, "pairs")
    shuffled = np.random.default_rng(seed).permutation(n)
    totals, sums = np.zeros(3), np.zeros((2, n_features))
    for rows in iterate_blocks(n):
        one, other, third = csr_array(image[rows]), csr_array(text[rows]), csr_array(text[shuffled[rows]])
        units = _unit(one), _unit(other)
        totals += (units[0].multiply(units[1]).sum(), _jaccard(one, other).sum(), _jaccard(one, third).sum())
        sums += np.stack([np.asarray(unit.sum(axis=0)) for unit in units])
    cosine, jaccard, unmatched = (totals / n).tolist()
    return CodeSimilarity(cosine, float(sums[0] @ sums[1]) / n**2, jaccard, unmatched)


def _unit(codes: csr_array) -> csr_array:
    n_rows = shape_of(codes)[0]
    row = np.repeat(np.arange(n_rows), np.diff(codes.indptr))
    norm = np.sqrt(np.bincount(row, weights=codes.data**2, minlength=n_rows))
    return csr_array((codes.data / np.where(norm > 0, norm, 1)[row], codes.indices, codes.indptr), shape=codes.shape)


def _jaccard(one: csr_array, other: csr_array) -> Float[np.ndarray, " row"]:
    both = np.diff(csr_array(one.multiply(other)).indptr)
    either = np.diff(one.indptr) + np.diff(other.indptr) - both
    return np.divide(both, either, out=np.zeros(len(both)), where=either > 0)


def firing_entropy(rates: Float[np.ndarray, "stream feature"]) -> Float[np.ndarray, " feature"]:
    """FE_i = -(1 / log S) sum_s p_s log p_s with p_s the share of stream s in the firing rate of the feature.

    1 when it fires on all streams (modalities, models) alike, 0 when on one only, NaN when on none.
    Measure D9, arXiv 2502.03714, eq. 11-12. Give rates, not counts: with five captions per image counts would call a feature
    that fires equally often one-sided.
    """
    share = divide(rates, rates.sum(axis=0))
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = np.where(share > 0, share * np.log(share), 0.0)
    entropy = -parts.sum(axis=0) / np.log(len(rates))
    return np.where(rates.sum(axis=0) > 0, np.abs(entropy), np.nan)


def cofire_proportion(
    together: Int[np.ndarray, " feature"], fires: Int[np.ndarray, "stream feature"]
) -> Float[np.ndarray, "stream feature"]:
    """CFP_i^s = samples on which all streams fire / samples on which stream s fires; NaN where it never does. Measure D9.

    arXiv 2502.03714, eq. 13-14. Its code divides by the sum over streams instead, so that full agreement of three gives 1/3.
    """
    return divide(np.broadcast_to(together, fires.shape), fires)
