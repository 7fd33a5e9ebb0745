"""The laws of functional tests, on a world whose features are known."""

import numpy as np
import pytest
from scipy.sparse import csr_array

from thresher.analyze.functional.auroc import weigh_auroc
from thresher.analyze.functional.behaviour import MEASURES, Rows, ablate_sets, flatten, make_score, measure_baselines
from thresher.analyze.functional.held import Half, Held
from thresher.analyze.functional.index import rank_own, search_by_codes
from thresher.analyze.functional.labels import Family, Labels
from thresher.analyze.functional.probes import fit_maps, prepare_probes, probe_sparsely, transfer_probes
from thresher.analyze.functional.sets import Sets, draw_of_count, draw_of_energy
from thresher.analyze.functional.steer import Steered, steer
from thresher.analyze.functional.targeted import find_absorbed, measure_targeted
from thresher.analyze.functional.tree import score_tree
from thresher.analyze.metrics.resample import Resample
from thresher.analyze.metrics.search import rank_documents

N, SHARED, OWN, WIDTH = 120, 16, 4, 48
ONLY = slice(SHARED, SHARED + OWN)
"""Features that fire on images only; as many after them on texts only."""


def make_world(seed: int = 0, *, shuffled: bool = False) -> tuple[Held, Labels]:
    """120 images with two captions each; 16 concepts on both sides, of which 8 are siblings that exclude each other.

    With `shuffled` a concept has another feature, and another atom, among the texts.
    """
    generator = np.random.default_rng(seed)
    n_features = SHARED + 2 * OWN
    atoms = np.linalg.qr(generator.normal(size=(WIDTH, WIDTH)))[0][:n_features]
    concepts = generator.random((N, SHARED)) < 0.25
    concepts[:, :8] = np.arange(8) == generator.integers(8, size=N)[:, None]
    owner = np.repeat(np.arange(N), 2)
    sides: dict[str, np.ndarray] = {}
    for name, rows, first in (("image", np.arange(N), SHARED), ("text", owner, SHARED + OWN)):
        present = np.zeros((len(rows), n_features))
        present[:, :SHARED] = concepts[rows]
        present[:, first : first + OWN] = generator.random((len(rows), OWN)) < 0.7
        sides[name] = present * generator.uniform(0.7, 1.3, present.shape)
    if shuffled:
        order = np.concatenate([np.roll(np.arange(SHARED), 3), np.arange(SHARED, n_features)])
        sides["text"] = sides["text"][:, order]
    weights = Resample(20, seed).weights(0, N)
    halves = {
        name: Half(
            x=offset + sides[name] @ atoms,
            codes=csr_array(sides[name]),
            atoms=atoms,
            offset=np.full(WIDTH, offset),
            items=np.arange(len(rows)),
            group=rows,
            weights=weights[:, rows],
        )
        for name, rows, offset in (("image", np.arange(N), 0.1), ("text", owner, -0.1))
    }
    family = Family(np.arange(8), concepts[:, :8].argmax(axis=1))
    names = tuple(f"c{index}" for index in range(SHARED))
    labels = Labels(names, np.full(SHARED, -1), concepts, concepts[owner], (family,), atoms[:SHARED], "vocabulary")
    return Held(halves["image"], halves["text"], seed), labels


@pytest.fixture(scope="module")
def world() -> tuple[Held, Labels]:
    return make_world()


def make_sets(held: Held) -> Sets:
    energy = np.square(held.image.codes.toarray()).mean(axis=0) + np.square(held.text.codes.toarray()).mean(axis=0)
    members = {name: np.zeros(len(energy), dtype=bool) for name in ("shared", "image")}
    members["shared"][:SHARED] = True
    members["image"][ONLY] = True
    return Sets(members, energy / energy.sum(), energy > 0)


def test_auroc_counts_pairs_of_items_as_often_as_they_were_drawn_and_ties_half() -> None:
    generator = np.random.default_rng(0)
    scores, present = generator.integers(5, size=30).astype(float), generator.random(30) < 0.4
    weights = np.concatenate([np.ones((1, 30)), generator.poisson(1, (3, 30))])
    for found, weight in zip(weigh_auroc(scores, present, weights), weights, strict=True):
        pairs = np.outer(weight * present, weight * ~present)
        wins = np.sign(scores[:, None] - scores[None, :]) / 2 + 0.5
        assert found == pytest.approx((pairs * wins).sum() / pairs.sum())
    assert np.isnan(weigh_auroc(scores, np.zeros(30, dtype=bool), weights)).all()


