"""The laws of overlap, matching, alignment and what a feature says about modality: golden values and identities."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from scipy.stats import rankdata

from thresher.analyze.metrics.align import fit_cca, fit_procrustes, fit_sinkhorn, judge_maps, judge_rows
from thresher.analyze.metrics.labels import count_labels, label_jaccard
from thresher.analyze.metrics.matching import comparative_sharedness, group_partners, match_one_to_one, weighted_coverage
from thresher.analyze.metrics.modality import average_discrimination, tell_modality
from thresher.analyze.metrics.overlap import (
    cofire_proportion,
    compare_codes,
    firing_entropy,
    measure_overlap,
)
from thresher.analyze.metrics.pairs import classify_dominance, correlate_rows, score_dominance, sum_dominance
from thresher.analyze.statistics.coverage import cover
from thresher.analyze.statistics.examples import find_examples
from thresher.analyze.statistics.features import sum_features
from thresher.analyze.statistics.file import load_sums, save_sums
from thresher.analyze.statistics.gram import iterate_gram
from thresher.analyze.statistics.paired import find_marginals, sum_pairs
from thresher.analyze.statistics.pairing import pair_codes
from thresher.errors import AnalysisError

laws = settings(deadline=None, max_examples=10, derandomize=True)
seeds = st.integers(0, 2**32 - 1)


def draw_dense(generator: np.random.Generator, n: int, m: int, *, signed: bool = False) -> np.ndarray:
    values = generator.normal(size=(n, m)) if signed else generator.exponential(size=(n, m))
    return values * (generator.random((n, m)) < 0.4)


def pair_rows(image: np.ndarray, text: np.ndarray):
    n = len(image)
    return pair_codes(csr_array(image), csr_array(text), np.tile(np.arange(n)[:, None], 2), np.arange(n))


@laws
@given(seeds)
def test_dominance_is_the_mean_ratio_over_pairs_that_fire(seed: int) -> None:
    generator = np.random.default_rng(seed)
    a, b = draw_dense(generator, 30, 5, signed=True), draw_dense(generator, 30, 5, signed=True)
    a[:, 0] = b[:, 0] = 0
    found = score_dominance(sum_dominance(csr_array(a), csr_array(b)))
    for i in range(1, 5):
        fires = (a[:, i] != 0) | (b[:, i] != 0)
        one, other = abs(a[fires, i]), abs(b[fires, i])
        assert found[i] == pytest.approx((one / (one + other)).mean(), rel=1e-12)
    assert np.isnan(found[0])
    swapped = score_dominance(sum_dominance(csr_array(b), csr_array(a)))
    np.testing.assert_allclose(swapped, 1 - found, rtol=1e-12)


def test_dominance_classes_lie_a_standard_deviation_from_the_mean() -> None:
    score = np.array([1.0, 0.0, 0.5, 0.5, 0.5, 0.5, np.nan])
    assert classify_dominance(score).tolist() == ["image", "text", "cross", "cross", "cross", "cross", "dead"]


def test_overlap_of_independent_firings_has_lift_one() -> None:
    found = measure_overlap(np.array([6, 10, 0, 0]), np.array([20, 10, 5, 0]), np.array([30, 10, 5, 0]), 100)
    np.testing.assert_allclose(found.lift[:3], [1, 10, 0])
    np.testing.assert_allclose(found.jaccard[:3], [6 / 44, 1, 0])
    np.testing.assert_allclose(found.pmi[:2], [0, np.log2(10)], atol=1e-12)
    assert found.pmi[2] == -np.inf
    assert np.isnan([found.lift[3], found.jaccard[3]]).all()


@laws
@given(seeds)
def test_similarity_of_codes_is_that_of_dense_rows(seed: int) -> None:
    generator = np.random.default_rng(seed)
    a, b = draw_dense(generator, 25, 6, signed=True), draw_dense(generator, 25, 6, signed=True)
    a[3] = 0
    found = compare_codes(csr_array(a), csr_array(b), 0)
    unit_a, unit_b = (z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-300) for z in (a, b))
    assert found.cosine == pytest.approx((unit_a * unit_b).sum(1).mean(), abs=1e-12)
    assert found.cosine_unmatched == pytest.approx((unit_a @ unit_b.T).mean(), abs=1e-12)
    both, either = ((a != 0) & (b != 0)).sum(1), ((a != 0) | (b != 0)).sum(1)
    assert found.jaccard == pytest.approx(np.where(either > 0, both / np.maximum(either, 1), 0).mean(), rel=1e-12)
    assert 0 <= found.jaccard_unmatched <= 1


def test_equal_codes_are_as_alike_as_can_be() -> None:
    codes = csr_array(draw_dense(np.random.default_rng(0), 40, 30) + np.eye(40, 30))
    found = compare_codes(codes, codes, 0)
    assert found.jaccard_unmatched < 0.5 < found.jaccard


def test_firing_entropy_counts_streams_and_cofires_divide_by_each_stream() -> None:
    rates = np.array([[0.1, 0.2, 0.0, 0.3], [0.1, 0.0, 0.0, 0.1]])
    found = firing_entropy(rates)
    assert found[:2].tolist() == [pytest.approx(1), 0]
    assert np.isnan(found[2])
    assert found[3] == pytest.approx(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25)) / np.log(2))
    proportion = cofire_proportion(np.array([5, 0]), np.array([[5, 4], [10, 0], [5, 2]]))
    assert proportion[:, 0].tolist() == [1, 0.5, 1]
    assert np.isnan(proportion[1, 1])


def test_label_jaccard_does_not_change_with_five_captions_per_image() -> None:
    generator = np.random.default_rng(0)
    image, text = draw_dense(generator, 40, 4), draw_dense(generator, 40, 4)
    text[:, 0], image[:, 1] = image[:, 0], 0
    labels = (generator.random((40, 3)) < 0.5).astype(float)
    once = label_jaccard(count_labels(csr_array(image), labels), count_labels(csr_array(text), labels), *[labels.sum(0)] * 2)
    five = np.repeat(text, 5, axis=0), np.repeat(labels, 5, axis=0)
    again = label_jaccard(
        count_labels(csr_array(image), labels), count_labels(csr_array(five[0]), five[1]), labels.sum(0), five[1].sum(0)
    )
    np.testing.assert_allclose(once, again, rtol=1e-12)
    assert once[:2].tolist() == [pytest.approx(1), 0]


@laws
@given(seeds)
def test_the_area_under_the_curve_is_the_rank_sum_of_binned_sizes(seed: int) -> None:
    generator = np.random.default_rng(seed)
    a, b = draw_dense(generator, 60, 3, signed=True), draw_dense(generator, 45, 3, signed=True) * 3
    a[:, 2] = b[:, 2] = 0
    image, text = sum_features(csr_array(a)), sum_features(csr_array(b))
    found = tell_modality(image.histogram, 60, text.histogram, 45)
    for i in range(2):
        sizes = np.concatenate([abs(a[:, i]), abs(b[:, i])])
        ranks = rankdata(np.where(sizes > 0, np.floor(2 * np.log2(np.where(sizes > 0, sizes, 1))), -99))
        assert found.auc[i] == pytest.approx((ranks[:60].sum() - 60 * 61 / 2) / (60 * 45), rel=1e-12)
        assert 0.5 <= found.accuracy[i] <= 1
    assert np.isnan(found.auc[2])
    back = tell_modality(text.histogram, 45, image.histogram, 60)
    np.testing.assert_allclose(back.auc, 1 - found.auc, rtol=1e-12)
    np.testing.assert_allclose(back.accuracy, found.accuracy, rtol=1e-12)
    mean = average_discrimination(found.auc, np.array([1.0, 3.0, 0.0]))
    assert mean == pytest.approx((found.auc[0] + 3 * found.auc[1]) / 4)


def test_a_feature_of_images_alone_tells_the_modality_as_often_as_it_fires() -> None:
    image = sum_features(csr_array(np.array([[1.0], [2.0], [0.0], [0.0]])))
    text = sum_features(csr_array((4, 1)))
    found = tell_modality(image.histogram, 4, text.histogram, 4)
    assert found.auc[0] == 0.75
    assert found.accuracy[0] == 0.75


def test_a_permuted_dictionary_is_matched_back_one_to_one_without_its_dead_features() -> None:
    generator = np.random.default_rng(4)
    image = draw_dense(generator, 300, 8)
    order = generator.permutation(8)
    text = image[:, order] + 0.1 * draw_dense(generator, 300, 8)
    image[:, 2], dead = 0, int(np.flatnonzero(order == 2)[0])
    text[:, dead] = 0
    pairing = pair_rows(image, text)
    alive = np.delete(np.arange(8), 2), np.delete(np.arange(8), dead)
    marginals = find_marginals(sum_pairs(pairing))
    found = match_one_to_one(iterate_gram(pairing, *alive, memory=64.0 * 8 * 3), marginals, *alive)
    assert order[found.j].tolist() == found.i.tolist()
    assert 2 not in found.i
    assert found.rho.min() > 0.8


def test_a_split_feature_has_members_that_exclude_each_other_and_twins_fire_together() -> None:
    generator = np.random.default_rng(1)
    image = draw_dense(generator, 400, 2)
    side = generator.random(400) < 0.5
    text = np.column_stack([image[:, 0] * side, image[:, 0] * ~side, image[:, 1], image[:, 1] * 2])
    wide = np.column_stack([image, np.zeros((400, 2))])
    pairing = pair_rows(wide, text)
    (rows,) = iterate_gram(pairing, np.arange(2), np.arange(4))
    rho = correlate_rows(rows, find_marginals(sum_pairs(pairing)))
    i, j = np.nonzero(rho > 0)
    split, twins = group_partners(i, j, rho[i, j], 0.4, csr_array(text))
    assert split.text.tolist() == [0, 1]
    assert split.jaccard == 0
    assert twins.text.tolist() == [2, 3]
    assert twins.jaccard == 1
    assert np.isnan(group_partners(i[:1], j[:1], np.ones(1), 0.4, csr_array(text))[0].jaccard)


def test_coverage_weighs_features_by_mass_and_sharedness_starts_its_minimum_at_infinity() -> None:
    assert weighted_coverage(np.array([1.0, 0.5, np.nan]), np.array([1.0, 2.0, 1.0])) == pytest.approx(0.5)
    found = comparative_sharedness(np.array([2.0, 1.0]), np.array([[0.9, 0.1], [0.8, 0.9]]), np.array([[0.5, 0.3]]))
    np.testing.assert_allclose(found, [2 * (0.64 - 0.25), 0.01 - 0.09])
    with pytest.raises(AnalysisError, match="unlike"):
        comparative_sharedness(np.ones(1), np.ones((1, 1)), np.ones((0, 1)))


def test_a_rotation_is_undone_by_procrustes_and_cca_on_pairs_they_did_not_see() -> None:
    generator = np.random.default_rng(3)
    x = generator.normal(size=(400, 6))
    rotation = np.linalg.qr(generator.normal(size=(6, 6)))[0]
    y = x @ rotation + 0.05 * generator.normal(size=x.shape) + 3
    for maps in (fit_procrustes(x[:200], y[:200]), fit_cca(x[:200], y[:200], 6, 1e-3)):
        assert judge_maps(maps, x[200:], y[200:], [1]).recall[0] > 0.95
    assert judge_rows(x[200:], y[200:], [1]).recall[0] < 0.1
    unrelated = generator.normal(size=y.shape)
    assert judge_maps(fit_cca(x[:200], unrelated[:200], 6, 1e-3), x[200:], unrelated[200:], [1]).recall[0] < 0.1


def test_a_cold_sinkhorn_plan_is_the_permutation_and_a_hot_one_is_even() -> None:
    order = np.array([2, 0, 3, 1])
    rho = np.eye(4)[order] * 0.9
    np.testing.assert_allclose(fit_sinkhorn(rho, 0.02), np.eye(4)[order], atol=1e-6)
    np.testing.assert_allclose(fit_sinkhorn(rho, 1e4), 0.25, atol=1e-3)
    wide = fit_sinkhorn(np.random.default_rng(0).random((3, 6)), 0.1)
    np.testing.assert_allclose(wide.sum(1), 1, atol=1e-9)
    np.testing.assert_allclose(wide.sum(0), 0.5, atol=1e-6)


@laws
@given(seeds, st.integers(1, 6))
def test_examples_are_the_largest_rows_in_order(seed: int, k: int) -> None:
    dense = np.round(draw_dense(np.random.default_rng(seed), 50, 4, signed=True), 1)
    found = find_examples(csr_array(dense), k)
    for i in range(4):
        rows = [n for n in np.lexsort((np.arange(50), -abs(dense[:, i]))) if dense[n, i] != 0][:k]
        assert found.row[i].tolist() == rows + [-1] * (k - len(rows))
        assert found.value[i, : len(rows)].tolist() == dense[rows, i].tolist()


def test_examples_of_many_blocks_are_those_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = csr_array(np.round(draw_dense(np.random.default_rng(5), 100, 6), 1))
    whole = find_examples(codes, 4)
    monkeypatch.setattr("thresher.analyze.statistics.examples.ROWS", 7)
    for one, other in zip(whole, find_examples(codes, 4), strict=True):
        np.testing.assert_array_equal(one, other)


def test_saved_sums_come_back_to_the_bit_and_only_for_what_they_were_made_from(tmp_path) -> None:
    generator = np.random.default_rng(0)
    a, b = draw_dense(generator, 30, 4), draw_dense(generator, 30, 4)
    features, pairs = {"image": sum_features(csr_array(a)), "text": sum_features(csr_array(b))}, sum_pairs(pair_rows(a, b))
    origin = {"store": "abc", "sae": "def", "holdout": 0.1, "seed": 3}
    save_sums(tmp_path, features, pairs, origin)
    read, read_pairs = load_sums(tmp_path, origin)
    assert read_pairs is not None
    for name, sums in features.items():
        for one, other in zip(sums, read[name], strict=True):
            np.testing.assert_array_equal(one, other)
    for one, other in zip((*pairs[:8], *pairs.groups), (*read_pairs[:8], *read_pairs.groups), strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(AnalysisError, match="seed 3 instead of 4"):
        load_sums(tmp_path, origin | {"seed": 4})
    with pytest.raises(AnalysisError, match="deranged None instead of 1"):
        load_sums(tmp_path, origin | {"deranged": 1})


def test_damaged_or_missing_sums_are_refused_by_name(tmp_path) -> None:
    with pytest.raises(AnalysisError, match="cannot be read"):
        load_sums(tmp_path, {})
    save_sums(tmp_path, {"image": sum_features(csr_array(np.eye(2)))}, None, {})
    assert load_sums(tmp_path, {})[1] is None
    (tmp_path / "stats.safetensors").write_bytes(b"short")
    with pytest.raises(AnalysisError, match="cannot be read"):
        load_sums(tmp_path, {})


def test_a_wider_dictionary_that_holds_a_narrower_one_covers_it_and_an_unrelated_one_does_as_chance() -> None:
    generator = np.random.default_rng(6)
    narrow = draw_dense(generator, 500, 4, signed=True)
    wide = np.column_stack([draw_dense(generator, 500, 3), narrow[:, [2, 0, 3, 1]]])
    found = cover(csr_array(narrow), csr_array(wide), 0)
    assert found.best.tolist() == [4, 6, 3, 5]
    np.testing.assert_allclose(found.rho, 1, atol=1e-12)
    assert found.value == pytest.approx(1)
    assert found.by_chance < 0.3
    unrelated = cover(csr_array(draw_dense(generator, 500, 4)), csr_array(wide), 0)
    assert unrelated.value == pytest.approx(unrelated.by_chance, abs=0.1)
    with pytest.raises(AnalysisError, match="rows of the two"):
        cover(csr_array(narrow), csr_array(wide[:9]), 0)
