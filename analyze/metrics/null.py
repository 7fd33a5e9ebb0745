"""What pairing at random would give: exact moments of a permutation of the pairs, p-values."""

import numpy as np
from jaxtyping import Float
from scipy.special import gammainc, gammaincc, ndtr

from thresher.analyze.statistics.paired import Powers

SYMMETRIC = 1e-5
"""Below this skewness the normal distribution stands for Pearson's type III."""


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

    Measured on 2000 pairs, 2 million random pairings each of 0/1, exponential and log-normal codes with 0.2 to 11 joint firings
    expected: it calls 0.4 to 2.1 times the nominal share at 1 % and 0.1 %, 0 to 2.5 times at 0.01 % and 0.001 %. The exact test
    of joint firing (`association.chance_of`) does not see how strong the codes are and calls 0.05 to 1.3 times at 5 % to 0.1 %.
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
