"""Retrieval by codes: an inverted index over features, three scorers, and the measures of ranked lists."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy.sparse import csr_array, diags_array

from thresher.analyze.metrics.codes import count_active
from thresher.analyze.metrics.grouping import count_columns, count_rows
from thresher.analyze.metrics.needs import divide, need_equal, need_items, need_non_negative


class BM25(NamedTuple):
    """Constants of CL-SR (arXiv 2506.00041); `b` above 1 is theirs."""

    k1: float = 0.6
    k2: float = 1.5
    b: float = 2.0


def keep_largest(codes: csr_array, k: int) -> csr_array:
    """The `k` largest codes of each row; of equal ones those of the smaller feature. CL-SR keeps 24 or 65 per passage."""
    need_items("an index", k, 1, "codes per row")
    entries = codes.tocoo()
    order = np.lexsort((entries.col, np.negative(entries.data), entries.row))
    row, column, value = entries.row[order], entries.col[order], entries.data[order]
    lengths = np.bincount(row, minlength=count_rows(codes))
    place = np.arange(len(row)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    kept = place < k
    return csr_array((value[kept], (row[kept], column[kept])), shape=codes.shape)


def weigh_rarity(documents: csr_array) -> Float[np.ndarray, " feature"]:
    """log((N - n + 0.5) / (n + 0.5)), clipped at 0: features in more than half of the documents would count against a match."""
    n, fires = count_rows(documents), np.bincount(documents.indices, minlength=count_columns(documents))
    return np.maximum(np.log((n - fires + 0.5) / (fires + 0.5)), 0.0)


def score_bm25(queries: csr_array, documents: csr_array, settings: BM25) -> csr_array:
    """Scores [query, document] of CL-SR (arXiv 2506.00041): sum over features of

    IDF * a_q (k2 + 1) / (a_q + k2) * a_d (k1 + 1) / (a_d + k1 (1 - b + b len_d / avglen)), len_d = codes of the document.

    A document so short that the bracket is negative (b > 1) is counted as one where it is 0. Sparse: pairs that share no
    feature are not stored. Raises AnalysisError: negative codes, different dictionaries, no documents.
    """
    _check(queries, documents)
    need_non_negative("BM25", queries, "score_dot")
    need_non_negative("BM25", documents, "score_dot")
    length = count_active(documents).astype(np.float64)
    average = max(float(length.mean()), np.finfo(np.float64).tiny)
    penalty = settings.k1 * np.maximum(1 - settings.b + settings.b * length / average, 0.0)
    saturated, asked = documents.copy(), queries.copy()
    saturated.data = documents.data * (settings.k1 + 1) / (documents.data + np.repeat(penalty, count_active(documents)))
    asked.data = queries.data * (settings.k2 + 1) / (queries.data + settings.k2)
    return csr_array(asked @ diags_array(weigh_rarity(documents)) @ saturated.T.tocsr())


def score_dot(queries: csr_array, documents: csr_array) -> csr_array:
    """Inner products of codes [query, document], signs and all. Raises AnalysisError: different dictionaries, no documents."""
    _check(queries, documents)
    return csr_array(queries @ documents.T.tocsr())


def score_cosine(queries: csr_array, documents: csr_array) -> csr_array:
    """Cosines of codes [query, document] (similarity search by concept, MSAE, arXiv 2502.20578); 0 for rows of zeros."""
    return score_dot(_unit(queries), _unit(documents))


def expand(queries: csr_array, bridge: csr_array) -> csr_array:
    """Queries with the partners of their features added: z + z W, W [query feature, document feature] the bridge's weights.

    What retrieval gains by it is what unimodal features that work together carry.
    """
    need_equal("bridge expansion", "features of queries and bridge", count_columns(queries), count_rows(bridge))
    return csr_array(queries + queries @ bridge)


class Ranked(NamedTuple):
    """Measures of the ranked lists, means over queries. Ties are ranked pessimistically."""

    recall: Float[np.ndarray, " cutoff"]
    """Share of a query's relevant documents among the first k."""
    precision: Float[np.ndarray, " cutoff"]
    """Share of the first k that are relevant."""
    mrr: float
    """1 / rank of the first relevant document, over the whole list."""
    ndcg: Float[np.ndarray, " cutoff"]
    """Discounted gain with binary relevance, over the best possible."""


def rank_documents(
    scores: Float[np.ndarray, "query document"], relevant: Bool[np.ndarray, "query document"], cutoffs: list[int]
) -> Ranked:
    """Recall, precision, MRR and nDCG at each cutoff. Among equal scores irrelevant documents come first, so that scores of 0
    for all documents are no success. Raises AnalysisError: a query has no relevant document, or fewer documents than a cutoff.
    """
    need_items("ranking", scores.shape[1], max(cutoffs), "documents")
    n_relevant = relevant.sum(axis=1)
    need_items("ranking", int((n_relevant > 0).sum()), len(scores), "queries with a relevant document")
    order = np.lexsort((relevant, -scores), axis=1)
    hits = np.take_along_axis(relevant, order, axis=1).astype(np.float64)
    found = np.cumsum(hits, axis=1)
    discount = 1 / np.log2(np.arange(hits.shape[1]) + 2)
    gain, ideal = np.cumsum(hits * discount, axis=1), np.cumsum(discount)
    at = np.array(cutoffs) - 1
    best = ideal[np.minimum(n_relevant[:, None], at[None] + 1) - 1]
    return Ranked(
        recall=(found[:, at] / n_relevant[:, None]).mean(axis=0),
        precision=(found[:, at] / (at + 1)).mean(axis=0),
        mrr=float((1 / (hits.argmax(axis=1) + 1)).mean()),
        ndcg=(gain[:, at] / best).mean(axis=0),
    )


class IndexCost(NamedTuple):
    """What an inverted index costs."""

    postings: int
    """Stored (feature, document) entries."""
    touched: Float[np.ndarray, " query"]
    """Postings read per query: the sum of the list lengths of its features."""


def measure_index(queries: csr_array, documents: csr_array) -> IndexCost:
    """Size of the index of `documents`, and what each query reads of it."""
    _check(queries, documents)
    lengths = np.bincount(documents.indices, minlength=count_columns(documents)).astype(np.float64)
    fired = queries.copy()
    fired.data = np.ones_like(queries.data)
    return IndexCost(int(documents.nnz), fired @ lengths)


def _check(queries: csr_array, documents: csr_array) -> None:
    need_equal("retrieval by codes", "features of queries and documents", count_columns(queries), count_columns(documents))
    need_items("retrieval by codes", count_rows(documents), 1, "documents")


def _unit(codes: csr_array) -> csr_array:
    length = np.sqrt(np.asarray(codes.power(2).sum(axis=1), dtype=np.float64))
    return csr_array(diags_array(np.nan_to_num(divide(np.ones_like(length), length))) @ codes)
