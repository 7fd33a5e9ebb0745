"""The laws of the cross-modal summary: what is shared is found, what is re-paired is not, and copies change nothing."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_array

from thresher.analyze.statistics.alignment import judge_alignments
from thresher.analyze.statistics.crossmodal import Items, label_regions, measure_crossmodal
from thresher.analyze.statistics.features import sum_features

N, SHARED, OWN, D_IN = 400, 6, 3, 10


def draw_items(captions: int = 1) -> Items:
    """Six shared features, three of images, three of texts; the first text of each image has the image's shared codes."""
    generator = np.random.default_rng(0)

    def draw(rows: int, width: int) -> np.ndarray:
        return generator.exponential(size=(rows, width)) * (generator.random((rows, width)) < 0.2)

    shared = draw(N, SHARED)
    image = np.column_stack([shared, draw(N, OWN), np.zeros((N, OWN))])
    text = np.column_stack([shared * generator.uniform(0.8, 1.2, shared.shape), np.zeros((N, OWN)), draw(N, OWN)])
    dictionary = generator.normal(size=(SHARED + 2 * OWN, D_IN))
    pairs = np.column_stack([np.repeat(np.arange(N), captions), np.arange(N * captions)])
    return Items(csr_array(image), csr_array(np.repeat(text, captions, axis=0)), pairs, np.arange(N), dictionary)


@pytest.fixture(scope="module")
def found() -> dict:
    return measure_crossmodal(draw_items(), 0)


def test_every_number_of_the_summary_can_be_written(found: dict) -> None:
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_shared_features_match_themselves_and_texts_of_other_records_match_nothing(found: dict) -> None:
    assert found["matching"]["n_close"] == found["matching"]["n_close_same_feature"] == SHARED
    assert found["matching"]["cosine_of_close"] == pytest.approx(1)
    assert found["groups"]["n"] == SHARED
    assert found["groups"]["n_many"] == 0
    assert found["deranged"]["matching"]["n_close"] == 0
    assert found["deranged"]["largest_rho"] < 0.4 < 0.9 < found["largest_rho"]
    for side in ("image_by_text", "text_by_image"):
        assert found["coverage"][side] > 3 * found["deranged"]["coverage"][side]


def test_the_bridge_lies_between_features_of_both_modalities(found: dict) -> None:
    bridge = found["bridge"]
    centred = np.array(bridge["regions"]["centred"])
    for one in centred:
        assert one.sum() == pytest.approx(bridge["margin"], rel=1e-9)
    assert centred[0][1, 1] > 0.9 * bridge["margin"]
    assert bridge["alignment_ratio"]["value"] > 1
    assert 0 < bridge["self_share"] < 1
    assert 1 <= bridge["participation"] <= 144


def test_all_regions_are_told_where_no_feature_is_of_images_alone() -> None:
    items = draw_items()
    images = items.image.toarray()
    images[:, SHARED:] = 0
    bridge = measure_crossmodal(items._replace(image=csr_array(images)), 0)["bridge"]
    centred = np.array(bridge["regions"]["centred"])
    assert centred.shape == (len(bridge["region_margins"]), 3, 3)
    assert not centred[:, 2].any()


def test_counts_of_the_summary_are_those_of_the_world(found: dict) -> None:
    assert found["overlap"]["n_both"] == SHARED
    assert found["overlap"]["self_jaccard"] == 1
    assert found["overlap"]["cofire_proportion_image"] == 1
    assert found["dominance"] == {"image": OWN, "cross": SHARED, "text": OWN, "dead": 0}
    assert found["overlap"]["cosine"] > 2 * found["overlap"]["cosine_unmatched"]
    assert 0.5 < found["discrimination"]["auc"] < 0.6


def test_three_copies_of_each_caption_change_no_share(found: dict) -> None:
    again = measure_crossmodal(draw_items(3), 0)
    assert again["matching"] == pytest.approx(found["matching"], rel=1e-9)
    assert again["groups"] == found["groups"]
    for name in ("margin", "matched", "self_share", "participation"):
        assert again["bridge"][name] == pytest.approx(found["bridge"][name], rel=1e-9)
    assert again["dominance"] == found["dominance"]


def test_regions_follow_the_modality_score() -> None:
    items = draw_items()
    labels = label_regions(sum_features(items.image), sum_features(items.text))
    for line in labels:
        assert line.tolist() == [1] * SHARED + [2] * OWN + [0] * OWN


def test_shared_codes_retrieve_their_text_and_too_few_images_are_not_judged() -> None:
    items = draw_items()
    found = judge_alignments(items, 0)
    assert found is not None
    assert (found["n_fitted"], found["n_judged"]) == (N // 2, N // 2)
    chance = 1 / found["n_judged"]
    assert found["codes"]["recall"][0] > 20 * chance
    assert found["cca"]["recall"][0] > 10 * chance
    assert found["procrustes"]["recall"][2] >= found["procrustes"]["recall"][0]
    few = items._replace(pairs=items.pairs[:30])
    assert judge_alignments(few, 0) is None


def test_an_analysis_states_the_summary_of_each_dictionary(scenes_report: Path) -> None:
    for name in ("topk", "mp"):
        groups = json.loads((scenes_report.parent / name / "groups.json").read_text())
        found, deranged = groups["crossmodal"], groups["crossmodal"]["deranged"]
        assert found["largest_rho"] > deranged["largest_rho"]
        assert found["matching"]["mean_rho"] > deranged["matching"]["mean_rho"]
        assert found["bridge"]["margin"] > 0
        assert groups["alignment"]["codes"]["recall"][2] > 5 * 10 / groups["alignment"]["n_judged"]
