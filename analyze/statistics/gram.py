"""The products of every feature of the images with every feature of the texts, summed over pairs, in row blocks."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_array

from thresher.analyze.statistics.pairing import Pairing
from thresher.analyze.statistics.rows import iterate_blocks, release, run_both, shape_of, transpose

BYTES_PER_ENTRY = 64
"""Of a block of the Gram matrix while it is made and read: sparse product, dense sums, counts, and room to work in."""

SEGMENT = 131_072
"""Rows of texts that are multiplied at once. A constant, for sums are added up segment by segment."""


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
    pairing: Pairing,
    image: Int[np.ndarray, " row"],
    text: Int[np.ndarray, " column"],
    memory: float = 2e8,
    scratch: Path | None = None,
) -> Iterator[GramRows]:
    """The Gram matrix of chosen features (ascending), as many rows at a time as `memory` bytes hold.

    Every entry is added up over the images in their order, whatever `memory` is: the same bits for any block size. Costs
    sum_n k_n^image k_n^text multiply-adds, twice (products and counts), and one transposed copy of the images' codes (12 bytes
    per stored entry; in files of `scratch` if given).
    """
    postings = transpose(pairing.image, scratch)
    total = pairing.texts.total
    rows_at_once = max(1, int(memory // (BYTES_PER_ENTRY * pairing.n_features)))
    for start in range(0, len(image), rows_at_once):
        chosen = image[start : start + rows_at_once]
        left = csr_array(postings[chosen])
        left.indices = pairing.partner[left.indices].astype(left.indices.dtype)
        products, cofires = run_both(partial(_multiply, left, total, text), partial(_count, left, total, text))
        release(postings, total)
        yield GramRows(chosen, text, products, cofires)


def _multiply(left: csr_array, right: csr_array, columns: Int[np.ndarray, " column"]) -> np.ndarray:
    """Chosen columns of the product of two sparse matrices, dense."""
    found = np.zeros((shape_of(left)[0], len(columns)))
    for one, other in _split(left, right):
        found += cast(csr_array, one @ other).toarray()[:, columns]
    return found


def _count(left: csr_array, right: csr_array, columns: Int[np.ndarray, " column"]) -> np.ndarray:
    """The same of the matrices with 1 for every entry."""
    found = np.zeros((shape_of(left)[0], len(columns)), np.int32)
    for one, other in _split(left, right):
        product = cast(csr_array, _mark(one) @ _mark(other))
        found += product.toarray()[:, columns]
    return found


def _mark(codes: csr_array) -> csr_array:
    return csr_array((np.ones(codes.nnz, np.int32), codes.indices, codes.indptr), shape=codes.shape)


def _split(left: csr_array, right: csr_array) -> Iterator[tuple[csr_array, csr_array]]:
    """Factors of parts of the product, for consecutive rows of the right matrix: of a mapped one only these are in memory."""
    n = shape_of(right)[0]
    if n <= SEGMENT:
        yield left, right
        return
    for rows in iterate_blocks(n, SEGMENT):
        inside = (left.indices >= rows.start) & (left.indices < rows.stop)
        starts = np.concatenate([[0], np.cumsum(inside)])[left.indptr]
        entries = left.data[inside], left.indices[inside] - rows.start, starts
        yield csr_array(entries, shape=(shape_of(left)[0], rows.stop - rows.start)), csr_array(right[rows])
        release(right)
