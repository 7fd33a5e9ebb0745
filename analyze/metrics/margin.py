"""The contrastive margin, divided among features and classes of features, with resamples of the records.

margin = E_pair[<x^image, x^text>] - <E_pair x^image, E_pair x^text>, x the reconstruction without its bias: how much more
alike matched pairs are than unmatched ones. Signed codes: as they are.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from thresher.analyze.statistics.margins import ClassMarginSums, MarginSums


class FeatureMargins(NamedTuple):
    """Parts of the margin per feature, per resample, in units of similarity. Line 0 is the data as they are."""

    total: Float[np.ndarray, " replicate"]
    """The margin."""
    as_image: Float[np.ndarray, "replicate feature"]
    """sum_j Bc_ij; sums to the margin."""
    as_text: Float[np.ndarray, "replicate feature"]
    """sum_j Bc_ji; sums to the margin too."""
    own: Float[np.ndarray, "replicate feature"]
    """Bc_ii."""
    left_out: Float[np.ndarray, "replicate feature"]
    """What the margin loses when the feature is set to 0 on both sides and the other codes stay: measure F3."""


def divide_margin(
    sums: MarginSums, dictionary: Float[np.ndarray, "feature d_in"], weights: Float[np.ndarray, "replicate group"]
) -> FeatureMargins:
    """Row sums, column sums and diagonal of the centred bridge Bc, and the leave-one-out change
    sum_j (Bc_ij + Bc_ji) - Bc_ii, all exact and without the matrix: sum_j Bc_ij = Cov_pair(z_i^image, <d_i, x^text>).

    Codes are held fixed: a pursuit that is run again could take a correlated atom instead.
    """
    n = np.maximum(weights @ sums.pairs, 1)[:, None]
    image, text = weights @ sums.image / n, weights @ sums.text / n
    as_image = weights @ sums.image_row / n - image * ((text @ dictionary) @ dictionary.T)
    as_text = weights @ sums.text_row / n - text * ((image @ dictionary) @ dictionary.T)
    own = weights @ sums.own / n - image * text * np.square(dictionary).sum(1)
    return FeatureMargins(as_image.sum(1), as_image, as_text, own, as_image + as_text - own)


class ClassMargins(NamedTuple):
    """Parts of the margin per pair of classes, per resample, in units of similarity."""

    total: Float[np.ndarray, " replicate"]
    parts: Float[np.ndarray, "replicate label label"]
    """sum of Bc_ij over i of one class and j of the other; sums to the margin."""
    left_out: Float[np.ndarray, "replicate label"]
    """What the margin loses when all features of the class are set to 0 on both sides."""


def divide_margin_by_class(sums: ClassMarginSums, weights: Float[np.ndarray, "replicate group"]) -> ClassMargins:
    """Shares of the margin between classes of features: F3 for groups of features, exact, codes held fixed."""
    n = np.maximum(weights @ sums.pairs, 1)
    image = np.einsum("rg,gld->rld", weights, sums.image) / n[:, None, None]
    text = np.einsum("rg,gld->rld", weights, sums.text) / n[:, None, None]
    matched = np.einsum("rg,glm->rlm", weights, sums.matched) / n[:, None, None]
    parts = matched - np.einsum("rld,rmd->rlm", image, text)
    own = np.diagonal(parts, axis1=1, axis2=2)
    return ClassMargins(parts.sum((1, 2)), parts, parts.sum(1) + parts.sum(2) - own)
