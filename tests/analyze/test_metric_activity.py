"""Laws of sparsity and energy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from scipy.stats import entropy

from thresher.analyze.metrics.activity import find_dead, sum_activity
from thresher.analyze.metrics.energy import cumulate_energy, effective_sample_size, measure_energies
from thresher.analyze.metrics.sparsity import measure_density, measure_features, measure_rows
from thresher.errors import AnalysisError

laws = settings(deadline=None, max_examples=10, derandomize=True)
seeds = st.integers(0, 2**32 - 1)


def draw(seed: int, rows: int = 30, features: int = 8) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.normal(size=(rows, features)) * (generator.random((rows, features)) < 0.3)


def test_one_active_atom_is_perfectly_sparse_and_equal_atoms_are_not_sparse_at_all() -> None:
    found = measure_rows(csr_array(np.array([[0, -3.0, 0, 0], [2.0, 2, 2, 2], [0, 0, 0, 0]])))
    np.testing.assert_allclose(found.hoyer, [1, 0, np.nan], atol=1e-12)
    np.testing.assert_allclose(found.kurtosis, [1, 0.25, np.nan])
    assert found.l0.tolist() == [1, 4, 0]
    assert found.l1.tolist() == [3, 8, 0]


@laws
@given(seeds, st.floats(0.01, 100))
def test_hoyer_and_kurtosis_do_not_depend_on_scale_or_order(seed: int, scale: float) -> None:
    z = draw(seed)
    one = measure_rows(csr_array(z))
    other = measure_rows(csr_array(scale * z[:, np.random.default_rng(seed).permutation(z.shape[1])]))
    np.testing.assert_allclose(one.hoyer, other.hoyer, rtol=1e-9)
    np.testing.assert_allclose(one.kurtosis, other.kurtosis, rtol=1e-9)


@laws
@given(seeds)
def test_entropy_and_gini_are_those_of_the_dense_column(seed: int) -> None:
    z = draw(seed)
    found, n = measure_features(csr_array(z)), len(z)
    for column, size in enumerate(np.abs(z).T):
        if not size.any():
            assert np.isnan([found.entropy[column], found.gini[column]]).all()
            continue
        assert found.entropy[column] == pytest.approx(entropy(size) / np.log(n), rel=1e-9, abs=1e-12)
        pairs = np.abs(size[:, None] - size[None, :]).sum()
        assert found.gini[column] == pytest.approx(pairs / (2 * n * size.sum()), rel=1e-9)


def test_single_rows_and_single_atoms_are_refused() -> None:
    with pytest.raises(AnalysisError, match="1 rows, expected at least 2"):
        measure_features(csr_array(np.ones((1, 3))))
    with pytest.raises(AnalysisError, match="1 atoms, expected at least 2"):
        measure_rows(csr_array(np.ones((3, 1))))


def test_densities_count_features_by_their_rate() -> None:
    found = measure_density(np.array([0.0, 5, 50, 500]), np.array([0.0, 5, 25, 100]), 1000.0)
    assert (found.above_1_percent, found.above_10_percent) == (0.5, 0.25)
    np.testing.assert_array_equal(found.rows_per_record, [np.nan, 1, 2, 5])


def test_energies_follow_their_definitions_and_refuse_means_of_signed_codes() -> None:
    z, dictionary = np.array([[1.0, -1], [3, 2]]), np.array([[3.0, 4], [0, 1]])
    norm = np.linalg.norm(dictionary, axis=1)
    found = measure_energies(2.0, z.sum(0), (z**2).sum(0), (z < 0).sum(0).astype(float), norm)
    np.testing.assert_allclose(found.mean, [10, np.nan])
    np.testing.assert_allclose(found.square, [5 * 25, 2.5])
    np.testing.assert_allclose(found.length, np.linalg.norm(z.mean(0)[:, None] * dictionary, axis=1))
    np.testing.assert_allclose(found.square_length, found.length**2)


@laws
@given(seeds, st.floats(0.01, 100))
def test_scaling_a_feature_against_its_atom_changes_no_energy(seed: int, c: float) -> None:
    z, norm = np.abs(draw(seed)), np.random.default_rng(seed).uniform(0.5, 2, 8)
    none = np.zeros(8)
    one = measure_energies(30.0, z.sum(0), (z**2).sum(0), none, norm)
    other = measure_energies(30.0, (c * z).sum(0), ((c * z) ** 2).sum(0), none, norm / c)
    np.testing.assert_allclose(one, other, rtol=1e-9)


def test_equal_firings_are_worth_their_number_and_one_giant_is_worth_one() -> None:
    z = np.array([[2.0, 1e6, 0], [2, 1, 0], [2, 1, 0]])
    found = effective_sample_size((z**2).sum(0), (z**4).sum(0))
    np.testing.assert_allclose(found, [3, 1, np.nan], rtol=1e-6)


def test_the_cumulative_energy_ends_at_one_and_does_not_depend_on_the_order() -> None:
    np.testing.assert_allclose(cumulate_energy(np.array([1.0, 5, 4])), [0.5, 0.9, 1])
    assert np.isnan(cumulate_energy(np.zeros(3))).all()


def test_features_dead_on_one_modality_are_one_sided() -> None:
    record, ones = np.arange(2), np.ones((1, 2))
    image = sum_activity(csr_array(np.array([[1.0, 0, 0], [1, 0, 2]])), record, ones)
    text = sum_activity(csr_array(np.array([[0.0, 0, 1], [0, 0, 0]])), record, ones)
    dead = find_dead(image, text)
    assert dead.one_sided.tolist() == [True, False, False]
    assert dead.both.tolist() == [False, True, False]
