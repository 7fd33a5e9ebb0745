"""Laws of the geometry of spaces: gaps, cones, spectra, and similarities between two sets of vectors."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from scipy.stats import ortho_group
from sklearn.cross_decomposition import CCA

from thresher.analyze.metrics.fidelity import rank_partners
from thresher.analyze.metrics.similarity import (
    compare_neighbours,
    measure_cka,
    measure_cka_unbiased,
    measure_cknna,
    measure_svcca,
    sum_cross,
)
from thresher.analyze.metrics.space import count_effective, measure_cone, measure_space_gap, measure_spectrum, sweep_shift
from thresher.errors import AnalysisError

laws = settings(deadline=None, max_examples=8, derandomize=True)
seeds = st.integers(0, 2**32 - 1)


def draw(seed: int, rows: int = 40, width: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, width)) + 1


def test_two_opposite_cones_have_a_gap_of_two_and_are_separable() -> None:
    image = np.array([1.0, 0, 0, 0]) + 1e-3 * draw(0, 30, 4)
    found = measure_space_gap(image, -image)
    assert found.norm == pytest.approx(2, abs=1e-2)
    assert found.separability == 1
    assert found.relative > 100


def test_equal_clouds_have_no_gap_and_cannot_be_separated() -> None:
    cloud = np.random.default_rng(0).normal(size=(400, 5))
    found = measure_space_gap(np.vstack([cloud, -cloud]), np.vstack([-cloud, cloud]))
    assert found.norm == pytest.approx(0, abs=1e-12)
    assert found.separability == pytest.approx(0.5, abs=0.07)
    same = np.repeat(np.ones((1, 3)), 6, axis=0)
    assert np.isnan(measure_space_gap(same, same).relative)
    assert measure_space_gap(same, same).separability == 0.5


@laws
@given(seeds, st.floats(0.01, 100))
def test_swapping_modalities_and_scaling_rows_leave_the_gap_alone(seed: int, scale: float) -> None:
    image, text = draw(seed), draw(seed + 1, rows=30) - 2
    np.testing.assert_allclose(measure_space_gap(image, text), measure_space_gap(scale * text, image), rtol=1e-9)


def test_shifting_along_the_gap_closes_it_and_no_shift_is_the_space_as_it_is() -> None:
    generator = np.random.default_rng(0)
    shared = generator.normal(size=(60, 12))
    image, text = shared + 2 * np.eye(12)[0], shared - 2 * np.eye(12)[0] + 0.1 * generator.normal(size=(60, 12))
    norm = measure_space_gap(image, text).norm
    found = sweep_shift(image, text, [0.0, norm / 2, norm])
    assert found.norm[0] == pytest.approx(norm)
    assert found.norm[2] < 0.1 * norm
    assert (np.diff(found.paired) > 0).all()
    cosine = (image / np.linalg.norm(image, axis=1)[:, None]) @ (text / np.linalg.norm(text, axis=1)[:, None]).T
    assert found.paired[0] == pytest.approx(np.diag(cosine).mean())
    assert found.unpaired[0] == pytest.approx(cosine[~np.eye(60, dtype=bool)].mean())


def test_the_mean_cosine_is_that_of_all_pairs() -> None:
    x = draw(3)
    cosine = (x / np.linalg.norm(x, axis=1)[:, None]) @ (x / np.linalg.norm(x, axis=1)[:, None]).T
    assert measure_cone(x) == pytest.approx(cosine[~np.eye(40, dtype=bool)].mean())
    assert measure_cone(np.ones((3, 2))) == pytest.approx(1)


@laws
@given(seeds)
def test_iso_score_equals_its_published_form(seed: int) -> None:
    """arXiv 2108.07344, algorithm 1, on the eigenvalues of the covariance (the diagonal after PCA)."""
    x, n = draw(seed) * np.array([3, 1, 1, 0.5, 2, 1]), 6
    found = measure_spectrum(x)
    diagonal = np.linalg.eigvalsh(np.cov(x.T))
    normalized = np.sqrt(n) * diagonal / np.linalg.norm(diagonal)
    defect = np.linalg.norm(normalized - 1) / np.sqrt(2 * (n - np.sqrt(n)))
    published = ((n - defect**2 * (n - np.sqrt(n))) ** 2 - n) / (n * (n - 1))
    assert found.iso_score == pytest.approx(published, rel=1e-9)
    np.testing.assert_allclose(found.eigenvalues, diagonal[::-1], rtol=1e-9)


def test_effective_rank_counts_equal_directions() -> None:
    assert count_effective(np.array([2.0, 2, 2, 0])) == pytest.approx(3)
    assert np.isnan(count_effective(np.zeros(3)))
    x = np.vstack([np.eye(4)[:3], -np.eye(4)[:3]])
    assert measure_spectrum(x).effective_rank == pytest.approx(3)
    assert measure_spectrum(x).iso_score == pytest.approx(2 / 3)
    assert np.isnan(measure_spectrum(np.ones((5, 3))).effective_rank)


@laws
@given(seeds)
def test_cka_of_features_equals_cka_of_kernels_however_stored(seed: int) -> None:
    x, y = draw(seed) * (draw(seed + 1) > 1), draw(seed + 2, width=4) + draw(seed)[:, :4]
    centring = np.eye(40) - 1 / 40
    k, kernel = centring @ x @ x.T @ centring, centring @ y @ y.T @ centring
    expected = (k * kernel).sum() / np.linalg.norm(k) / np.linalg.norm(kernel)
    assert measure_cka(sum_cross(x, y)) == pytest.approx(expected, rel=1e-10)
    assert measure_cka(sum_cross(csr_array(x), y)) == pytest.approx(expected, rel=1e-10)


@laws
@given(seeds, st.floats(0.01, 100))
def test_similarities_ignore_rotation_and_scale_and_are_one_for_equal_sets(seed: int, scale: float) -> None:
    x, y = draw(seed), draw(seed + 1)
    turn = ortho_group.rvs(6, random_state=seed % 1000)
    for measure in (
        lambda a, b: measure_cka(sum_cross(a, b)),
        measure_cka_unbiased,
        lambda a, b: measure_cknna(a, b, 5),
        lambda a, b: compare_neighbours(a, b, 5).overlap,
    ):
        assert measure(x, y) == pytest.approx(measure(scale * x @ turn, y), rel=1e-7, abs=1e-9)
        assert measure(x, scale * x @ turn) == pytest.approx(1)


@laws
@given(seeds, st.integers(2, 10))
def test_cknna_is_the_ratio_of_unbiased_hsic_between_masked_kernels(seed: int, k: int) -> None:
    """Song et al. 2012, eq. 5, written with matrices; masks as in the authors' code."""
    x, y, one = draw(seed, 20), draw(seed, 20) + draw(seed + 1, 20), np.ones(20)

    def hsic(a: np.ndarray, b: np.ndarray) -> float:
        sums = one @ a @ one * (one @ b @ one) / (19 * 18)
        return float(np.trace(a @ b) + sums - 2 / 18 * (one @ a @ b @ one))

    kernels, masks = [], []
    for side in (x, y):
        unit = side / np.linalg.norm(side, axis=1)[:, None]
        kernels.append(unit @ unit.T - np.eye(20))
        nearest = np.argsort(-(kernels[-1] - 9 * np.eye(20)), axis=1)[:, :k]
        masks.append((np.arange(20) == nearest[:, :, None]).any(axis=1))
    both = masks[0] & masks[1]
    alone = [hsic(mask * kernel, mask * kernel) for mask, kernel in zip(masks, kernels, strict=True)]
    if min(alone) > 0:
        expected = hsic(both * kernels[0], both * kernels[1]) / np.sqrt(alone[0] * alone[1])
        assert measure_cknna(x, y, k) == pytest.approx(expected, rel=1e-9)


