"""Finding the image of a caption by codes alone: an inverted index over features, with and without bridges."""

from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_array

from thresher.analyze.functional.held import Half, describe
from thresher.analyze.functional.probes import Maps, Probed, keep_partners
from thresher.analyze.metrics.estimate import Estimate, estimate, exact
from thresher.analyze.metrics.grouping import count_columns
from thresher.analyze.metrics.needs import normalize_rows
from thresher.analyze.metrics.search import BM25, expand, keep_largest, measure_index, score_bm25, score_cosine, score_dot

NAMES = ("r1", "r5", "r10", "mrr")
CUTOFFS = (1, 5, 10)
KEPT = 24
"""Codes of an image in the small index of CL-SR."""


def search_by_codes(probed: Probed, maps: Maps) -> dict[str, Any]:
    """Recall at 1, 5, 10 and MRR of a caption's own image among the judged ones, by inner product, cosine and BM25.

    All of codes; BM25 (CL-SR, arXiv 2506.00041) also of the KEPT largest of an image (`_kept`); the query as it is or with the
    partners of its features added (`_bridged`, correlations of other images); `raw`: cosine of activations. Postings
    per image, and read per query.

    Negative codes are left out of BM25 and of what is added; `negative` says how many there were.
    """
    image, text = probed.judged.image, probed.judged.text
    documents, queries = _drop_negative(image.codes), _drop_negative(text.codes)
    kept = keep_largest(documents, KEPT)
    bridged = expand(queries, _spread(maps, probed.features, count_columns(queries)))
    own = np.searchsorted(image.group, text.group)
    scores = {
        "dot": score_dot(text.codes, image.codes).toarray(),
        "cosine": score_cosine(text.codes, image.codes).toarray(),
        "bm25": score_bm25(queries, documents, BM25()).toarray(),
        "bm25_kept": score_bm25(queries, kept, BM25()).toarray(),
        "dot_bridged": score_dot(bridged, documents).toarray(),
        "bm25_bridged": score_bm25(bridged, documents, BM25()).toarray(),
        "raw": normalize_rows(text.x) @ normalize_rows(image.x).T,
    }
    found: dict[str, Any] = {name: measure_ranks(rank_own(one, own), text) for name, one in scores.items()}
    found["postings_per_image"] = exact(documents.nnz / len(image.items), len(image.items), "images")
    found["postings_per_image_kept"] = exact(kept.nnz / len(image.items), len(image.items), "images")
    for name, asked in (("queries", queries), ("queries_bridged", bridged)):
        touched = measure_index(asked, documents).touched
        found[f"postings_read_{name}"] = estimate(text.average(touched[:, None])[:, 0], len(text.items), "captions")
    n_negative = int((image.codes.data < 0).sum() + (text.codes.data < 0).sum())
    return found | {"negative": exact(float(n_negative), image.codes.nnz + text.codes.nnz, "codes")}


def rank_own(scores: Float[np.ndarray, "query document"], own: Int[np.ndarray, " query"]) -> Int[np.ndarray, " query"]:
    """Rank of each query's own document, 1 = first; equal scores are ranked before it."""
    mine = np.take_along_axis(scores, own[:, None], axis=1)
    return (scores >= mine - 1e-12).sum(axis=1).astype(np.int64)


def measure_ranks(ranks: Int[np.ndarray, " query"], asking: Half) -> dict[str, Estimate]:
    """Recall and MRR with intervals over the queries' records."""
    values = np.column_stack([ranks[:, None] <= np.array(CUTOFFS), 1 / ranks])
    return describe(asking.average(values), NAMES, len(ranks), "captions")


def _spread(maps: Maps, features: Int[np.ndarray, " feature"], d_sae: int) -> csr_array:
    """Weights from text features to the image features that they fire with, a feature itself left out: it is in the query."""
    weights = keep_partners(maps.correlation.T)
    np.fill_diagonal(weights, 0.0)
    rows, columns = np.nonzero(weights)
    return csr_array((weights[rows, columns], (features[rows], features[columns])), shape=(d_sae, d_sae))


def _drop_negative(codes: csr_array) -> csr_array:
    kept = codes.copy()
    kept.data = np.maximum(kept.data, 0.0)
    kept.eliminate_zeros()
    return kept
