"""Laws of the angle to the modality gap."""

import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from thresher.analyze.metrics.angle import find_modality_subspace, fit_erasure, measure_angle, share_in_subspace
from thresher.errors import AnalysisError


def draw(seed: int = 0, rows: int = 300, d_in: int = 7) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    mix = generator.normal(size=(d_in, d_in))
    image, text = generator.normal(size=(2, rows, d_in)) @ mix
    return image + generator.normal(size=d_in), text


def test_an_atom_along_the_gap_has_angle_one_and_sign_and_length_do_not_matter() -> None:
    gap = np.array([3.0, 4, 0])
    found = measure_angle(np.array([[-0.6, -0.8, 0], [0, 0, 2], [30, 40, 0], [0, 0, 0]]), gap)
    np.testing.assert_allclose(found, [1, 0, 1, np.nan], atol=1e-12)
    with pytest.raises(AnalysisError, match="2 and 3"):
        measure_angle(np.ones((1, 2)), gap)


def test_after_the_erasure_the_means_are_equal_and_it_reads_what_fisher_reads() -> None:
    image, text = draw()
    found = fit_erasure(image, text)
    both = np.concatenate([image, text])
    read = (both - both.mean(axis=0)) @ found.read / (found.read @ found.write)
    erased = both - np.outer(read, found.write)
    np.testing.assert_allclose(erased[:300].mean(axis=0), erased[300:].mean(axis=0), atol=1e-10)
    label = np.repeat([1, 0], 300)
    fisher = LinearDiscriminantAnalysis(solver="lsqr").fit(both, label).coef_[0]
    assert abs(found.read @ fisher) / np.linalg.norm(fisher) == pytest.approx(1, abs=1e-6)


def test_the_subspace_is_orthonormal_and_without_it_no_difference_of_the_means_remains_in_full_rank() -> None:
    image, text = draw(1)
    basis = find_modality_subspace(image, text, 6)
    np.testing.assert_allclose(basis @ basis.T, np.eye(len(basis)), atol=1e-10)
    share = share_in_subspace((image.mean(0) - text.mean(0))[None], basis)
    one = share_in_subspace((image.mean(0) - text.mean(0))[None], basis[:1])
    assert 0 < one[0] <= share[0] <= 1 + 1e-12


def test_shares_of_a_subspace_are_one_inside_and_zero_outside() -> None:
    basis = np.eye(4)[:2]
    found = share_in_subspace(np.array([[1.0, 5, 0, 0], [0, 0, 1, 2], [1, 0, 1, 0]]), basis)
    np.testing.assert_allclose(found, [1, 0, 0.5])


def test_modalities_with_equal_means_and_single_rows_are_refused() -> None:
    with pytest.raises(AnalysisError, match="0 differences"):
        fit_erasure(np.eye(3), np.eye(3))
    with pytest.raises(AnalysisError, match="1 text rows"):
        fit_erasure(np.eye(3), np.ones((1, 3)))
    with pytest.raises(AnalysisError, match="3 dimensions, expected at least 4"):
        find_modality_subspace(np.eye(3), 2 * np.eye(3), 3)
