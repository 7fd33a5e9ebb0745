"""What pairing at random would give: p-values of a permutation of the pairs."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import gammainc, gammaincc, ndtr
from scipy.stats import hypergeom

from thresher.analyze.metrics.permutation import Levels, chance_beyond
from thresher.analyze.statistics.paired import Powers

SYMMETRIC = 1e-5
"""Below this skewness the normal distribution stands for Pearson's type III."""
BULK = 0.25
"""Standard deviations above the mean where the saddlepoint takes over; its formula is 0 / 0 at the mean."""
REACH = 8
"""Largest codes of each side that the bound near the largest possible sum looks at."""


class Side(NamedTuple):
    """The codes of features over the units of one side, a line for each edge."""

    powers: Powers
    levels: Levels

    def take(self, features: Int[np.ndarray, " edge"]) -> "Side":
        """The features of some edges."""
        return Side(Powers(*(one[features] for one in self.powers)), Levels(*(one[features] for one in self.levels)))


def chance_of_pairing(
    products: Float[np.ndarray, " edge"], cofires: Int[np.ndarray, " edge"], image: Side, text: Side, n_images: int
) -> Float[np.ndarray, " edge"]:
    """P(sum of products at least this large) when the texts are dealt to the images at random; one-sided, upper tail.

    A permutation test of the correlation, since that is linear in the sum T. From `BULK` standard deviations above the mean
    on the tail is that of the double saddlepoint (`permutation.chance_beyond`), below that of `chance_of_products`. Where all
    codes of each side are equal, T counts joint firings, `cofires`, and the chance is hypergeometric. Near the largest possible
    T the saddlepoint fails, and `bound_by_reach` stands in for it. 1 where T is no more than expected. Mean and variance of T
    are the exact ones of all permutations.
    """
    found = chance_of_products(products, image.powers, text.powers, n_images)
    if n_images < 3:
        return found
    standardized = _standardize(products, image.powers, text.powers, float(n_images))
    counts = _is_count(image.levels) & _is_count(text.levels) & (found < 1)
    beyond = (standardized > BULK) & ~counts & (found < 1)
    lines = np.flatnonzero(beyond)
    sides = [Levels(*(one[lines] for one in side.levels)) for side in (image, text)]
    bound = bound_by_reach(products[lines], image.take(lines), text.take(lines), n_images)
    found[lines] = np.minimum(chance_beyond(standardized[lines], sides[0], sides[1]), bound)
    fires = [side.levels.units[counts, 1:].sum(axis=1) for side in (image, text)]
    found[counts] = hypergeom.sf(cofires[counts] - 1, n_images, fires[0], fires[1])
    return found


def _is_count(levels: Levels) -> Bool[np.ndarray, " edge"]:
    """Whether all codes that are not 0 are equal."""
    used = levels.units > 0
    used[:, 0] = False
    highest = np.where(used, levels.value, -np.inf).max(axis=1)
    lowest = np.where(used, levels.value, np.inf).min(axis=1)
    return np.isclose(highest, lowest, rtol=1e-6, atol=0.0)


def _standardize(products: np.ndarray, image: Powers, text: Powers, n: float) -> np.ndarray:
    variance = _centre(image, n)[0] * _centre(text, n)[0] / (n - 1)
    spread = np.sqrt(np.where(variance > 0, variance, 1))
    return (products - image.first * text.first / n) / spread


def bound_by_reach(products: Float[np.ndarray, " edge"], image: Side, text: Side, n_images: int) -> Float[np.ndarray, " edge"]:
    """An upper bound of P(sum of products at least this large) that is near it when the sum is near the largest possible.

    With the codes of all units in descending order, a_1 >= a_2 ... and b_1 >= b_2 ..., and steps A_p = a_p - a_(p+1),
    B_q = b_q - b_(q+1), a deal misses the largest sum by sum_pq A_p B_q (min(p, q) - N_pq), N_pq the units that are among the
    first p of one side and the first q of the other. No term is negative: a sum that misses it by L has
    N_pq >= min(p, q) - L / (A_p B_q) for all p and q, and N_pq is hypergeometric. The bound is the least of these chances, for
    the `REACH` largest codes that have levels of their own; products of the others are bounded by Cauchy and Schwarz. There
    the saddlepoint, which takes sums for continuous, found up to 1 for features that are equal on both sides.
    """
    found = _bound_from_top(products, image, text, n_images)
    if min(side.levels.value.min(initial=0) for side in (image, text)) >= 0:
        return found
    mirrored = [side._replace(levels=side.levels._replace(value=-side.levels.value)) for side in (image, text)]
    return np.minimum(found, _bound_from_top(products, mirrored[0], mirrored[1], n_images))


