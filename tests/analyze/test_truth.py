"""The laws of scoring against ground truth: oracles score 1, chance scores what chance should."""

import numpy as np
import pytest
from scipy.sparse import csr_array

from thresher.analyze.families import describe_families
from thresher.analyze.metrics import modality
from thresher.analyze.metrics.activity import sum_activity
from thresher.analyze.metrics.resample import Resample
from thresher.analyze.truth import (
    CLASSES,
    Evidence,
    Rule,
    TruthScore,
    close_upward,
    count_classes,
    one_per_record,
    order_by_depth,
    score_truth,
)
from thresher.data.records import Concept
from thresher.data.sources.scenes.settings import Scenes
from thresher.data.sources.scenes.source import ScenesSource

RULE = Rule(min_score=0.3, alpha=0.05, min_items=20)
N = 900
REPLICATES = 40

TREE = (
    Concept("shape", None, "shared"),
    Concept("shape/square", "shape", "shared"),
    Concept("shape/circle", "shape", "shared"),
    Concept("texture", None, "image"),
    Concept("mood", None, "text"),
)


@pytest.fixture(scope="module")
def scenes() -> tuple[np.ndarray, np.ndarray, tuple[Concept, ...]]:
    """Presence of the concepts of the scenes world in pictures and in captions."""
    source = ScenesSource(Scenes(n_records=N, image_size=16))
    records = list(source.records())
    image = close_upward([record.image_concepts for record in records], source.concepts)
    text = close_upward([record.texts[0].concepts for record in records], source.concepts)
    return image, text, source.concepts


