"""The products of every feature of the images with every feature of the texts, summed over pairs, in row blocks."""

import importlib.util
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple, cast

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_array

from thresher.analyze.statistics.pairing import Pairing
from thresher.analyze.statistics.rows import iterate_blocks, release, run_both

BYTES_PER_ENTRY = 64
"""Of a block of the Gram matrix while it is made and read: sparse product, dense sums, counts, and room to work in."""

SEGMENT = 131_072
"""Images that are multiplied at once. A constant, for sums are added up segment by segment."""
COMPILED = 1e8
"""Multiply-adds from which on a compiled loop is worth the two seconds that it may take to compile, once on a machine."""


class GramRows(NamedTuple):
    """Rows of the cross-modal Gram matrix, complete: the sums are over all pairs."""

    image: Int[np.ndarray, " row"]
    """Which feature of the images each row is."""
    text: Int[np.ndarray, " column"]
    """Which feature of the texts each column is."""
    products: Float[np.ndarray, "row column"]
    """sum over pairs of z_i^image z_j^text."""
    cofires: Int[np.ndarray, "row column"]
    """Images that fire i and have a text that fires j. Counts images, not pairs: captions of one image are not independent."""


def iterate_gram(
    pairing: Pairing, image: Int[np.ndarray, " row"], text: Int[np.ndarray, " column"], memory: float = 2e8
) -> Iterator[GramRows]:
    """The Gram matrix of chosen features (ascending), as many rows at a time as `memory` bytes hold.

    Every entry is added up over the images in their order, whatever `memory` is and however many threads there are: the same
    bits. Costs sum_n k_n^image k_n^text multiply-adds: products and counts in one go where numba is installed and there are
    many, else two products of SciPy, which give the same.
    """
    add = _choose(pairing)
    rows_at_once = max(1, int(memory // (BYTES_PER_ENTRY * pairing.n_features)))
    for start in range(0, len(image), rows_at_once):
        chosen = image[start : start + rows_at_once]
        products, cofires = np.zeros((len(chosen), pairing.n_features)), np.zeros((len(chosen), pairing.n_features), np.int32)
        for images in iterate_blocks(len(pairing.record), SEGMENT):
            add(chosen, images, products, cofires)
            release(pairing.postings, pairing.texts.total)
        if len(text) < pairing.n_features:
            products, cofires = products[:, text], cofires[:, text]
        yield GramRows(chosen, text, products, cofires)


def take_part(rows: GramRows, image: Int[np.ndarray, " row"], text: Int[np.ndarray, " column"]) -> GramRows:
    """Of some rows of the Gram matrix those, and the columns, of fewer features (ascending)."""
    r, c = np.flatnonzero(np.isin(rows.image, image)), np.searchsorted(rows.text, text)
    return GramRows(rows.image[r], text, rows.products[np.ix_(r, c)], rows.cofires[np.ix_(r, c)])


def _choose(pairing: Pairing) -> Callable[[np.ndarray, slice, np.ndarray, np.ndarray], None]:
    """What adds the products of some images, and their counts, to rows of the matrix."""
    total = pairing.texts.total
    work = pairing.image.nnz * (total.nnz / max(1, len(pairing.record)))
    if work < COMPILED or importlib.util.find_spec("numba") is None:
        return partial(_multiply, pairing)
    from thresher.analyze.statistics import native  # Only here: numba takes a second to import.

    postings, texts, partner = native.store(pairing.postings), native.store(total), pairing.partner.astype(np.uint32)

    def add(chosen: np.ndarray, images: slice, products: np.ndarray, cofires: np.ndarray) -> None:
        native.add_products(postings, chosen, texts, partner, images, products, cofires)

    return add


def _multiply(pairing: Pairing, chosen: np.ndarray, images: slice, products: np.ndarray, cofires: np.ndarray) -> None:
    """The same by SciPy."""
    left, right = csr_array(pairing.postings[chosen]), pairing.texts.total
    if len(pairing.record) <= SEGMENT:
        left.indices = pairing.partner[left.indices].astype(left.indices.dtype)
    else:
        # Of mapped texts only these are in memory.
        inside = (left.indices >= images.start) & (left.indices < images.stop)
        starts = np.concatenate([[0], np.cumsum(inside)])[left.indptr]
        entries = left.data[inside], left.indices[inside] - images.start, starts
        left = csr_array(entries, shape=(len(chosen), images.stop - images.start))
        right = csr_array(right[pairing.partner[images]])
    found = run_both(lambda: _make_dense(left, right), lambda: _make_dense(_mark(left), _mark(right)))
    products += found[0]
    cofires += found[1]


def _make_dense(left: csr_array, right: csr_array) -> np.ndarray:
    return cast(csr_array, left @ right).toarray()


def _mark(codes: csr_array) -> csr_array:
    """1 for every entry."""
    return csr_array((np.ones(codes.nnz, np.int32), codes.indices, codes.indptr), shape=codes.shape)
