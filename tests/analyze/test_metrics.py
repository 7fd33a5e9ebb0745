"""The laws of the measures: golden identities, invariances, and nulls that stay null."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from scipy.stats import beta

from thresher.analyze.metrics import modality
from thresher.analyze.metrics.activity import add_activity, count_fires, find_dead, sum_activity
from thresher.analyze.metrics.association import (
    Contingency,
    chance_of,
    control_false_discoveries,
    count_together,
    f1,
    phi,
)
from thresher.analyze.metrics.codes import count_active, to_matrix
from thresher.analyze.metrics.estimate import estimate
from thresher.analyze.metrics.gap import decompose_gap
from thresher.analyze.metrics.grouping import max_rows
from thresher.analyze.metrics.reconstruction import add_reconstruction, measure_reconstruction, sum_reconstruction
from thresher.analyze.metrics.resample import BLOCK, Resample
from thresher.train.codes import Codes

laws = settings(deadline=None, max_examples=15, derandomize=True)
seeds = st.integers(0, 2**32 - 1)


def draw_codes(generator: np.random.Generator, n_rows: int, n_features: int, density: float = 0.3) -> csr_array:
    dense = generator.exponential(size=(n_rows, n_features)) * (generator.random((n_rows, n_features)) < density)
    return csr_array(dense)


def measure_activity(codes: csr_array, record: np.ndarray, n_replicates: int = 0, seed: int = 0):
    return sum_activity(codes, record, Resample(n_replicates, seed).weights(0, int(record.max()) + 1))


def measure_scores(image, text, n_replicates: int = 0, seed: int = 0):
    return modality.score_modality(image, text, Resample(n_replicates, seed).pseudo_counts(len(image.total)))


def reconstruct(x: np.ndarray, x_hat: np.ndarray, record: np.ndarray | None = None, n_replicates: int = 0):
    record = np.arange(len(x)) if record is None else record
    weights = Resample(n_replicates, 0).weights(0, int(record.max()) + 1)
    return sum_reconstruction(torch.from_numpy(x), torch.from_numpy(x_hat), np.full(len(x), 3), record, weights)


def test_an_atom_picked_twice_counts_once_and_has_the_sum_of_its_coefficients() -> None:
    codes = Codes(torch.tensor([[4, 4, 1], [2, 0, 0]]), torch.tensor([[1.0, 0.5, -2.0], [3.0, 0.0, 0.0]]))
    matrix = to_matrix(codes, 5)
    assert matrix.toarray().tolist() == [[0, -2, 0, 0, 1.5], [0, 0, 3, 0, 0]]
    assert count_active(matrix).tolist() == [2, 1]


def test_making_a_matrix_leaves_the_codes_in_their_order_of_selection() -> None:
    indices, values = torch.tensor([[4, 0, 4], [2, 1, 0]]), torch.tensor([[1.0, 0.5, -2.0], [3.0, 0.0, 1.0]])
    for dtype in (torch.float32, torch.float64):
        codes = Codes(indices.clone(), values.to(dtype))
        to_matrix(codes, 5)
        assert torch.equal(codes.indices, indices)
        assert torch.equal(codes.values, values.to(dtype))


def test_picks_that_cancel_are_not_active() -> None:
    matrix = to_matrix(Codes(torch.tensor([[1, 1]]), torch.tensor([[2.0, -2.0]])), 3)
    assert count_active(matrix).tolist() == [0]


@laws
@given(seeds)
def test_r2_equals_its_two_pass_definition(seed: int) -> None:
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(37, 5)) + generator.normal(size=5) * 30
    x_hat = x + generator.normal(size=x.shape) * 0.5
    measured = measure_reconstruction(reconstruct(x, x_hat))
    expected = 1 - np.square(x - x_hat).sum() / np.square(x - x.mean(0)).sum()
    assert measured.r2[0] == pytest.approx(expected, rel=1e-10)
    assert measured.fvu[0] == pytest.approx(1 - expected, rel=1e-9)
    lengths = np.linalg.norm(x, axis=1) * np.linalg.norm(x_hat, axis=1)
    assert measured.cosine[0] == pytest.approx(((x * x_hat).sum(1) / lengths).mean(), rel=1e-12)
    assert measured.nmse[0] == pytest.approx((np.square(x - x_hat).sum(1) / np.square(x).sum(1)).mean(), rel=1e-12)
    assert measured.l0[0] == 3


def test_predicting_the_mean_of_a_cone_scores_zero_and_its_cosine_is_the_baseline() -> None:
    x = np.random.default_rng(0).normal(size=(500, 8)) + 10
    measured = measure_reconstruction(reconstruct(x, np.tile(x.mean(0), (500, 1))))
    assert measured.r2[0] == pytest.approx(0, abs=1e-9)
    assert measured.cosine[0] == pytest.approx(measured.cosine_of_mean[0], rel=1e-12)
    assert measured.cosine[0] > 0.9


def test_rows_without_variance_have_no_r2() -> None:
    measured = measure_reconstruction(reconstruct(np.ones((4, 3)), np.ones((4, 3))))
    assert np.isnan(measured.r2[0])
    assert measured.cosine[0] == pytest.approx(1)


@laws
@given(seeds, st.integers(1, 6))
def test_reconstruction_does_not_depend_on_the_chunks(seed: int, n_chunks: int) -> None:
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(41, 4)) + 5
    x_hat = x + generator.normal(size=x.shape)
    whole = measure_reconstruction(reconstruct(x, x_hat))
    parts = [reconstruct(a, b) for a, b in zip(np.array_split(x, n_chunks), np.array_split(x_hat, n_chunks), strict=True)]
    total = parts[0]
    for part in parts[1:]:
        total = add_reconstruction(total, part)
    for one, other in zip(whole, measure_reconstruction(total), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10)


@laws
@given(st.integers(0, 3 * BLOCK), st.integers(1, 200))
def test_weights_of_a_record_do_not_depend_on_the_chunk_that_asks(start: int, length: int) -> None:
    whole = Resample(3, 7).weights(0, start + length)
    np.testing.assert_array_equal(Resample(3, 7).weights(start, start + length), whole[:, start:])
    some = np.random.default_rng(length).integers(0, start + length, 5)
    np.testing.assert_array_equal(Resample(3, 7).weights_of(some), whole[:, some])


def test_the_bootstrap_interval_of_a_mean_has_the_width_of_the_central_limit_theorem() -> None:
    x = np.random.default_rng(1).normal(size=(2000, 1))
    weights = Resample(400, 0).weights(0, 2000)
    found = estimate((weights @ x)[:, 0] / weights.sum(1), 2000, "records")
    assert found.low is not None
    assert found.high is not None
    assert found.high - found.low == pytest.approx(2 * 1.96 / np.sqrt(2000), rel=0.15)


@laws
@given(seeds)
def test_five_copies_of_each_caption_leave_every_score_and_interval_unchanged(seed: int) -> None:
    generator = np.random.default_rng(seed)
    image, text = draw_codes(generator, 30, 9), draw_codes(generator, 30, 9)
    record = np.arange(30)
    fivefold, five_records = csr_array(np.repeat(text.toarray(), 5, axis=0)), np.repeat(record, 5)
    once = measure_scores(measure_activity(image, record, 20), measure_activity(text, record, 20), 20)
    five = measure_scores(measure_activity(image, record, 20), measure_activity(fivefold, five_records, 20), 20)
    for one, other in zip(once, five, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)


@laws
@given(seeds)
def test_swapping_the_modalities_mirrors_the_scores(seed: int) -> None:
    generator = np.random.default_rng(seed)
    a = measure_activity(draw_codes(generator, 25, 6), np.arange(25))
    b = measure_activity(draw_codes(generator, 60, 6), np.repeat(np.arange(20), 3))
    forth, back = measure_scores(a, b), measure_scores(b, a)
    for name in ("energy", "firing", "mean"):
        np.testing.assert_allclose(getattr(forth, name), 1 - getattr(back, name), rtol=1e-12)


@laws
@given(seeds, st.floats(0.01, 100))
def test_scaling_a_feature_leaves_its_scores_unchanged(seed: int, scale: float) -> None:
    generator = np.random.default_rng(seed)
    image, text = draw_codes(generator, 20, 4), draw_codes(generator, 20, 4)
    record = np.arange(20)
    before = measure_scores(measure_activity(image, record, 10), measure_activity(text, record, 10), 10)
    after = measure_scores(measure_activity(image * scale, record, 10), measure_activity(text * scale, record, 10), 10)
    for one, other in zip(before, after, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9)


def test_the_mean_score_is_undefined_for_signed_codes_and_the_energy_score_is_not() -> None:
    record = np.arange(2)
    signed = measure_activity(csr_array(np.array([[1.0, -1.0], [1.0, 0.0]])), record)
    scores = measure_scores(signed, signed)
    assert np.isnan(scores.mean).all()
    np.testing.assert_allclose(scores.energy, 0.5)


@laws
@given(seeds, st.integers(1, 5))
def test_activity_does_not_depend_on_the_chunks(seed: int, n_chunks: int) -> None:
    codes = draw_codes(np.random.default_rng(seed), 40, 5)
    resample = Resample(8, seed % 1000)
    whole = sum_activity(codes, np.arange(40), resample.weights(0, 40))
    total = None
    for part in np.array_split(np.arange(40), n_chunks):
        start, stop = int(part[0]), int(part[-1]) + 1
        sums = sum_activity(codes[start:stop], np.arange(stop - start), resample.weights(start, stop))
        total = sums if total is None else add_activity(total, sums)
    assert total is not None
    for one, other in zip(whole, total, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)


def fire_in(first: int, times: int, rows: int) -> csr_array:
    """One feature that fires in `times` of `rows` rows from row `first` on."""
    return csr_array(((np.arange(rows) >= first) & (np.arange(rows) < first + times)).astype(float)[:, None])


@pytest.mark.parametrize(("n_image", "n_text"), [(40, 0), (12, 30), (200, 180), (0, 60)])
def test_the_interval_of_the_firing_score_is_the_beta_posterior_when_rows_are_independent(n_image: int, n_text: int) -> None:
    record = np.arange(5000)
    image = measure_activity(fire_in(0, n_image, 5000), record, 1500)
    text = measure_activity(fire_in(1000, n_text, 5000), record, 1500)
    found = measure_scores(image, text, 1500).firing_interval
    expected = beta.ppf([0.025, 0.975], n_image + 0.5, n_text + 0.5)
    assert found.low[0] == pytest.approx(expected[0], abs=0.02)
    assert found.high[0] == pytest.approx(expected[1], abs=0.02)


def test_a_feature_that_fired_three_times_on_images_is_undecided_and_one_that_fired_forty_times_is_not() -> None:
    codes = np.zeros((1000, 2))
    codes[:3, 0], codes[:40, 1] = 1.0, 1.0
    record = np.arange(1000)
    image, text = measure_activity(csr_array(codes), record, 300), measure_activity(csr_array((1000, 2)), record, 300)
    scores = measure_scores(image, text, 300)
    np.testing.assert_array_equal(scores.energy, 1.0)
    assert modality.classify(scores.energy, scores.energy_interval, 0.1, 0.9).tolist() == ["undecided", "image"]


def test_classes_follow_the_interval() -> None:
    low, high = np.array([0.91, 0.0, 0.2, 0.85, np.nan]), np.array([1.0, 0.05, 0.8, 0.95, np.nan])
    score = np.array([0.95, 0.01, 0.5, 0.9, np.nan])
    found = modality.classify(score, modality.Interval(low, high), 0.1, 0.9)
    assert found.tolist() == ["image", "text", "shared", "undecided", "dead"]


def test_the_share_of_a_class_is_bounded_by_what_its_features_allow() -> None:
    score = np.array([0.95, 0.95, 0.5, np.nan])
    interval = modality.Interval(np.array([0.91, 0.7, 0.4, np.nan]), np.array([1.0, 1.0, 0.6, np.nan]))
    share = modality.share_of_class(score, interval, (0.9, 1.0))
    assert (share.value, share.low, share.high, share.n) == (
        pytest.approx(2 / 3),
        pytest.approx(1 / 3),
        pytest.approx(2 / 3),
        3,
    )


def test_a_histogram_sums_to_one_and_weighs_by_energy() -> None:
    score, energy = np.array([0.05, 0.95, np.nan]), np.array([3.0, 1.0, 5.0])
    found = modality.histogram(score, energy, np.ones(3, dtype=bool), 10)
    assert (found.share[0], found.share[-1], found.n) == (0.75, 0.25, 2)
    assert modality.histogram(score, energy, np.zeros(3, dtype=bool), 10).share.sum() == 0


def test_energy_shares_and_spread_follow_their_definition() -> None:
    found = modality.share_energy(np.array([1.0, 0.0, 0.5]), np.array([1.0, 1.0, 2.0]), 0.1, 0.9)
    assert (found.image, found.text, found.shared) == (0.25, 0.25, 0.5)
    assert found.spread == pytest.approx(np.sqrt(0.125))


def test_dead_counts_look_at_firing_not_at_sums() -> None:
    record = np.arange(2)
    image = measure_activity(csr_array(np.array([[1.0, 0, 0], [-1.0, 0, 0]])), record)
    text = measure_activity(csr_array(np.array([[0, 1.0, 0], [0, 0, 0.0]])), record)
    dead = find_dead(image, text)
    assert dead.image.tolist() == [False, True, True]
    assert dead.text.tolist() == [True, False, True]
    assert dead.both.tolist() == [False, False, True]
    assert count_fires(image).tolist() == [2, 0, 0]


@laws
@given(seeds)
def test_shares_of_the_gap_add_up_to_the_gap(seed: int) -> None:
    generator = np.random.default_rng(seed)
    image, text, dictionary = generator.normal(size=7), generator.normal(size=7), generator.normal(size=(7, 3))
    gap = decompose_gap(image, text, dictionary)
    assert gap.norm == pytest.approx(np.linalg.norm(image @ dictionary - text @ dictionary), rel=1e-12)
    assert gap.share.sum() == pytest.approx(1, rel=1e-9)


def test_the_gap_counts_the_fewest_features_that_carry_it() -> None:
    gap = decompose_gap(np.array([6.0, 3.0, 1.0]), np.zeros(3), np.array([[1.0], [1.0], [1.0]]))
    assert [gap.features_for(part) for part in (0.6, 0.9, 0.95)] == [1, 2, 3]
    assert decompose_gap(np.ones(2), np.ones(2), np.ones((2, 2))).features_for(0.9) == 0


@laws
@given(seeds)
def test_phi_is_the_correlation_of_two_binary_variables(seed: int) -> None:
    generator = np.random.default_rng(seed)
    fired, present = generator.random((50, 3)) < 0.4, generator.random((50, 2)) < 0.3
    counts = count_together(csr_array(fired.astype(float)), present, np.ones((1, 50)))
    expected = np.corrcoef(np.concatenate([fired, present], axis=1).astype(float).T)[:3, 3:]
    np.testing.assert_allclose(phi(counts)[0], expected, rtol=1e-10)


@laws
@given(seeds)
def test_weighting_items_equals_repeating_them(seed: int) -> None:
    generator = np.random.default_rng(seed)
    fired, present = generator.random((20, 3)) < 0.5, generator.random((20, 2)) < 0.5
    times = generator.integers(0, 4, 20)
    weighted = count_together(csr_array(fired.astype(float)), present, np.stack([np.ones(20), times.astype(float)]))
    repeated = count_together(
        csr_array(np.repeat(fired, times, axis=0).astype(float)), np.repeat(present, times, axis=0), np.ones((1, times.sum()))
    )
    np.testing.assert_allclose(phi(weighted)[1], phi(repeated)[0], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(f1(weighted)[1], f1(repeated)[0], rtol=1e-12)


def test_a_perfect_detector_has_f1_and_phi_one_and_a_constant_feature_has_phi_zero() -> None:
    present = np.array([[True], [False], [True], [False]])
    fired = csr_array(np.concatenate([present, np.ones((4, 1), dtype=bool)], axis=1).astype(float))
    counts = count_together(fired, present, np.ones((1, 4)))
    assert phi(counts)[0, :, 0].tolist() == [1, 0]
    assert f1(counts)[0, :, 0].tolist() == [1, pytest.approx(2 / 3)]


def test_f1_of_nothing_is_zero() -> None:
    zeros = Contingency(np.zeros((1, 1, 1)), np.zeros((1, 1)), np.zeros((1, 1)), np.ones(1))
    assert f1(zeros)[0, 0, 0] == 0


def test_the_chance_of_an_overlap_is_what_shuffling_items_gives() -> None:
    generator = np.random.default_rng(3)
    fired, present = np.arange(30) < 8, np.arange(30) < 10
    overlaps = np.array([(generator.permutation(fired) & present).sum() for _ in range(20_000)])
    found = chance_of(np.array([4.0]), np.array([8.0]), np.array([10.0]), 30.0)[0]
    assert found == pytest.approx((overlaps >= 4).mean(), abs=0.01)


def test_q_values_are_those_of_benjamini_and_hochberg() -> None:
    q = control_false_discoveries(np.array([0.01, 0.04, 0.03, 0.5]))
    np.testing.assert_allclose(q, [0.04, 0.04 * 4 / 3, 0.04 * 4 / 3, 0.5])


@laws
@given(seeds)
def test_the_maximum_over_rows_is_taken_of_absolute_values_per_group(seed: int) -> None:
    generator = np.random.default_rng(seed)
    dense = generator.normal(size=(12, 4)) * (generator.random((12, 4)) < 0.5)
    group = np.sort(generator.integers(0, 5, 12))
    expected = np.stack([np.abs(dense[group == g]).max(axis=0, initial=0) for g in range(5)])
    np.testing.assert_array_equal(max_rows(csr_array(dense), group, 5).toarray(), expected)