def draw_presence(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Items of TREE: two exclusive children of one parent, shown and stated; a texture shown; a mood stated."""
    generator = np.random.default_rng(seed)
    which, texture, mood = generator.integers(0, 4, N), generator.random(N) < 0.3, generator.random(N) < 0.3
    shape = np.stack([which < 2, which == 0, which == 1], axis=1)
    none = np.zeros((N, 1), dtype=bool)
    return np.concatenate([shape, texture[:, None], none], 1), np.concatenate([shape, none, mood[:, None]], 1)


def score(
    fired: tuple[np.ndarray, np.ndarray], present: tuple[np.ndarray, np.ndarray], concepts: tuple[Concept, ...], seed: int = 0
) -> tuple[TruthScore, np.ndarray]:
    resample = Resample(REPLICATES, seed)
    weights = resample.weights(0, len(present[0]))
    codes = [csr_array(one.astype(np.float64)) for one in fired]
    sums = [sum_activity(one, np.arange(len(weights[0])), weights) for one in codes]
    scores = modality.score_modality(sums[0], sums[1], resample.pseudo_counts(fired[0].shape[1]))
    classes = modality.classify(scores.energy, scores.energy_interval, 0.1, 0.9)
    evidence = [Evidence(one, there, weights) for one, there in zip(codes, present, strict=True)]
    return score_truth(evidence[0], evidence[1], concepts, classes, RULE, shuffles=(1, 2, 3)), classes


def test_oracle_codes_of_the_scenes_world_have_precision_and_recall_one(scenes) -> None:
    image, text, concepts = scenes
    found, classes = score((image, text), (image, text), concepts)
    for name in CLASSES:
        assert found.classes[name].precision.value == 1, name
        assert found.classes[name].recall.value == 1, name
        assert found.classes[name].recall.n >= 10
        assert found.classes[name].precision.low == 1
    assert found.same_concept.value == 1
    alive = classes != modality.DEAD
    assert [int(i) for i in found.matches.concept[alive & (found.matches.concept >= 0)]] == [
        int(i) for i in np.flatnonzero(alive & (found.matches.concept >= 0))
    ]


def test_codes_shuffled_against_the_items_match_nothing(scenes) -> None:
    image, text, concepts = scenes
    order = np.random.default_rng(5).permutation(N)
    found, _ = score((image[order], text[order]), (image, text), concepts)
    assert found.n_matched == 0
    assert found.n_matched_shuffled == 0
    assert found.classes["shared"].precision.value is None
    assert found.classes["shared"].recall.value == 0


def test_without_a_least_score_the_false_discovery_rate_bounds_the_chance_matches(scenes) -> None:
    image, text, concepts = scenes
    matched = []
    for seed in range(10):
        generator = np.random.default_rng(seed)
        codes = [csr_array((generator.random((N, 60)) < 0.2).astype(float)) for _ in range(2)]
        weights = np.ones((1, N))
        evidence = [Evidence(one, there, weights) for one, there in zip(codes, (image, text), strict=True)]
        rule = Rule(min_score=0.01, alpha=0.05, min_items=20)
        classes = np.full(60, modality.SHARED)
        matched.append(score_truth(evidence[0], evidence[1], concepts, classes, rule, ()).n_matched)
    assert np.mean(matched) < 1


def test_a_dictionary_split_by_modality_recovers_no_shared_concept() -> None:
    image, text = draw_presence()
    nothing = np.zeros_like(image)
    split = (np.concatenate([image, nothing], 1), np.concatenate([nothing, text], 1))
    found, classes = score(split, (image, text), TREE)
    assert set(classes[:5]) <= {"image", "dead"}
    assert found.classes["shared"].recall.value == 0
    assert found.classes["image"].recall.value == 1
    assert found.classes["image"].precision.value == pytest.approx(1 / 4)
    assert found.classes["text"].precision.value == pytest.approx(1 / 4)
    assert found.classes["image"].precision_by_chance == pytest.approx(1 / 4)


def test_a_feature_that_tracks_one_concept_on_images_and_another_on_texts_is_not_consistent() -> None:
    image, text = draw_presence()
    codes = (image[:, [1, 1]], text[:, [2, 1]])
    found, classes = score(codes, (image, text), TREE)
    assert classes.tolist() == ["shared", "shared"]
    assert found.same_concept.value == 0.5
    # The feature of squares also tracks their parent; circles are tracked by none on both.
    assert found.classes["shared"].recall.value == pytest.approx(2 / 3)


def test_a_feature_is_named_after_the_child_when_child_and_parent_are_the_same_items() -> None:
    concepts = (Concept("a", None, "shared"), Concept("a/b", "a", "shared"))
    present = np.repeat(np.random.default_rng(0).random((N, 1)) < 0.3, 2, axis=1)
    found, _ = score((present[:, :1], present[:, :1]), (present, present), concepts)
    assert found.matches.concept.tolist() == [1]
    assert order_by_depth(concepts).tolist() == [1, 0]


def test_stating_a_child_states_its_parents() -> None:
    assert close_upward([(1,), (), (0, 4)], TREE).tolist() == [
        [True, True, False, False, False],
        [False, False, False, False, False],
        [True, False, False, False, True],
    ]


def test_one_item_per_record_is_kept_and_every_record_keeps_one() -> None:
    record = np.array([0, 0, 0, 2, 2, 5])
    kept = one_per_record(record, 3)
    assert record[kept].tolist() == [0, 2, 5]
    assert {tuple(one_per_record(record, seed)) for seed in range(20)} != {tuple(kept)}


def test_concepts_with_too_few_items_are_scored_nowhere() -> None:
    image, text = draw_presence()
    rare = np.zeros((N, 1), dtype=bool)
    rare[:5] = True
    concepts = (*TREE, Concept("rare", None, "image"))
    image, text = np.concatenate([image, rare], 1), np.concatenate([text, np.zeros_like(rare)], 1)
    found, _ = score((image, text), (image, text), concepts)
    assert found.classes["image"].recall.n == 1
    assert not found.tracking.detects[:, :, 5].any()


def test_a_family_feature_with_a_hole_is_told_from_a_whole_one() -> None:
    image, text = draw_presence()
    holed = image[:, 0] & ~image[:, 2]
    holed[np.flatnonzero(image[:, 2])[::4]] = True
    codes = np.stack([holed, image[:, 1]], 1)
    found, _ = score((codes, codes), (image, text), TREE)
    evidence = [Evidence(csr_array(codes.astype(float)), there, np.ones((1, N))) for there in (image, text)]
    (family,) = describe_families(evidence[0], evidence[1], TREE, found.tracking, found.matches)
    assert (family.parent, family.n_children, family.children_with_feature) == ("shape", 2, 1)
    assert family.least_child == "shape/circle"
    assert family.least_recall == pytest.approx(0.25, abs=0.02)
    assert family.best_feature == 0


def test_class_counts_add_up() -> None:
    counts = count_classes(np.array(["shared", "dead", "image", "image"]))
    assert counts == {"shared": 1, "image": 2, "text": 0, "undecided": 0, "dead": 1}