def test_retrieval_needs_the_shared_features_and_more_than_random_ones_of_the_same_energy(world: tuple[Held, Labels]) -> None:
    held, labels = world
    found = ablate_sets(held, labels, make_sets(held), make_score(held, labels, 100.0), 3)
    whole = measure_baselines(held, labels, make_score(held, labels, 100.0))["reconstructed"]
    without, only = found["shared"]["without"], found["shared"]["only"]
    for way in ("image_to_text_r1", "text_to_image_r1"):
        assert without[way].value < 0.1 < whole[way].value <= only[way].value
        assert found["shared"]["without_loss"][way].value == pytest.approx(whole[way].value - without[way].value)
        assert found["shared"]["without_excess"][way].low > 0
        assert found["image"]["without"][way].value >= whole[way].value
    assert without["zero_shot"].value < 0.4 < only["zero_shot"].value == 1
    assert found["shared"]["same_energy"]["energy"].value == pytest.approx(found["shared"]["energy"].value, rel=0.05)
    assert found["shared"]["same_number"]["without"]["gap"].unit == "draws"


def test_reconstructions_that_are_the_activations_behave_as_they_do(world: tuple[Held, Labels]) -> None:
    held, labels = world
    found = measure_baselines(held, labels, make_score(held, labels, 100.0))
    for name in MEASURES:
        assert found["raw"][name].value == pytest.approx(found["reconstructed"][name].value, abs=1e-9)
    assert found["raw"]["zero_shot_kl"].value == pytest.approx(0, abs=1e-9)
    assert found["raw"]["zero_shot_agreement"].value == 1
    assert found["raw"]["gap"].value > 0.3
    for shifted in ("raw_centred", "raw_shifted"):
        assert found[shifted]["gap"].value < 0.05
    for estimates in found.values():
        for one in estimates.values():
            assert one.low <= one.value <= one.high


def test_rows_that_collapse_to_a_point_retrieve_nothing(world: tuple[Held, Labels]) -> None:
    held, labels = world
    rows = Rows(np.ones_like(held.image.x), np.ones_like(held.text.x), None)
    assert make_score(held, labels, 100.0)(rows)[0, : MEASURES.index("gap")].tolist() == [0.0] * 6


def test_random_sets_have_the_energy_or_the_number_asked_for() -> None:
    generator = np.random.default_rng(0)
    energy = generator.exponential(size=400)
    alive = generator.random(400) < 0.8
    sets = Sets({}, energy * alive / (energy * alive).sum(), alive)
    members = alive & (generator.random(400) < 0.2)
    for _ in range(5):
        chosen = draw_of_energy(sets, members, generator)
        assert sets.energy[chosen].sum() == pytest.approx(sets.energy[members].sum(), rel=0.02)
        assert draw_of_count(sets, members, generator).sum() == members.sum()
        assert not (chosen & ~alive).any()


def test_a_probe_of_texts_reads_images_through_the_matching_where_features_differ() -> None:
    for shuffled in (False, True):
        held, labels = make_world(1, shuffled=shuffled)
        probed = prepare_probes(held, labels)
        found = {name: one.value for name, one in transfer_probes(probed, fit_maps(probed.fitted, probed.features)).items()}
        assert found["within_images"] > 0.99
        assert found["hungarian"] > 0.95
        assert found["bridge"] > 0.9
        assert found["shuffled"] < 0.75
        assert found["identity"] < 0.6 if shuffled else found["identity"] > 0.99


def test_one_feature_reads_a_label_that_it_stands_for(world: tuple[Held, Labels]) -> None:
    held, labels = world
    found = probe_sparsely(prepare_probes(held, labels))
    assert found["image_to_image_k1"].value == pytest.approx(1)
    assert found["text_to_image_k1"].value == pytest.approx(1)
    assert found["image_to_image_k1"].unit == "labels"


