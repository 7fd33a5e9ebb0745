"""Laws of retrieval by codes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from sklearn.metrics import ndcg_score

from thresher.analyze.metrics.search import (
    BM25,
    expand,
    keep_largest,
    measure_index,
    rank_documents,
    score_bm25,
    score_cosine,
    score_dot,
    weigh_rarity,
)
from thresher.errors import AnalysisError

laws = settings(deadline=None, max_examples=10, derandomize=True)
seeds = st.integers(0, 2**32 - 1)


def draw(seed: int, rows: int = 12, features: int = 9) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.exponential(size=(rows, features)) * (generator.random((rows, features)) < 0.3)


@laws
@given(seeds)
def test_bm25_is_the_sum_over_shared_features_of_its_formula(seed: int) -> None:
    q, d, s = draw(seed, 5), draw(seed + 1), BM25(b=0.7)
    n, length = (d > 0).sum(axis=0), (d > 0).sum(axis=1)
    idf = np.maximum(np.log((12 - n + 0.5) / (n + 0.5)), 0)
    norm = s.k1 * (1 - s.b + s.b * length / length.mean())
    expected = np.zeros((5, 12))
    for i in range(5):
        for j in range(12):
            for f in np.flatnonzero((q[i] > 0) & (d[j] > 0)):
                asked = q[i, f] * (s.k2 + 1) / (q[i, f] + s.k2)
                expected[i, j] += idf[f] * asked * d[j, f] * (s.k1 + 1) / (d[j, f] + norm[j])
    np.testing.assert_allclose(score_bm25(csr_array(q), csr_array(d), s).toarray(), expected, rtol=1e-10)


def test_rarity_is_never_negative_and_falls_with_frequency() -> None:
    d = np.zeros((10, 3))
    d[:9, 0] = d[:3, 1] = d[:1, 2] = 1
    rarity = weigh_rarity(csr_array(d))
    assert rarity[0] == 0 < rarity[1] < rarity[2]


def test_bm25_refuses_signed_codes_and_other_dictionaries() -> None:
    with pytest.raises(AnalysisError, match="1 of 1 codes are negative"):
        score_bm25(csr_array(np.array([[-1.0]])), csr_array(np.array([[1.0]])), BM25())
    with pytest.raises(AnalysisError, match="2 and 3"):
        score_dot(csr_array(np.ones((1, 2))), csr_array(np.ones((1, 3))))


def test_cosines_are_those_of_dense_codes_and_zero_rows_have_none() -> None:
    q, d = draw(0), draw(1)
    q[0] = 0
    norms = np.linalg.norm(q, axis=1)[:, None] * np.linalg.norm(d, axis=1)
    expected = np.divide(q @ d.T, norms, out=np.zeros_like(norms), where=norms > 0)
    np.testing.assert_allclose(score_cosine(csr_array(q), csr_array(d)).toarray(), expected, atol=1e-12)


def test_a_bridge_finds_what_no_shared_feature_finds() -> None:
    query, document = csr_array(np.array([[1.0, 0]])), csr_array(np.array([[0, 2.0]]))
    assert score_dot(query, document).nnz == 0
    bridge = csr_array(np.array([[0, 0.5], [0, 0]]))
    assert score_dot(expand(query, bridge), document).toarray().tolist() == [[1.0]]


def test_the_largest_codes_stay() -> None:
    kept = keep_largest(csr_array(np.array([[3.0, 1, 2, 1], [0, 0, 5, 0], [1, 1, 1, 1]])), 2)
    assert kept.toarray().tolist() == [[3, 0, 2, 0], [0, 0, 5, 0], [1, 1, 0, 0]]


@laws
@given(seeds)
def test_ranking_measures_equal_their_definitions(seed: int) -> None:
    generator = np.random.default_rng(seed)
    scores, relevant = generator.normal(size=(6, 15)), generator.random((6, 15)) < 0.2
    relevant[:, 0] = True
    found = rank_documents(scores, relevant, [1, 5, 10])
    for place, k in enumerate([1, 5, 10]):
        top = np.argsort(-scores, axis=1)[:, :k]
        hits = np.take_along_axis(relevant, top, axis=1).sum(axis=1)
        assert found.precision[place] == pytest.approx((hits / k).mean())
        assert found.recall[place] == pytest.approx((hits / relevant.sum(axis=1)).mean())
        assert found.ndcg[place] == pytest.approx(ndcg_score(relevant.astype(float), scores, k=k))
    first = [1 + np.flatnonzero(relevant[i, np.argsort(-scores[i])])[0] for i in range(6)]
    assert found.mrr == pytest.approx((1 / np.array(first)).mean())


def test_scores_that_are_all_equal_are_no_success() -> None:
    relevant = np.eye(10, dtype=bool)
    found = rank_documents(np.zeros((10, 10)), relevant, [1, 5])
    assert found.recall.tolist() == [0, 0]
    assert found.mrr == pytest.approx(0.1)
    with pytest.raises(AnalysisError, match="9 queries with a relevant document, expected at least 10"):
        rank_documents(np.zeros((10, 10)), relevant & (np.arange(10) < 9), [1])


def test_an_index_costs_its_postings_and_queries_touch_their_lists() -> None:
    documents = csr_array(np.array([[1.0, 1], [0, 1], [0, 1]]))
    cost = measure_index(csr_array(np.array([[1.0, 0], [2, 2], [0, 0]])), documents)
    assert cost.postings == 4
    assert cost.touched.tolist() == [1, 4, 0]
