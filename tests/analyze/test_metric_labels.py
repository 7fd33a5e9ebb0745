"""Laws of the tests on labels and of naming; scikit-learn as the oracle."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score

from thresher.analyze.metrics.labels import compare_best, detect_labels, measure_plausibility, measure_purity
from thresher.analyze.metrics.naming import compare_names, name_features
from thresher.errors import AnalysisError

laws = settings(deadline=None, max_examples=6, derandomize=True)
seeds = st.integers(0, 2**32 - 1)


def draw(seed: int, rows: int = 40, features: int = 4) -> np.ndarray:
    generator = np.random.default_rng(seed)
    # Few distinct values, both signs: ties among firings and items on both sides of the zeros.
    z = np.round(generator.normal(size=(rows, features)) * 2) / 2
    return z * (generator.random((rows, features)) < 0.6)


@settings(laws, max_examples=3)
@given(seeds)
def test_detection_equals_scikit_learn_at_every_threshold(seed: int) -> None:
    z, y = draw(seed, features=2), np.random.default_rng(seed + 1).random((40, 2)) < 0.4
    y[:2] = [[True, False], [False, True]]
    found = detect_labels(csr_array(z), y)
    for feature, values in enumerate(z.T):
        cuts = np.concatenate([[-np.inf], np.unique(np.append(values, 0))])
        for label, truth in enumerate(y.T):
            called = [values > cut for cut in cuts]
            assert found.auroc[feature, label] == pytest.approx(roc_auc_score(truth, values), abs=1e-12)
            assert found.f1[feature, label] == pytest.approx(max(f1_score(truth, c, zero_division=0) for c in called))
            assert found.accuracy[feature, label] == pytest.approx(max((c == truth).mean() for c in called))
            assert found.balanced[feature, label] == pytest.approx(max(balanced_accuracy_score(truth, c) for c in called))


def test_a_dead_feature_detects_nothing_and_a_constant_label_has_no_score() -> None:
    found = detect_labels(csr_array(np.array([[0.0, 1], [0, 0], [0, 2]])), np.array([[1, 1], [0, 1], [1, 1]], dtype=bool))
    assert found.auroc[:, 0].tolist() == [0.5, 1]
    assert found.balanced[:, 0].tolist() == [0.5, 1]
    assert np.isnan(np.stack(found)[:, :, 1]).all()


@laws
@given(seeds, st.floats(0.01, 100))
def test_detection_does_not_depend_on_scale_or_on_copies_of_the_items(seed: int, scale: float) -> None:
    z, y = draw(seed), np.random.default_rng(seed + 1).random((40, 3)) < 0.4
    one = detect_labels(csr_array(z), y)
    other = detect_labels(csr_array(scale * np.repeat(z, 5, axis=0)), np.repeat(y, 5, axis=0))
    np.testing.assert_allclose(one, other, rtol=1e-12)


def test_purity_names_the_class_that_a_feature_fires_on() -> None:
    z = np.array([[1.0, 0, 1], [-1, 0, 0], [1, 0, 0], [0, 0, 1]])
    found = measure_purity(csr_array(z), np.array([[1, 0], [1, 0], [0, 1], [0, 1]], dtype=bool))
    np.testing.assert_allclose(found.share, [2 / 3, np.nan, 0.5])
    assert found.label.tolist() == [0, -1, 0]
    np.testing.assert_allclose(found.lift, [4 / 3, np.nan, 1])


def test_the_same_detector_on_both_sides_agrees_and_chance_is_that_of_all_permutations() -> None:
    image, text = np.eye(4), np.eye(4)[:, [0, 1, 3, 2]]
    found = compare_best(image, text)
    assert (found.share, found.chance) == (0.5, 0.25)
    everywhere = np.zeros((4, 4))
    everywhere[2] = 1
    assert compare_best(everywhere, everywhere).chance == 1
    with pytest.raises(AnalysisError, match="0 labels with a score"):
        compare_best(np.full((2, 2), np.nan), np.ones((2, 2)))


def test_plausibility_is_one_when_the_dictionary_holds_the_class_vectors() -> None:
    generator = np.random.default_rng(0)
    dictionary = generator.normal(size=(9, 5))
    np.testing.assert_allclose(measure_plausibility(dictionary, 3 * dictionary[[4, 2]]), 1)
    with pytest.raises(AnalysisError, match="5 and 4"):
        measure_plausibility(dictionary, np.ones((1, 4)))


def test_features_along_a_word_get_its_name_whatever_the_common_offset() -> None:
    generator = np.random.default_rng(0)
    words = generator.normal(size=(30, 24))
    words /= np.linalg.norm(words, axis=1, keepdims=True)
    directions = np.vstack([(words - words.mean(0))[[7, 3, 11]], np.zeros(24)])
    found = name_features(directions, words, 5)
    assert found.word[:, 0].tolist() == [7, 3, 11, -1]
    np.testing.assert_allclose(found.cosine[:3, 0], 1)
    assert (found.z[:3] > 3).all()
    assert (found.margin[:3] > 0.2).all()
    offset = generator.normal(size=24)
    moved = name_features(directions[:3] + offset, words, 5, direction_mean=offset)
    np.testing.assert_array_equal(moved.word, found.word[:3])


def test_names_are_the_words_of_a_full_sort() -> None:
    generator = np.random.default_rng(1)
    words, directions = generator.normal(size=(50, 6)), generator.normal(size=(1100, 6))
    unit = words / np.linalg.norm(words, axis=1, keepdims=True)
    centred = unit - unit.mean(axis=0)
    cosine = directions @ (centred / np.linalg.norm(centred, axis=1, keepdims=True)).T
    np.testing.assert_array_equal(name_features(directions, words, 4).word, np.argsort(-cosine, axis=1)[:, :4])


def test_equal_names_agree_and_missing_ones_have_no_agreement() -> None:
    words = np.random.default_rng(2).normal(size=(40, 16))
    found = compare_names(np.array([3, 3, -1]), np.array([3, 8, 2]), words)
    assert found[0] == pytest.approx(1)
    assert found[1] < 0.9
    assert np.isnan(found[2])


def test_a_vocabulary_of_another_width_or_of_two_words_is_refused() -> None:
    with pytest.raises(AnalysisError, match="8 and 6"):
        name_features(np.ones((2, 8)), np.ones((9, 6)), 5)
    with pytest.raises(AnalysisError, match="2 words, expected at least 3"):
        name_features(np.ones((2, 8)), np.ones((2, 8)), 1)
