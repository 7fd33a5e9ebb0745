"""The laws of the probe: it reads what is linearly there, and nothing from noise."""

import numpy as np
import pytest

from thresher.analyze.evidence import read_presence
from thresher.analyze.metrics.resample import Resample
from thresher.analyze.panels import open_panels
from thresher.analyze.probe import combine, count_decodable, fit_probes, probe_concepts
from thresher.data.records import Concept
from thresher.data.store import open_store

CONCEPTS = (Concept("a", None, "shared"), Concept("b", None, "image"), Concept("c", None, "text"))


def test_a_linear_concept_is_read_and_noise_is_not() -> None:
    generator = np.random.default_rng(0)
    present = generator.random((800, 2)) < [0.1, 0.3]
    x = generator.normal(size=(800, 6)) * 0.1 + 3
    x[:, 2] += present[:, 0]
    found = fit_probes(x, present)
    assert found[0] > 0.95
    assert abs(found[1]) < 0.15


def test_a_concept_that_is_never_there_and_rows_that_are_all_equal_score_zero() -> None:
    present = np.zeros((20, 2), dtype=bool)
    present[::3, 1] = True
    np.testing.assert_array_equal(fit_probes(np.ones((20, 3)), present), 0)


def test_a_shared_concept_counts_as_its_weaker_side() -> None:
    values = np.array([[0.9, 0.8, 0.0], [0.2, 0.0, 0.7]])
    assert combine(values, CONCEPTS).tolist() == [0.2, 0.8, 0.7]
    scorable = np.array([True, True, False])
    assert count_decodable(values, CONCEPTS, scorable, 0.3) == {"shared": (0, 1), "image": (1, 1), "text": (0, 0)}


def test_concepts_whose_directions_are_in_the_activations_are_read_from_a_store(scenes_store) -> None:
    store = open_store(scenes_store)
    panels = open_panels(store, ["vision.embed", "text.embed"], 0.4, 0, None)
    presence = read_presence(store, panels, Resample(2, 0), 0)
    probed = probe_concepts(store, panels, presence, 50)
    index = [concept.name for concept in store.concepts].index("position/centre")
    assert combine(probed, store.concepts)[index] > 0.6
    assert probed[1][[concept.visibility == "image" for concept in store.concepts]] == pytest.approx(0)
