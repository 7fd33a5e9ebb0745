"""Sums over pairs of what each feature, and each class of features, adds to the similarity of an image and its text."""

import importlib.util
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_array

from thresher.analyze.statistics.paired import GROUPS
from thresher.analyze.statistics.pairing import Pairing
from thresher.analyze.statistics.rows import BLOCK, iterate_blocks, release, run_both

COMPILED = 2e9
"""Multiply-adds from which on a compiled loop is worth the seconds that it may take to compile, once on a machine."""


class MarginSums(NamedTuple):
    """Sums over the pairs of each group of records. x is the reconstruction without its bias, sum_i z_i d_i."""

    pairs: Float[np.ndarray, " group"]
    image: Float[np.ndarray, "group feature"]
    """Sum of z_i^image."""
    text: Float[np.ndarray, "group feature"]
    """Sum of z_i^text."""
    image_row: Float[np.ndarray, "group feature"]
    """Sum of z_i^image <d_i, x^text>."""
    text_row: Float[np.ndarray, "group feature"]
    """Sum of z_i^text <d_i, x^image>."""
    own: Float[np.ndarray, "group feature"]
    """Sum of z_i^image z_i^text <d_i, d_i>."""


class ClassMarginSums(NamedTuple):
    """The same by class of feature; the parts of x that the features of one class make."""

    pairs: Float[np.ndarray, " group"]
    image: Float[np.ndarray, "group label d_in"]
    """Sum of the image's part of each class."""
    text: Float[np.ndarray, "group label d_in"]
    matched: Float[np.ndarray, "group label label"]
    """Sum of <part of the image, part of the text>."""


class _Gathered(NamedTuple):
    """Images of one group with the sum of their texts."""

    group: int
    image: csr_array
    text: csr_array
    n_texts: Int[np.ndarray, " image"]


def sum_margins(pairing: Pairing, dictionary: Float[np.ndarray, "feature d_in"]) -> MarginSums:
    """What each feature adds, without the Gram matrix: O(stored entries * d_in) multiply-adds.

    Compiled where numba is installed and there are many.
    """
    n_groups, shape = _count_groups(pairing), (_count_groups(pairing), pairing.n_features)
    pairs, parts = np.zeros(n_groups), np.zeros((5, *shape))
    square, project = np.square(dictionary).sum(1), _choose(pairing, dictionary)
    for one in _by_group(pairing):
        weights = one.n_texts.astype(np.float64)
        pairs[one.group] += weights.sum()
        parts[0, one.group] += one.image.T @ weights
        parts[1, one.group] += one.text.sum(axis=0)
        rows = project(one.image, one.text)
        parts[2, one.group] += rows[0]
        parts[3, one.group] += rows[1]
        parts[4, one.group] += one.image.multiply(one.text).sum(axis=0) * square
    return MarginSums(pairs, *parts)


def _choose(pairing: Pairing, dictionary: np.ndarray) -> Callable[[csr_array, csr_array], tuple[np.ndarray, np.ndarray]]:
    """What projects the codes of both sides of some pairs."""
    n_entries = pairing.image.nnz + pairing.texts.total.nnz
    if 2.0 * n_entries * dictionary.shape[1] < COMPILED or importlib.util.find_spec("numba") is None:
        return lambda image, text: run_both(
            partial(_project, image, text, dictionary), partial(_project, text, image, dictionary)
        )
    from thresher.analyze.statistics import native  # Only here: numba takes a second to import.

    columns = native.divide_columns(dictionary)
    return lambda image, text: native.project_both(image, text, columns)


def _project(here: csr_array, there: csr_array, dictionary: np.ndarray) -> np.ndarray:
    """Sum over rows of z_i <d_i, reconstruction of the other side> [feature]."""
    return ((here.T @ (there @ dictionary)) * dictionary).sum(1)


def sum_class_margins(
    pairing: Pairing,
    dictionary: Float[np.ndarray, "feature d_in"],
    labels: Int[np.ndarray, " feature"],
    n_labels: int,
) -> ClassMarginSums:
    """What each class adds; `labels` says the class of each feature, 0 to `n_labels` - 1."""
    n_groups, d_in = _count_groups(pairing), dictionary.shape[1]
    pairs, matched = np.zeros(n_groups), np.zeros((n_groups, n_labels, n_labels))
    sums = np.zeros((2, n_groups, n_labels, d_in))
    for one in _by_group(pairing):
        weights = one.n_texts.astype(np.float64)
        pairs[one.group] += weights.sum()
        image, text = (_decode_by_class(codes, dictionary, labels, n_labels) for codes in (one.image, one.text))
        sums[0, one.group] += np.einsum("r,lrd->ld", weights, image)
        sums[1, one.group] += text.sum(1)
        matched[one.group] += image.reshape(n_labels, -1) @ text.reshape(n_labels, -1).T
    return ClassMarginSums(pairs, sums[0], sums[1], matched)


def _decode_by_class(codes: csr_array, dictionary: np.ndarray, labels: np.ndarray, n_labels: int) -> np.ndarray:
    """[label, row, d_in]."""
    return np.stack([codes[:, labels == label] @ dictionary[labels == label] for label in range(n_labels)])


def _count_groups(pairing: Pairing) -> int:
    return int(min(GROUPS, len(np.unique(pairing.record))))


def _by_group(pairing: Pairing) -> Iterator[_Gathered]:
    """The images of each group in order, in blocks; groups as in `sum_pairs`."""
    _, record = np.unique(pairing.record, return_inverse=True)
    n_groups = _count_groups(pairing)
    for group in range(n_groups):
        rows = np.flatnonzero(record % n_groups == group)
        for block in iterate_blocks(len(rows), BLOCK):
            partner = pairing.partner[rows[block]]
            image, text = csr_array(pairing.image[rows[block]]), csr_array(pairing.texts.total[partner])
            yield _Gathered(group, image, text, pairing.n_texts[partner])
            release(pairing.image, pairing.texts.total)