def test_a_real_clip_aligns_pairs_across_its_gap_and_a_random_one_does_not() -> None:
    if "THRESHER_DATA" not in os.environ:
        pytest.skip("THRESHER_DATA is not set: no embeddings of a real CLIP")
    folder = Path(os.environ["THRESHER_DATA"]) / "clip-embeddings"
    for name, is_trained in (("coco500_vitb16.npy", True), ("coco500_vitb16_random_init.npy", False)):
        image, text = np.load(folder / name).astype(np.float64)
        own = np.arange(len(image))
        assert measure_space_gap(image, text).separability > 0.99
        assert measure_space_gap(image, text).norm == pytest.approx(0.85 if is_trained else 1.14, abs=0.01)
        assert ((rank_partners(image, text, own, own) == 1).mean() > 0.5) == is_trained
        assert (measure_cknna(image, text, 10) > 0.2) == is_trained
        assert (compare_neighbours(image, text, 10).overlap > 0.2) == is_trained


def test_unrelated_sets_have_no_unbiased_similarity_and_share_neighbours_by_chance() -> None:
    generator = np.random.default_rng(0)
    sets = generator.normal(size=(2, 40, 60, 30))
    assert np.mean([measure_cka_unbiased(x, y) for x, y in zip(*sets, strict=True)]) == pytest.approx(0, abs=0.02)
    assert measure_cka(sum_cross(sets[0, 0], sets[1, 0])) > 0.2
    found = [compare_neighbours(x, y, 6) for x, y in zip(*sets, strict=True)]
    assert np.mean([one.overlap for one in found]) == pytest.approx(found[0].chance, abs=0.01)


def test_svcca_is_the_cca_of_the_leading_directions() -> None:
    x = draw(0, 60, 5)
    y = x @ draw(1, 5, 5) + draw(2, 60, 5)
    u, v = ((z - z.mean(0)) / z.std(0) for z in (x, y))
    left, right = (np.linalg.svd(z, full_matrices=False) for z in (u, v))
    scores = CCA(n_components=2, max_iter=5000, tol=1e-12).fit_transform(left[0][:, :2], right[0][:, :2])
    expected = np.mean([np.corrcoef(scores[0][:, i], scores[1][:, i])[0, 1] for i in range(2)])
    assert measure_svcca(x, y, 2) == pytest.approx(expected, abs=1e-6)
    assert measure_svcca(x, x, 3) == pytest.approx(1)


def test_too_few_items_are_refused() -> None:
    x = draw(0, 3)
    with pytest.raises(AnalysisError, match="3 items, expected at least 4"):
        measure_cknna(x, x, 2)
    with pytest.raises(AnalysisError, match="3 items, expected at least 11"):
        compare_neighbours(x, x, 10)
    with pytest.raises(AnalysisError, match="3 image rows"):
        measure_space_gap(x, draw(1))
    with pytest.raises(AnalysisError, match="0 gaps"):
        sweep_shift(x, x, [0.0])
    with pytest.raises(AnalysisError, match="1 directions that vary"):
        measure_svcca(np.outer(np.arange(9.0), np.ones(3)), draw(0, 9), 2)
