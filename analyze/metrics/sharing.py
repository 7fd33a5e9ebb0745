"""Are items that share features alike? The dose-response curve of ClassifSAE's SentenceSim, for any two sets of items."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_array

from thresher.analyze.metrics.grouping import count_rows
from thresher.analyze.metrics.needs import need_equal, need_items

ROWS_AT_ONCE = 1024


class Sharing(NamedTuple):
    """One number per count of shared features, 0, 1, ..., `top`."""

    similarity: Float[np.ndarray, " shared"]
    """Mean cosine of the embeddings of two items that share exactly so many of their strongest features; NaN without any."""
    n: Int[np.ndarray, " shared"]
    """Pairs of items behind it."""


def measure_sharing(
    first: csr_array,
    second: csr_array,
    first_embeddings: Float[np.ndarray, "first d_ext"],
    second_embeddings: Float[np.ndarray, "second d_ext"],
    top: int,
    *,
    is_paired: bool,
) -> Sharing:
    """Mean similarity by the number of the `top` strongest features (by |z|) that two items have in common (arXiv 2506.23951).

    Items are rows of codes [item, d_sae] with unit embeddings of another encoder, centred (`semantics.centre`). With
    `is_paired` row n of both belongs together (or is the same item) and (n, n) is left out. Costs O(first * second * d_ext).
    Raises AnalysisError: codes and embeddings of different items, or fewer than 2 items.
    """
    need_items("similarity by shared features", min(count_rows(first), count_rows(second)), 2, "items")
    need_equal("similarity by shared features", "items of codes and embeddings", count_rows(first), len(first_embeddings))
    need_equal("similarity by shared features", "items of codes and embeddings", count_rows(second), len(second_embeddings))
    strongest = [keep_strongest(codes, top) for codes in (first, second)]
    total, n = np.zeros(top + 1), np.zeros(top + 1)
    for start in range(0, count_rows(first), ROWS_AT_ONCE):
        part = slice(start, min(start + ROWS_AT_ONCE, count_rows(first)))
        shared = (csr_array(strongest[0][part]) @ strongest[1].T).toarray().astype(np.int64)
        cosine, counted = first_embeddings[part] @ second_embeddings.T, np.ones(shared.shape)
        if is_paired:
            rows = np.arange(part.stop - start)
            counted[rows, start + rows] = 0
        n += np.bincount(shared.ravel(), weights=counted.ravel(), minlength=top + 1)
        total += np.bincount(shared.ravel(), weights=(cosine * counted).ravel(), minlength=top + 1)
    similarity = np.divide(total, n, out=np.full(top + 1, np.nan), where=n > 0)
    return Sharing(similarity, n.astype(np.int64))


def keep_strongest(codes: csr_array, top: int) -> csr_array:
    """1 at the `top` largest |z| of each row, nothing elsewhere; rows of fewer active features have fewer."""
    n_rows = count_rows(codes)
    row = np.repeat(np.arange(n_rows), np.diff(codes.indptr))
    order = np.lexsort((codes.indices, -np.abs(codes.data), row))
    rank = np.arange(len(order)) - codes.indptr[row[order]]
    kept = order[(rank < top) & (codes.data[order] != 0)]
    return csr_array((np.ones(len(kept)), (row[kept], codes.indices[kept])), shape=codes.shape)
