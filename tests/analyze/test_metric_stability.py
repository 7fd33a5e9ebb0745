"""Laws of stability across runs and of universality across spaces."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from thresher.analyze.metrics.stability import (
    correlate_matched,
    draw_null,
    match_dictionaries,
    match_signed_dictionaries,
    measure_mmcs,
    trace_stability,
)
from thresher.analyze.metrics.universality import count_matches, cross_reconstruct, scale_latents
from thresher.errors import AnalysisError

laws = settings(deadline=None, max_examples=10, derandomize=True)
seeds = st.integers(0, 2**32 - 1)


@laws
@given(seeds)
def test_a_permuted_copy_is_perfectly_stable_and_the_matching_finds_the_permutation(seed: int) -> None:
    generator = np.random.default_rng(seed)
    dictionary, order = generator.normal(size=(15, 6)), generator.permutation(15)
    found = match_dictionaries(dictionary, 3 * dictionary[order])
    assert found.stability == pytest.approx(1)
    assert order[found.partner].tolist() == list(range(15))
    assert measure_mmcs(dictionary, dictionary[order]) == pytest.approx(1)


def test_flipped_atoms_are_the_same_only_for_signed_codes() -> None:
    dictionary = np.eye(5)
    assert match_signed_dictionaries(dictionary, -dictionary).stability == 1
    assert match_dictionaries(dictionary, -dictionary).stability <= 0


def test_a_smaller_second_dictionary_leaves_atoms_without_partner() -> None:
    found = match_dictionaries(np.eye(4), np.eye(4)[2:3])
    assert found.partner.tolist() == [-1, -1, 0, -1]
    assert found.stability == 1
    with pytest.raises(AnalysisError, match="4 and 3"):
        match_dictionaries(np.eye(4), np.eye(3))


def test_random_dictionaries_are_as_stable_as_the_null_says() -> None:
    generator = np.random.default_rng(1)
    null = draw_null(200, 32, 6, seed=0)
    one = match_dictionaries(*generator.normal(size=(2, 200, 32))).stability
    assert abs(one - null.mean) < 6 * null.spread
    assert 0.2 < null.mean < draw_null(200, 32, 1, seed=0, signed=True).mean
    assert draw_null(400, 32, 1, seed=0).mean > null.mean
    assert draw_null(50, 8, 2, seed=3) == draw_null(50, 8, 2, seed=3)
    assert draw_null(50, 8, 2, seed=3, n_other=400).mean > draw_null(50, 8, 2, seed=3).mean


def test_the_curve_reads_the_first_runs_strongest_atoms_off_one_matching() -> None:
    first, second = np.eye(4), np.eye(4)[[1, 0, 3, 2]].copy()
    second[2] = second[3] = [0, 0, 1, 1]
    matched = match_dictionaries(first, second)
    curve = trace_stability(matched, np.array([1.0, 9, 3, 2]), [1, 2, 4])
    half = np.sqrt(0.5)
    np.testing.assert_allclose(curve, [1, (1 + half) / 2, (2 + 2 * half) / 4])


@laws
@given(seeds)
def test_functional_stability_is_the_correlation_of_matched_columns(seed: int) -> None:
    generator = np.random.default_rng(seed)
    a, b = generator.normal(size=(2, 30, 5)) * (generator.random((2, 30, 5)) < 0.6)
    a[:, 4] = 0
    matched = match_dictionaries(*generator.normal(size=(2, 5, 3)))
    found = correlate_matched(csr_array(a), csr_array(b), matched)
    expected = [np.corrcoef(a[:, i], b[:, matched.partner[i]])[0, 1] for i in range(4)]
    np.testing.assert_allclose(found, [*expected, np.nan], rtol=1e-9)
    with pytest.raises(AnalysisError, match="30 and 29"):
        correlate_matched(csr_array(a), csr_array(b[:29]), matched)


def test_shared_codes_reconstruct_both_spaces_and_unrelated_ones_do_not() -> None:
    generator = np.random.default_rng(0)
    z, other = np.abs(generator.normal(size=(2, 60, 6)))
    first, second = generator.normal(size=(6, 4)), generator.normal(size=(6, 5))
    targets = [z @ first + 1, z @ second]
    found = cross_reconstruct([csr_array(z), csr_array(other)], [first, second], [np.ones(4), np.zeros(5)], targets)
    np.testing.assert_allclose(found[0], 1)
    assert (found[1] < 0.5).all()


def test_overlap_with_the_same_dictionary_is_whole_and_with_random_atoms_is_not() -> None:
    dictionary = np.random.default_rng(0).normal(size=(30, 40))
    share, chance = count_matches(dictionary, dictionary[::-1], 0)
    assert (share, chance) == (1, pytest.approx(0.1, abs=0.35))
    assert chance < 0.5


def test_latent_scaling_is_the_least_squares_factor_per_feature() -> None:
    generator = np.random.default_rng(0)
    z, dictionary, y = np.abs(generator.normal(size=(20, 3))), generator.normal(size=(3, 4)), generator.normal(size=(20, 4))
    z[:, 2] = 0
    found = scale_latents(csr_array(z), dictionary, y)
    for i in range(2):
        part = np.outer(z[:, i], dictionary[i]).ravel()
        assert found[i] == pytest.approx(np.linalg.lstsq(part[:, None], y.ravel(), rcond=None)[0][0])
    assert np.isnan(found[2])
