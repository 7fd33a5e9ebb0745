"""Laws of the geometry of dictionaries and of the structure of codes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from thresher.analyze.metrics.code_structure import (
    measure_active_babel,
    measure_code_rank,
    measure_connectivity,
    measure_negative_interference,
)
from thresher.analyze.metrics.dictionary import (
    compare_encoder,
    measure_babel,
    measure_coherence,
    measure_distance,
    measure_overlap,
    measure_ranks,
)
from thresher.errors import AnalysisError

laws = settings(deadline=None, max_examples=8, derandomize=True)
seeds = st.integers(0, 2**32 - 1)


def draw_unit(seed: int, atoms: int = 20, width: int = 6) -> np.ndarray:
    dictionary = np.random.default_rng(seed).normal(size=(atoms, width))
    return dictionary / np.linalg.norm(dictionary, axis=1, keepdims=True)


def draw_codes(seed: int, rows: int = 30, features: int = 9) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.normal(size=(rows, features)) * (generator.random((rows, features)) < 0.4)


def test_orthogonal_atoms_have_no_coherence_and_a_copy_has_all() -> None:
    found = measure_coherence(np.eye(4), 20)
    assert (found.largest, found.histogram[10], found.histogram.sum()) == (0, 12, 12)
    copied = measure_coherence(np.vstack([np.eye(4), -2 * np.eye(4)[:1]]), 20)
    assert copied.largest == 1
    assert copied.nearest.tolist() == [1, 0, 0, 0, 1]
    assert (copied.neighbour[0], copied.neighbour[4], copied.histogram[0]) == (4, 0, 2)


def test_coherence_and_babel_do_not_depend_on_the_blocks() -> None:
    dictionary = draw_unit(0, 1100, 5)
    cosine = np.abs(dictionary @ dictionary.T) - 2 * np.eye(1100)
    found = measure_coherence(dictionary, 10)
    assert found.largest == pytest.approx(cosine.max())
    np.testing.assert_allclose(found.nearest, cosine.max(axis=1))
    assert found.histogram.sum() == 1100 * 1099
    sums = np.cumsum(np.sort(cosine, axis=1)[:, :-51:-1], axis=1)
    np.testing.assert_allclose(measure_babel(dictionary, [1, 3, 50]), sums.max(axis=0)[[0, 2, 49]])


@laws
@given(seeds, st.floats(0.01, 100))
def test_geometry_ignores_rotation_length_and_order_of_atoms(seed: int, scale: float) -> None:
    dictionary = draw_unit(seed)
    turn = np.linalg.qr(np.random.default_rng(seed).normal(size=(6, 6)))[0]
    other = scale * np.random.default_rng(seed).permutation(dictionary @ turn)
    assert measure_coherence(other, 5).largest == pytest.approx(measure_coherence(dictionary, 5).largest)
    np.testing.assert_allclose(measure_babel(other, [1, 4]), measure_babel(dictionary, [1, 4]))
    np.testing.assert_allclose(measure_ranks(other), measure_ranks(dictionary))
    assert measure_overlap(other) == pytest.approx(measure_overlap(dictionary))


def test_babel_of_one_is_the_coherence_and_never_more_than_its_size() -> None:
    dictionary = draw_unit(1)
    found = measure_babel(dictionary, [1, 2, 19])
    assert found[0] == pytest.approx(measure_coherence(dictionary, 5).largest)
    assert (found <= [1, 2, 19]).all()
    assert (np.diff(found) > 0).all()
    with pytest.raises(AnalysisError, match="20 atoms, expected at least 21"):
        measure_babel(dictionary, [20])


def test_an_orthonormal_dictionary_has_full_rank_and_copies_of_one_atom_rank_one() -> None:
    np.testing.assert_allclose(measure_ranks(np.eye(5)), 5)
    np.testing.assert_allclose(measure_ranks(np.ones((7, 5))), 1)
    assert np.isnan(measure_ranks(np.zeros((2, 3)))).all()


def test_the_mean_squared_cosine_is_that_of_all_pairs() -> None:
    dictionary = draw_unit(2)
    cosine = dictionary @ dictionary.T
    assert measure_overlap(3 * dictionary) == pytest.approx(np.square(cosine[~np.eye(20, dtype=bool)]).mean())


def test_atoms_that_are_data_points_are_at_distance_zero() -> None:
    dictionary = draw_unit(3, 4)
    x = np.vstack([5 * dictionary[:2], np.random.default_rng(0).normal(size=(1200, 6))])
    expected = 1 - (dictionary @ (x / np.linalg.norm(x, axis=1)[:, None]).T).max(axis=1)
    np.testing.assert_allclose(measure_distance(dictionary, x), expected, atol=1e-12)
    np.testing.assert_allclose(measure_distance(dictionary, x)[:2], 0, atol=1e-12)
    with pytest.raises(AnalysisError, match="6 and 5"):
        measure_distance(dictionary, np.ones((2, 5)))


def test_tied_weights_have_encoder_cosine_one() -> None:
    dictionary = draw_unit(4, 3)
    np.testing.assert_allclose(compare_encoder(np.diag([2.0, -1, 0]) @ dictionary, dictionary), [1, -1, np.nan])


@laws
@given(seeds)
def test_the_babel_of_selected_atoms_is_that_of_the_small_dictionary(seed: int) -> None:
    generator, dictionary = np.random.default_rng(seed), draw_unit(seed)
    indices, values = generator.integers(0, 20, (12, 5)), generator.normal(size=(12, 5)) * (generator.random((12, 5)) < 0.7)
    found = measure_active_babel(indices, values, dictionary)
    for row in range(12):
        active = np.unique(indices[row, values[row] != 0])
        expected = measure_babel(dictionary[active], [len(active) - 1])[0] if len(active) > 1 else 0
        assert found[row] == pytest.approx(expected, abs=1e-12)


@laws
@given(seeds)
def test_the_rank_of_the_codes_is_the_same_from_products_and_from_the_svd(seed: int) -> None:
    for rows in (30, 5):
        z = draw_codes(seed, rows)
        eigenvalues = np.square(np.linalg.svd(z, compute_uv=False))
        p = eigenvalues[eigenvalues > 1e-12] / eigenvalues.sum()
        assert measure_code_rank(csr_array(z)) == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-8)
    assert np.isnan(measure_code_rank(csr_array((3, 4))))


def test_connectivity_counts_pairs_that_never_meet() -> None:
    assert measure_connectivity(csr_array(np.eye(4))) == pytest.approx(1 - 4 / 16)
    assert measure_connectivity(csr_array(np.ones((1, 4)))) == 0
    assert measure_connectivity(csr_array(np.array([[1.0, 1], [1, -1]]))) == 0


@laws
@given(seeds, st.floats(0.1, 10))
def test_negative_interference_is_the_spectral_norm_and_ignores_how_codes_and_atoms_share_the_scale(
    seed: int, c: float
) -> None:
    z, dictionary = draw_codes(seed), draw_unit(seed, 9)
    expected = np.linalg.norm(np.maximum(-(z.T @ z / 30) * (dictionary @ dictionary.T), 0), 2)
    assert measure_negative_interference(csr_array(z), dictionary) == pytest.approx(expected, rel=1e-9)
    assert measure_negative_interference(csr_array(c * z), dictionary / c) == pytest.approx(expected, rel=1e-9)


def test_negative_interference_of_many_features_agrees_with_the_dense_norm() -> None:
    z, dictionary = draw_codes(0, 200, 150), draw_unit(1, 150)
    expected = np.linalg.norm(np.maximum(-(z.T @ z / 200) * (dictionary @ dictionary.T), 0), 2)
    assert measure_negative_interference(csr_array(z), dictionary) == pytest.approx(expected, rel=1e-9)
    assert measure_negative_interference(csr_array(np.eye(4)), np.eye(4)) == 0
