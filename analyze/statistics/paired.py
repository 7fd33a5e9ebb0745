"""Sums over pairs, per feature: what both sides do, and what a feature does on both sides of a pair at once."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_array

from thresher.analyze.statistics.pairing import PairBlock, Pairing, iterate_pairs

GROUPS = 128
"""Groups of whole records that are resampled. With at most as many records each is its own group."""


class Powers(NamedTuple):
    """Power sums over images, of the image's code or of its texts added up: the moments of a permutation of the pairs."""

    first: Float[np.ndarray, " feature"]
    second: Float[np.ndarray, " feature"]
    third: Float[np.ndarray, " feature"]


class Grouped(NamedTuple):
    """Sums over the pairs of each group of records; a bootstrap weighs the groups."""

    pairs: Float[np.ndarray, " group"]
    """How many pairs."""
    image: Float[np.ndarray, "group feature"]
    """Sum of the image's z over pairs."""
    image_energy: Float[np.ndarray, "group feature"]
    """Sum of its z^2 over pairs."""
    text: Float[np.ndarray, "group feature"]
    text_energy: Float[np.ndarray, "group feature"]
    product: Float[np.ndarray, "group feature"]
    """Sum of z^image z^text of the same feature."""


class PairSums(NamedTuple):
    """Sufficient statistics over pairs, per feature. An image with five captions counts in five pairs."""

    n_pairs: int
    n_images: int
    image_fires: Int[np.ndarray, " feature"]
    """Pairs whose image fires it."""
    text_fires: Int[np.ndarray, " feature"]
    """Pairs whose text fires it."""
    cofires: Int[np.ndarray, " feature"]
    """Pairs of which both fire it."""
    images: Int[np.ndarray, " feature"]
    """Images that fire it."""
    texted: Int[np.ndarray, " feature"]
    """Images with a text that fires it."""
    both: Int[np.ndarray, " feature"]
    """Images of which both is true: what a test counts, as captions of one image are not independent."""
    image_powers: Powers
    text_powers: Powers
    groups: Grouped


class Marginals(NamedTuple):
    """Means over pairs of each side, per feature: what a product of independent sides is made of."""

    n: float
    """Pairs."""
    image: Float[np.ndarray, " feature"]
    """E_pair[z^image]."""
    text: Float[np.ndarray, " feature"]
    image_deviation: Float[np.ndarray, " feature"]
    """Standard deviation over pairs."""
    text_deviation: Float[np.ndarray, " feature"]


def sum_pairs(pairing: Pairing) -> PairSums:
    """Statistics of a pairing in one pass, O(stored entries); memory: one block and [group, feature] sums.

    Records are dealt to the groups in turn, so neighbours in the source do not share one.
    """
    n_features = pairing.n_features
    n_groups = int(min(GROUPS, len(np.unique(pairing.record))))
    _, record = np.unique(pairing.record, return_inverse=True)
    grouped = np.zeros((5, n_groups * n_features))
    pairs = np.zeros(n_groups)
    counts = np.zeros((6, n_features), np.int64)
    powers = np.zeros((2, 3, n_features))
    start = 0
    for block in iterate_pairs(pairing):
        group = record[start : start + len(block.record)] % n_groups
        start += len(block.record)
        pairs += np.bincount(group, weights=block.n_texts, minlength=n_groups)
        _add_block(block, group, grouped, counts, powers)
    return PairSums(
        pairing.n_pairs,
        len(pairing.record),
        *counts,
        image_powers=Powers(*powers[0]),
        text_powers=Powers(*powers[1]),
        groups=Grouped(pairs, *grouped.reshape(5, n_groups, n_features)),
    )


def sum_products(pairing: Pairing, i: Int[np.ndarray, " edge"], j: Int[np.ndarray, " edge"]) -> Float[np.ndarray, "group edge"]:
    """Sum of z_i^image z_j^text over the pairs of each group, for chosen pairs of features; groups as in `sum_pairs`."""
    _, record = np.unique(pairing.record, return_inverse=True)
    n_groups = int(min(GROUPS, record.max(initial=0) + 1))
    found, start = np.zeros((n_groups, len(i))), 0
    for block in iterate_pairs(pairing):
        group = record[start : start + len(block.record)] % n_groups
        start += len(block.record)
        product = csr_array(block.image[:, i].multiply(block.texts.total[:, j]))
        row = np.repeat(group, np.diff(product.indptr))
        np.add.at(found, (row, product.indices), product.data)
    return found


def _add_block(block: PairBlock, group: np.ndarray, grouped: np.ndarray, counts: np.ndarray, powers: np.ndarray) -> None:
    image, texts, n_features = block.image, block.texts, counts.shape[1]
    row = np.repeat(np.arange(len(group)), np.diff(image.indptr))
    weight, value = block.n_texts[row], image.data
    product = image.multiply(texts.total).tocsr()
    fired = image.copy()
    fired.data = np.ones_like(value)
    together = fired.multiply(texts.fires).tocsr()

    def by_group(indptr: np.ndarray, indices: np.ndarray, values: np.ndarray) -> np.ndarray:
        key = np.repeat(group, np.diff(indptr)) * n_features + indices
        return np.bincount(key, weights=values, minlength=grouped.shape[1])

    grouped[0] += by_group(image.indptr, image.indices, weight * value)
    grouped[1] += by_group(image.indptr, image.indices, weight * np.square(value))
    grouped[2] += by_group(texts.total.indptr, texts.total.indices, texts.total.data)
    grouped[3] += by_group(texts.energy.indptr, texts.energy.indices, texts.energy.data)
    grouped[4] += by_group(product.indptr, product.indices, product.data)
    for total, indices, values in (
        (counts[0], image.indices, weight),
        (counts[1], texts.fires.indices, texts.fires.data),
        (counts[2], together.indices, together.data),
        (counts[3], image.indices, None),
        (counts[4], texts.fires.indices, None),
        (counts[5], together.indices, None),
    ):
        total += np.rint(np.bincount(indices, weights=values, minlength=n_features)).astype(np.int64)
    for side, codes in zip(powers, (image, texts.total), strict=True):
        for power, total in enumerate(side, start=1):
            total += np.bincount(codes.indices, weights=codes.data**power, minlength=n_features)


def find_marginals(sums: PairSums) -> Marginals:
    """Means and standard deviations over pairs, from the sums."""
    n = float(sums.n_pairs)
    groups = sums.groups
    image, text = groups.image.sum(0) / n, groups.text.sum(0) / n
    image_square, text_square = groups.image_energy.sum(0) / n, groups.text_energy.sum(0) / n
    return Marginals(n, image, text, _deviation(image, image_square), _deviation(text, text_square))


def _deviation(mean: np.ndarray, square: np.ndarray) -> np.ndarray:
    """Zero where all that is left of the variance is rounding."""
    variance = square - mean**2
    return np.sqrt(np.where(variance > 1e-14 * square, variance, 0))