def test_taking_a_labels_features_away_removes_it_and_no_other(world: tuple[Held, Labels]) -> None:
    held, labels = world
    found = measure_targeted(prepare_probes(held, labels), labels)
    assert found["tpp_own"].value > 0.2
    assert found["tpp"].value > 0.1
    assert found["tpp"].value == pytest.approx(found["tpp_own"].value - found["tpp_others"].value)
    assert "absorption" not in found


def test_a_parent_is_absorbed_where_its_feature_is_silent_and_a_child_speaks_for_it() -> None:
    atoms, probe = np.eye(4), np.array([1.0, 0.8, 0.0, -1.0])
    codes = np.array([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0.7], [0, 0, 0, 0]])
    found = find_absorbed(codes, atoms, probe, np.array([0]))
    assert found.tolist() == [False, True, False, True, False]


def test_a_caption_finds_its_image_by_codes_through_bridges_where_features_differ() -> None:
    held, labels = make_world(2, shuffled=True)
    probed = prepare_probes(held, labels)
    found = search_by_codes(probed, fit_maps(probed.fitted, probed.features))
    assert found["dot_bridged"]["mrr"].value > 2 * found["dot"]["mrr"].value
    assert found["bm25_bridged"]["mrr"].value > 2 * found["bm25"]["mrr"].value
    same, labels = make_world(2)
    probed = prepare_probes(same, labels)
    assert search_by_codes(probed, fit_maps(probed.fitted, probed.features))["bm25"]["r1"].value > 0.3
    assert found["postings_read_queries_bridged"].value > found["postings_read_queries"].value
    assert found["negative"].value == 0


def test_ranks_are_those_of_ranked_lists_with_ties_against() -> None:
    generator = np.random.default_rng(0)
    scores, own = generator.integers(4, size=(20, 12)).astype(float), generator.integers(12, size=20)
    ranked = rank_documents(scores, own[:, None] == np.arange(12), [1, 5])
    ranks = rank_own(scores, own)
    assert [(ranks <= k).mean() for k in (1, 5)] == ranked.recall.tolist()
    assert (1 / ranks).mean() == pytest.approx(ranked.mrr)


def test_adding_a_feature_brings_its_captions_near_and_a_random_one_does_not(world: tuple[Held, Labels]) -> None:
    held, _ = world
    found = steer(held, [Steered(index, index) for index in range(8, 12)], np.arange(SHARED + 2 * OWN) < SHARED)
    mean = found["mean"]
    assert mean["added_after"].low > mean["added_before"].high
    assert mean["added_after"].value > mean["added_random"].value
    assert mean["ood_after"].value > mean["ood_before"].value
    assert set(found["features"]) == {"8", "9", "10", "11"}


def test_swapping_a_bridge_helps_where_the_partner_is_what_captions_have() -> None:
    held, _ = make_world(3, shuffled=True)
    partner = {int(feature): int(index) for index, feature in enumerate(np.roll(np.arange(SHARED), 3))}
    mean = steer(held, [Steered(index, partner[index]) for index in range(8)], np.ones(SHARED + 2 * OWN, dtype=bool))["mean"]
    assert mean["swapped_after"].value > mean["swapped_before"].value


def test_nested_firing_is_scored_against_the_tree() -> None:
    generator = np.random.default_rng(0)
    parent = generator.random(400) < 0.4
    child = parent & (generator.random(400) < 0.5)
    other = generator.random(400) < 0.3
    codes = csr_array(np.stack([parent, child, other], axis=1).astype(float))
    every = np.arange(400)
    half = Half(np.zeros((400, 1)), codes, np.zeros((3, 1)), np.zeros(1), every, every, Resample(20, 0).weights(0, 400))
    found = score_tree(half, np.array([0, 1, 2]), np.array([-1, 0, -1]))
    assert (found["precision"].value, found["recall"].value) == (1, 1)
    assert found["by_chance"].value == pytest.approx(1 / 6)
    wrong = score_tree(half, np.array([0, 1, 2]), np.array([-1, 2, -1]))
    assert (wrong["precision"].value, wrong["recall"].value) == (0, 0)


def test_every_number_of_a_nested_result_is_a_line() -> None:
    one = {"value": 1.0, "low": None, "high": None, "n": 3, "unit": "images"}
    assert flatten({"a": {"b": one, "c": {"d": one}}, "e": 3}) == [
        {"measure": "a.b"} | one,
        {"measure": "a.c.d"} | one,
    ]
