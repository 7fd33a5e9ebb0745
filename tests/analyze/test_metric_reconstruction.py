"""Laws of the reconstruction measures: FVU variants, shrinkage, progressive recovery, fidelity of behaviour."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy

from thresher.analyze.metrics.fidelity import classify_zero_shot, diverge, rank_partners, recover_share
from thresher.analyze.metrics.progressive import order_by_size, trace_recovery
from thresher.analyze.metrics.reconstruction import Reconstruction, measure_reconstruction, sum_reconstruction
from thresher.errors import AnalysisError

laws = settings(deadline=None, max_examples=10, derandomize=True)
seeds = st.integers(0, 2**32 - 1)


def measure(x: np.ndarray, x_hat: np.ndarray) -> Reconstruction:
    rows = np.arange(len(x))
    sums = sum_reconstruction(torch.from_numpy(x), torch.from_numpy(x_hat), rows, rows, np.ones((1, len(x))))
    return measure_reconstruction(sums)


@laws
@given(seeds)
def test_each_variant_follows_its_own_definition(seed: int) -> None:
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(33, 6)) + 4
    x_hat = 0.8 * x + generator.normal(size=x.shape) * 0.3
    found = measure(x, x_hat)
    over_dimensions = (x - x_hat).var(axis=1) / x.var(axis=1)
    assert found.fvu_over_dimensions[0] == pytest.approx(over_dimensions.mean(), rel=1e-10)
    assert found.r2_scalar_mean[0] == pytest.approx(1 - np.square(x - x_hat).sum() / np.square(x - x.mean()).sum(), rel=1e-10)
    lengths = np.linalg.norm(x_hat, axis=1) / np.linalg.norm(x, axis=1)
    assert found.length_ratio[0] == pytest.approx(lengths.mean(), rel=1e-12)
    assert found.bias[0] == pytest.approx(np.square(x_hat).sum() / (x * x_hat).sum(), rel=1e-12)


def test_the_scalar_mean_praises_predicting_the_mean_and_the_vector_mean_does_not() -> None:
    generator = np.random.default_rng(0)
    x = 0.3 * generator.normal(size=(400, 16)) + generator.normal(size=16)
    found = measure(x, np.tile(x.mean(axis=0), (400, 1)))
    assert found.r2[0] == pytest.approx(0, abs=1e-9)
    assert found.r2_scalar_mean[0] > 0.8


@laws
@given(seeds, st.floats(0.05, 20))
def test_only_the_shrinkage_depends_on_the_length_of_the_reconstruction(seed: int, scale: float) -> None:
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(20, 5))
    x_hat = x + 0.1 * generator.normal(size=x.shape)
    one, other = measure(x, x_hat), measure(x, scale * x_hat)
    assert other.cosine[0] == pytest.approx(one.cosine[0], rel=1e-10)
    assert other.length_ratio[0] == pytest.approx(scale * one.length_ratio[0], rel=1e-10)
    assert other.bias[0] == pytest.approx(scale * one.bias[0], rel=1e-10)


def draw_codes(seed: int, rows: int = 23, k: int = 5, d_sae: int = 11, d_in: int = 6):
    generator = np.random.default_rng(seed)
    dictionary = generator.normal(size=(d_sae, d_in))
    return generator.integers(0, d_sae, (rows, k)), generator.normal(size=(rows, k)), dictionary


@laws
@given(seeds)
def test_recovery_by_prefix_equals_decoding_each_prefix(seed: int) -> None:
    indices, values, dictionary = draw_codes(seed)
    x, bias = np.random.default_rng(seed + 1).normal(size=(23, 6)), np.full(6, 0.3)
    found = trace_recovery(x, indices, values, dictionary, bias, [0, 1, 3, 5])
    for line, k in enumerate(found.k):
        x_hat = bias + np.einsum("rk,rkd->rd", values[:, :k], dictionary[indices[:, :k]])
        error = np.square(x - x_hat).sum(axis=1)
        assert found.fvu[line] == pytest.approx(error.sum() / np.square(x - x.mean(0)).sum(), rel=1e-10)
        assert found.nmse[line] == pytest.approx((error / np.square(x).sum(axis=1)).mean(), rel=1e-10)
        cosine = (x * x_hat).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(x_hat, axis=1)
        assert found.cosine[line] == pytest.approx(cosine.mean(), rel=1e-10)
        assert found.dead[line] == pytest.approx(1 - len(np.unique(indices[:, :k])) / 11)


def test_ordering_by_size_keeps_the_pairs_and_sorts_magnitudes() -> None:
    indices, values, _ = draw_codes(0)
    by_size = order_by_size(indices, values)
    assert (np.diff(np.abs(by_size[1]), axis=1) <= 0).all()
    assert sorted(zip(*map(np.ravel, by_size), strict=True)) == sorted(zip(indices.ravel(), values.ravel(), strict=True))


def test_prefixes_longer_than_the_codes_and_single_rows_are_refused() -> None:
    indices, values, dictionary = draw_codes(0)
    with pytest.raises(AnalysisError, match="5 coefficients per row, expected at least 6"):
        trace_recovery(np.ones((23, 6)), indices, values, dictionary, np.zeros(6), [6])
    with pytest.raises(AnalysisError, match="1 rows, expected at least 2"):
        trace_recovery(np.ones((1, 6)), indices[:1], values[:1], dictionary, np.zeros(6), [1])


def test_equal_rows_have_no_fraction_of_variance() -> None:
    indices, values, dictionary = draw_codes(0)
    assert np.isnan(trace_recovery(np.ones((23, 6)), indices, values, dictionary, np.zeros(6), [1, 2]).fvu).all()


def test_nothing_lost_recovers_all_and_as_much_as_the_ablation_recovers_nothing() -> None:
    clean, ablated = np.array([2.0, 2.0, 2.0, 2.0]), np.array([4.0, 4.0, 4.0, 2.0])
    found = recover_share(clean, np.array([2.0, 4.0, 6.0, 2.0]), ablated)
    assert found[:3].tolist() == [1, 0, -1]
    assert np.isnan(found[3])


@laws
@given(seeds)
def test_the_divergence_is_scipys_entropy_and_zero_for_equal_logits(seed: int) -> None:
    a, b = np.random.default_rng(seed).normal(size=(2, 7, 5))
    softmax = [np.exp(z) / np.exp(z).sum(axis=1, keepdims=True) for z in (a, b)]
    np.testing.assert_allclose(diverge(a, b), entropy(softmax[0], softmax[1], axis=1), rtol=1e-10)
    np.testing.assert_allclose(diverge(a, a + 3), 0, atol=1e-12)


def test_zero_shot_after_a_perfect_reconstruction_is_as_before_and_a_collapsed_one_is_wrong() -> None:
    generator = np.random.default_rng(0)
    classes, label = generator.normal(size=(4, 8)), np.arange(20) % 4
    x = classes[label] + 0.1 * generator.normal(size=(20, 8))
    kept = classify_zero_shot(x, 3 * x, classes, label, 100.0)
    assert kept.correct.all()
    assert kept.agrees.all()
    np.testing.assert_allclose(kept.divergence, 0, atol=1e-10)
    collapsed = classify_zero_shot(x, np.zeros_like(x), classes, label, 100.0)
    assert collapsed.correct_before.all()
    assert not collapsed.correct.any()


def test_classes_of_another_width_are_refused() -> None:
    with pytest.raises(AnalysisError, match="8 and 5"):
        classify_zero_shot(np.ones((2, 8)), np.ones((2, 8)), np.ones((3, 5)), np.zeros(2, dtype=int), 1.0)


def test_the_partner_is_found_among_five_captions_and_ties_count_against_it() -> None:
    images = np.eye(4)
    captions, group = np.repeat(images, 5, axis=0), np.repeat(np.arange(4), 5)
    assert rank_partners(images, captions, np.arange(4), group).tolist() == [1, 1, 1, 1]
    assert rank_partners(captions, images, group, np.arange(4)).tolist() == [1] * 20
    collapsed = rank_partners(np.ones((4, 3)), np.ones((20, 3)), np.arange(4), group)
    assert collapsed.tolist() == [16] * 4


@laws
@given(seeds)
def test_ranks_without_ties_are_those_of_a_full_sort(seed: int) -> None:
    generator = np.random.default_rng(seed)
    a, b = generator.normal(size=(2, 13, 4))
    own = np.arange(13)
    cosine = (a / np.linalg.norm(a, axis=1)[:, None]) @ (b / np.linalg.norm(b, axis=1)[:, None]).T
    expected = [1 + int(np.flatnonzero(np.argsort(-cosine[i]) == i)[0]) for i in range(13)]
    assert rank_partners(a, b, own, own).tolist() == expected


def test_a_query_without_a_partner_is_refused() -> None:
    with pytest.raises(AnalysisError, match="1 queries with a target of their own group, expected at least 2"):
        rank_partners(np.eye(2), np.eye(2), np.array([0, 7]), np.array([0, 1]))
