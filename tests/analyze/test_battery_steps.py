"""Laws of what is said about the steps of a pursuit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thresher.analyze.battery.classes import SHARED
from thresher.analyze.battery.steps import Residuals, StepSums, separate, tabulate_steps

N_FEATURES, N_STEPS = 6, 3


def make_sums(seed: int, features: slice) -> StepSums:
    """Rows of one modality that use only some features, with energies of any size."""
    generator = np.random.default_rng(seed)
    total, energy = np.zeros((2, N_STEPS, N_FEATURES))
    shape = (N_STEPS, len(range(*features.indices(N_FEATURES))))
    total[:, features], energy[:, features] = generator.exponential(size=(2, *shape))
    counts = np.full(N_STEPS, 5)
    return StepSums(10, total, energy, np.zeros(N_STEPS, dtype=np.int64), counts)


def describe(image: StepSums, text: StepSums) -> dict[str, np.ndarray]:
    places = np.arange(N_STEPS + 1.0)
    residuals = Residuals(np.stack([10 - places, 20 - places]), 5 - places, 1 - places / 10, places / 10, 10)
    table = tabulate_steps(image, text, residuals, np.full(N_FEATURES, SHARED), np.eye(N_FEATURES))
    return {name: np.array(values) for name, values in table.items()}


@given(st.integers(0, 1000), st.floats(0.1, 10))
@settings(max_examples=10, deadline=None)
def test_modalities_that_use_the_same_features_alike_overlap_in_full_whatever_their_strength(seed: int, scale: float) -> None:
    sums = make_sums(seed, slice(None))
    assert describe(sums, sums._replace(energy=scale * sums.energy))["overlap"] == pytest.approx(1)


@given(st.integers(0, 1000), st.integers(1, N_FEATURES - 1))
@settings(max_examples=10, deadline=None)
def test_modalities_without_a_common_feature_do_not_overlap(seed: int, n: int) -> None:
    table = describe(make_sums(seed, slice(0, n)), make_sums(seed + 1, slice(n, None)))
    assert table["overlap"] == pytest.approx(0)
    assert sum(table["gap"][::2]) == pytest.approx(1)


def test_a_row_has_the_residual_after_its_own_step_beside_the_input() -> None:
    table = describe(make_sums(0, slice(None)), make_sums(1, slice(None)))
    assert table["input_norm"].tolist() == [10, 20] * N_STEPS
    assert table["residual_norm"].tolist() == [9, 19, 8, 18, 7, 17]
    assert table["residual_gap"].tolist() == [4, 4, 3, 3, 2, 2]
    assert set(table["input_cosine"]) == {0}


def test_a_probe_tells_apart_what_differs_and_nothing_else() -> None:
    image, text = np.random.default_rng(0).normal(size=(2, 400, 8))
    assert abs(separate(image, text) - 0.5) < 0.06
    assert separate(image + 3, text) > 0.99
    assert np.isnan(separate(image[:3], text[:3]))
