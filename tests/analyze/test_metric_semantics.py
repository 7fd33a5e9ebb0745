"""Laws of MonoSemanticity within and across modalities: linear equals pairwise, and the nulls are exact."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from thresher.analyze.metrics.needs import normalize_rows
from thresher.analyze.metrics.semantics import (
    add_semantics,
    centre,
    compare_groups,
    compare_tops,
    measure_edges,
    measure_monosemanticity,
    measure_multimodal,
    sum_pairs,
    sum_semantics,
)
from thresher.errors import AnalysisError

laws = settings(deadline=None, max_examples=8, derandomize=True)
seeds = st.integers(0, 2**32 - 1)


def draw(seed: int, rows: int = 25, features: int = 5, width: int = 4) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    z = generator.exponential(size=(rows, features)) * (generator.random((rows, features)) < 0.5)
    return z, normalize_rows(generator.normal(size=(rows, width)) + 0.5)


def pairwise(a: np.ndarray, b: np.ndarray, cosine: np.ndarray, keep: np.ndarray) -> float:
    weight = np.outer(a, b) * keep
    return float((weight * cosine).sum() / weight.sum()) if weight.any() else float("nan")


@laws
@given(seeds)
def test_the_linear_monosemanticity_equals_the_pairwise_one(seed: int) -> None:
    z, e = draw(seed)
    found = measure_monosemanticity(sum_semantics(csr_array(z), e)).score
    off = ~np.eye(len(z), dtype=bool)
    np.testing.assert_allclose(found, [pairwise(a, a, e @ e.T, off) for a in z.T], rtol=1e-9, atol=1e-12)


@laws
@given(seeds)
def test_the_linear_multimodal_score_equals_the_pairwise_one_with_and_without_matched_pairs(seed: int) -> None:
    (a, e), (b, f) = draw(seed), draw(seed + 1)
    image, text = sum_semantics(csr_array(a), e), sum_semantics(csr_array(b), f)
    everything, off = np.ones((25, 25), dtype=bool), ~np.eye(25, dtype=bool)
    columns = list(zip(a.T, b.T, strict=True))
    expected = [pairwise(x, y, e @ f.T, everything) for x, y in columns]
    np.testing.assert_allclose(measure_multimodal(image, text).score, expected, rtol=1e-9, atol=1e-12)
    unpaired = measure_multimodal(image, text, sum_pairs(csr_array(a), csr_array(b), e, f)).score
    np.testing.assert_allclose(unpaired, [pairwise(x, y, e @ f.T, off) for x, y in columns], rtol=1e-9, atol=1e-12)
    edges = measure_edges(image, text, np.array([0, 1]), np.array([2, 1]))
    crossed = [pairwise(a[:, 0], b[:, 2], e @ f.T, everything), expected[1]]
    np.testing.assert_allclose(edges, crossed, rtol=1e-9, atol=1e-12)


def test_the_null_of_monosemanticity_is_that_of_all_permutations() -> None:
    z, e = draw(3, rows=5)
    every = [measure_monosemanticity(sum_semantics(csr_array(z), e[list(order)])).score for order in permutations(range(5))]
    found = measure_monosemanticity(sum_semantics(csr_array(z), e))
    np.testing.assert_allclose(found.chance, np.mean(every, axis=0), rtol=1e-9)
    np.testing.assert_allclose(found.z, (found.score - np.mean(every, axis=0)) / np.std(every, axis=0), rtol=1e-7)


def test_the_null_of_the_multimodal_score_is_that_of_all_permutations() -> None:
    (a, e), (b, f) = draw(5, rows=4), draw(6, rows=4)
    orders = [list(order) for order in permutations(range(4))]
    texts = [sum_semantics(csr_array(b), f[order]) for order in orders]
    images = [sum_semantics(csr_array(a), e[order]) for order in orders]
    every = np.array([measure_multimodal(image, text).score for image in images for text in texts])
    found = measure_multimodal(images[0], texts[0])
    alive = np.isfinite(found.score) & (every.std(axis=0) > 1e-9)
    assert alive.any()
    np.testing.assert_allclose(found.chance[alive], every.mean(axis=0)[alive], rtol=1e-9)
    expected = (found.score - every.mean(axis=0))[alive] / every.std(axis=0)[alive]
    np.testing.assert_allclose(found.z[alive], expected, rtol=1e-7)


@laws
@given(seeds, st.floats(0.01, 100), st.integers(1, 24))
def test_scores_depend_neither_on_scale_nor_sign_nor_chunks(seed: int, scale: float, cut: int) -> None:
    z, e = draw(seed)
    whole = sum_semantics(csr_array(z), e)
    other = add_semantics(
        sum_semantics(csr_array(-scale * z[:cut]), e[:cut]), sum_semantics(csr_array(scale * z[cut:]), e[cut:])
    )
    for one, two in zip(measure_monosemanticity(whole), measure_monosemanticity(other), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-6, atol=1e-9)


def test_swapping_the_modalities_changes_nothing() -> None:
    (a, e), (b, f) = draw(1), draw(2, rows=40)
    image, text = sum_semantics(csr_array(a), e), sum_semantics(csr_array(b), f)
    for one, two in zip(measure_multimodal(image, text), measure_multimodal(text, image), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-10)


def test_a_feature_of_one_concept_stands_out_and_a_random_one_does_not() -> None:
    generator = np.random.default_rng(0)
    e = generator.normal(size=(400, 16))
    e[:40] += 3 * generator.normal(size=16)
    z = np.zeros((400, 2))
    z[:40, 0] = z[generator.permutation(400)[:40], 1] = 1
    found = measure_monosemanticity(sum_semantics(csr_array(z), centre(e)))
    assert found.z[0] > 30
    assert abs(found.z[1]) < 4
    assert found.score[0] > 0.5 > abs(found.score[1])


def test_centring_takes_the_cone_off() -> None:
    e = normalize_rows(np.random.default_rng(0).normal(size=(500, 8)) + 4)
    z = csr_array(np.arange(500.0)[:, None] % 2)
    assert measure_monosemanticity(sum_semantics(z, e)).score[0] > 0.9
    assert abs(measure_monosemanticity(sum_semantics(z, centre(e))).score[0]) < 0.02


def test_features_that_fire_once_or_on_one_modality_have_no_score() -> None:
    z, e = draw(0)
    z[:, 0], z[:, 1] = 0, 0
    z[3, 1] = 2.0
    sums = sum_semantics(csr_array(z), e)
    assert np.isnan(measure_monosemanticity(sums).score[:2]).all()
    assert np.isnan(measure_multimodal(sums, sums).score).tolist() == [True, False, False, False, False]


def test_rows_that_do_not_match_and_too_few_rows_are_refused() -> None:
    z, e = draw(0)
    with pytest.raises(AnalysisError, match="25 and 24"):
        sum_semantics(csr_array(z), e[:24])
    with pytest.raises(AnalysisError, match="3 rows, expected at least 4"):
        measure_monosemanticity(sum_semantics(csr_array(z[:3]), e[:3]))


def test_concepts_whose_tops_agree_have_more_similarity_within_than_between() -> None:
    centres = np.eye(3)[:, None, :]
    intra, inter = compare_groups(compare_tops(np.repeat(centres, 4, axis=1), 2 * np.repeat(centres, 2, axis=1)))
    assert (intra, inter) == (pytest.approx(1), pytest.approx(0))
    with pytest.raises(AnalysisError, match="1 concepts"):
        compare_groups(np.ones((1, 1)))