def _bound_from_top(products: np.ndarray, image: Side, text: Side, n_images: int) -> np.ndarray:
    (a, first, is_own), (b, second, is_other) = _find_top(image), _find_top(text)
    both = is_own & is_other
    rest = [np.maximum(side.powers.second - np.square(top * both).sum(axis=1), 0) for side, top in ((image, a), (text, b))]
    largest = (a * b * both).sum(axis=1) + np.sqrt(rest[0] * rest[1])
    short = np.maximum(largest - products, 0) + 1e-9 * np.abs(largest)
    found, counts = np.ones(len(products)), np.arange(REACH + 1)
    for p in range(1, REACH + 1):
        for q in range(1, REACH + 1):
            step = first[:, p - 1] * second[:, q - 1]
            missed = np.divide(short, step, out=np.full_like(short, np.inf), where=step > 0)
            least = np.ceil(np.maximum(min(p, q) - missed, 0)).astype(np.int64)
            chance = hypergeom.pmf(counts, n_images, min(p, n_images), min(q, n_images))[::-1].cumsum()[::-1]
            found = np.minimum(found, chance[least])
    return np.minimum(found, 1.0)


def _find_top(side: Side) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The largest codes [edge, REACH + 1], steps down from the first REACH at least, which of the codes are known."""
    size = np.where(side.levels.units > 0, np.maximum(side.levels.value, 0), 0.0)
    order = np.argsort(-size, axis=1)[:, : REACH + 1]
    top, units = np.take_along_axis(size, order, axis=1), np.take_along_axis(side.levels.units, order, axis=1)
    is_known = np.logical_and.accumulate((units == 1) & (top > 0), axis=1)
    # No code of a level of several is larger than all codes that are left together.
    left = np.sqrt(np.maximum(side.powers.second[:, None] - np.square(top * is_known).cumsum(axis=1), 0))
    following = np.where(is_known[:, 1:] | (top[:, 1:] == 0), top[:, 1:], left[:, :-1])
    return top, np.where(is_known[:, :-1], np.maximum(top[:, :-1] - following, 0), 0.0), is_known


def chance_of_products(
    products: Float[np.ndarray, " edge"], image: Powers, text: Powers, n_images: int
) -> Float[np.ndarray, " edge"]:
    """P(sum of products at least this large) when the texts are dealt to the images at random; one-sided, upper tail.

    For T = sum_n a_n b_perm(n), with a and b taken about their means and p_k their power sums, over all permutations
        E T = 0,   E T^2 = p2(a) p2(b) / (n - 1),   E T^3 = p3(a) p3(b) n / ((n - 1)(n - 2))
    exactly. The tail is that of Pearson's type III with these three moments (Kazi-Aoual et al. 1995; Winkler et al. 2016). It
    is a permutation test of the correlation, since that is linear in T. The normal tail alone would be wrong by orders of
    magnitude for features that fire rarely.

    `image` and `text` are power sums of the two features of each edge; the texts of one image are one b. 1 where a side is
    constant, where T is no more than expected, and with fewer than 3 images. Signed codes: as they are.

    Right in the bulk, and in the tail of dense codes without heavy tails; with sparse codes of both signs it calls up to 40
    times the nominal share at 0.01 %. For p-values take `chance_of_pairing`.
    """
    n = float(n_images)
    if n < 3:
        return np.ones_like(products)
    mean = image.first * text.first / n
    (second_image, third_image), (second_text, third_text) = _centre(image, n), _centre(text, n)
    variance = second_image * second_text / (n - 1)
    is_random = (variance > 0) & (second_image > 1e-12 * image.second) & (second_text > 1e-12 * text.second)
    spread = np.sqrt(np.where(is_random, variance, 1))
    skewness = third_image * third_text * n / ((n - 1) * (n - 2)) / spread**3
    found = upper_tail((products - mean) / spread, skewness)
    return np.where(is_random & (products > mean), found, 1.0)


def upper_tail(standardized: Float[np.ndarray, "*any"], skewness: Float[np.ndarray, "*any"]) -> Float[np.ndarray, "*any"]:
    """P(X >= t) of Pearson's type III (a shifted gamma) with mean 0, variance 1 and this skewness."""
    size = np.maximum(np.abs(skewness), SYMMETRIC)
    shape = 4 / size**2
    shift = np.sqrt(shape)
    right = gammaincc(shape, np.maximum(shape + standardized * shift, 0))
    left = gammainc(shape, np.maximum(shape - standardized * shift, 0))
    found = np.where(skewness > 0, right, left)
    return np.where(np.abs(skewness) < SYMMETRIC, ndtr(-standardized), found)


def _centre(powers: Powers, n: float) -> tuple[np.ndarray, np.ndarray]:
    """Second and third power sums about the mean."""
    mean = powers.first / n
    second = powers.second - n * mean**2
    third = powers.third - 3 * mean * powers.second + 2 * n * mean**3
    return second, third
