"""The laws of the battery: oracle codes get the classes that were planted, and what must change nothing changes nothing."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array, vstack

from thresher.analyze.battery.calibrate import calibrate, score_classes
from thresher.analyze.battery.classes import (
    BIAS,
    BRIDGED,
    CLASSES,
    COLLINEAR,
    DEAD,
    FAIL,
    HETEROGENEOUS,
    NOT_TESTED,
    OK,
    PASS,
    POLYSEMANTIC,
    RARE,
    SHARED,
    SPECIFIC,
    UNDECIDED,
    Gates,
    classify,
    count,
    count_with_and_without,
)
from thresher.analyze.battery.expect import expect_classes, score_expected
from thresher.analyze.battery.finite import control_histogram
from thresher.analyze.battery.headline import divide_by_class, expect_false, find_bridges, summarize
from thresher.analyze.battery.judge import Judged, Settings, interval, judge
from thresher.analyze.battery.meaning import make_embeddings
from thresher.analyze.battery.pairing import measure_self, total
from thresher.analyze.battery.sides import Side, Sides, make_sides, pair, reverse
from thresher.analyze.battery.tabulate import tabulate_features
from thresher.analyze.battery.toy import Toy, World, draw_toy
from thresher.analyze.config import Battery, Thresholds
from thresher.analyze.metrics.activity import sum_activity
from thresher.analyze.metrics.resample import Resample
from thresher.analyze.statistics.pairing import derange
from thresher.analyze.truth import Evidence, Rule, close_upward, track
from thresher.data.sources.scenes.settings import Scenes
from thresher.data.sources.scenes.source import ScenesSource
from thresher.errors import AnalysisError, ConfigError

RESAMPLE = Resample(40, 0)
SETTINGS = Settings(Thresholds(), Battery(), RESAMPLE)
RECORDS = 2500


class Case:
    """A made world and what the battery says of it, each computed once."""

    def __init__(self, cosine: float) -> None:
        self.world: World = draw_toy(Toy(n_records=RECORDS, cosine=cosine, captions=2 if cosine == 1 else 1), RESAMPLE)
        self.judged: Judged = judge(self.world.sides, self.world.embeddings, None, SETTINGS)


@pytest.fixture(scope="module")
def cases() -> dict[float, Case]:
    return {cosine: Case(cosine) for cosine in (1.0, 0.8, 0.5, 0.0)}


def remake(
    sides: Sides, image: csr_array, text: csr_array, pairs: np.ndarray, text_record: np.ndarray, dictionary: np.ndarray
) -> Sides:
    made = []
    for codes, record in ((image, sides.image.record), (text, text_record)):
        made.append(Side(codes, record, sum_activity(codes, record, RESAMPLE.weights(0, sides.n_records))))
    return make_sides(made[0], made[1], pairs, dictionary, sides.n_records)


@pytest.mark.parametrize("cosine", [1.0, 0.8, 0.5, 0.0])
def test_oracle_codes_of_the_toy_get_their_classes_at_any_angle_of_the_atoms(cases: dict[float, Case], cosine: float) -> None:
    found = score_classes(cases[cosine].judged.classes, cases[cosine].world.expected)
    planted = {1.0: SHARED, 0.8: COLLINEAR}.get(cosine, HETEROGENEOUS)
    assert set(found) >= {planted, POLYSEMANTIC, SPECIFIC, BIAS, RARE, DEAD}
    for name, score in found.items():
        assert score["precision"]["value"] >= 0.95, name
        assert score["recall"]["value"] >= 0.95, name


def test_oracle_codes_of_the_scenes_world_get_the_classes_of_their_concepts() -> None:
    source = ScenesSource(Scenes(n_records=900, image_size=16))
    records = list(source.records())
    image = close_upward([record.image_concepts for record in records], source.concepts)
    text = close_upward([record.texts[0].concepts for record in records], source.concepts)
    words = [set(re.findall(r"\w+", record.texts[0].text)) for record in records]
    known = sorted(set.union(*words))
    bags = np.array([[word in found for word in known] for found in words], dtype=float)
    every, identity = np.arange(len(records)), np.eye(len(source.concepts))
    weights = RESAMPLE.weights(0, len(records))
    made = []
    for present in (image, text):
        codes = csr_array(present.astype(float))
        made.append(Side(codes, every, sum_activity(codes, every, weights)))
    sides = make_sides(made[0], made[1], np.stack([every, every], axis=1), identity, len(records))
    embeddings = make_embeddings("words", every, every, bags, bags)
    judged = judge(sides, embeddings, None, SETTINGS)
    evidence = tuple(Evidence(csr_array(there.astype(float)), there, np.ones((1, len(records)))) for there in (image, text))
    rule = Rule(0.3, 0.05, 20)
    expected = expect_classes(track((evidence[0], evidence[1]), rule), source.concepts, judged.activation.gate, rule)
    scores = score_expected(judged.classes, expected)["classes"]
    for name in (SHARED, SPECIFIC):
        assert scores[name]["precision"]["value"] >= 0.95, name
        assert scores[name]["recall"]["value"] >= 0.95, name
        assert scores[name]["recall"]["n"] >= 10
    # And straight from the kinds of the concepts, without matching.
    visibility = np.array([concept.visibility for concept in source.concepts])
    frequent = judged.activation.records.sum(axis=0) >= 60
    assert np.mean(judged.classes[frequent & (visibility == "shared")] == SHARED) >= 0.95
    assert np.isin(judged.classes[frequent & (visibility != "shared")], (SPECIFIC, BIAS)).mean() >= 0.95


@pytest.mark.parametrize("cosine", [1.0, 0.0])
def test_captions_of_other_images_leave_nothing_shared_and_nothing_bridged(cases: dict[float, Case], cosine: float) -> None:
    false = expect_false(cases[cosine].judged, SETTINGS)
    assert false is not None
    observed = count(cases[cosine].judged.classes)
    assert observed[SHARED] + observed[HETEROGENEOUS] >= 38
    assert sum(false.values()) < 1


def test_the_chance_of_a_correlation_is_as_often_small_as_it_says(cases: dict[float, Case]) -> None:
    found = []
    for seed in range(6):
        totals = total(derange(cases[1.0].judged.totals.pairing, seed))
        found.append(measure_self(totals).p)
    p = np.concatenate(found)
    p = p[np.isfinite(p)]
    assert len(p) > 300
    # Exact counts are conservative; more than four standard errors above would be too many.
    for level in (0.01, 0.05, 0.2):
        assert np.mean(p <= level) < level + 4 * np.sqrt(level / len(p))


def test_five_copies_of_every_caption_change_no_score(cases: dict[float, Case]) -> None:
    sides = cases[0.5].world.sides
    text = csr_array(vstack([sides.text.codes] * 5))
    n = len(sides.text.record)
    pairs = np.concatenate([sides.pairs + np.array([0, copy * n]) for copy in range(5)])
    copied = remake(sides, sides.image.codes, text, pairs, np.tile(sides.text.record, 5), sides.dictionary)
    plain, more = cases[0.5].judged, judge(copied, None, None, SETTINGS)
    np.testing.assert_allclose(more.activation.scores.energy, plain.activation.scores.energy, rtol=1e-12)
    np.testing.assert_allclose(more.activation.scores.firing, plain.activation.scores.firing, rtol=1e-12)
    np.testing.assert_allclose(more.pairings.own.rho, plain.pairings.own.rho, atol=1e-9)
    np.testing.assert_allclose(more.pairings.own.p, plain.pairings.own.p, rtol=1e-6)
    np.testing.assert_allclose(more.margins.left_out[0], plain.margins.left_out[0], atol=1e-9)
    assert (more.classes == plain.classes).mean() > 0.98


def test_scaling_features_against_their_atoms_changes_nothing(cases: dict[float, Case]) -> None:
    sides, embeddings = cases[1.0].world.sides, cases[1.0].world.embeddings
    scale = np.exp(np.random.default_rng(0).normal(size=len(sides.dictionary)))
    image, text = (csr_array(side.codes * scale[None]) for side in (sides.image, sides.text))
    scaled = remake(sides, image, text, sides.pairs, sides.text.record, sides.dictionary / scale[:, None])
    first, second = (tabulate_features(found, None) for found in (cases[1.0].judged, judge(scaled, embeddings, None, SETTINGS)))
    for name, column in first.items():
        values = np.asarray(column)
        if values.dtype.kind == "f":
            np.testing.assert_allclose(np.asarray(second[name]), values, rtol=1e-6, atol=1e-9, err_msg=name)
        else:
            assert np.array_equal(values, np.asarray(second[name])), name


def test_calling_images_texts_mirrors_the_scores_and_keeps_the_classes(cases: dict[float, Case]) -> None:
    plain, world = cases[0.8].judged, cases[0.8].world
    embeddings = world.embeddings
    assert embeddings is not None
    swapped = embeddings._replace(
        image=embeddings.text, text=embeddings.image, image_items=embeddings.text_items, text_items=embeddings.image_items
    )
    mirror = judge(reverse(world.sides), swapped, None, SETTINGS)
    np.testing.assert_allclose(mirror.activation.scores.energy, 1 - plain.activation.scores.energy, atol=1e-12)
    np.testing.assert_allclose(mirror.margins.as_image[0], plain.margins.as_text[0], atol=1e-9)
    np.testing.assert_allclose(mirror.gaps.gap.share, plain.gaps.gap.share, atol=1e-9)
    i, j = find_bridges(plain, SETTINGS)
    assert len(i) == 40
    assert {*zip(*find_bridges(mirror, SETTINGS), strict=True)} == {*zip(j, i, strict=True)}
    assert mirror.classes.tolist() == plain.classes.tolist()


@pytest.mark.parametrize(("cosine", "part"), [(1.0, "shared_self"), (0.8, "bridged")])
def test_the_margin_lies_where_it_was_planted_and_its_parts_add_up(cases: dict[float, Case], cosine: float, part: str) -> None:
    found = divide_by_class(cases[cosine].judged, SETTINGS)["margin"]
    assert sum(found[name].value for name in ("shared_self", "shared_cross", "bridged", "rest")) == pytest.approx(1)
    assert found[part].value == pytest.approx(1, abs=0.05)
    assert found[part].low <= found[part].value <= found[part].high
    x, y = (side.codes @ cases[cosine].world.sides.dictionary for side in cases[cosine].world.sides[:2])
    pairs = cases[cosine].world.sides.pairs
    x, y = x[pairs[:, 0]], y[pairs[:, 1]]
    assert found["total"].value == pytest.approx((x * y).sum(1).mean() - x.mean(0) @ y.mean(0))


def test_the_gap_is_carried_by_the_features_that_always_fire(cases: dict[float, Case]) -> None:
    groups = summarize(cases[0.0].judged, SETTINGS)
    assert sum(one.value for one in groups["gap"].values()) == pytest.approx(1)
    assert groups["gap"][BIAS].value > 0.6
    for name in ("energy_image", "energy_text"):
        assert sum(one.value for one in groups[name].values()) == pytest.approx(1)
    assert {name: one["n"] for name, one in groups["classes"].items()} == count(cases[0.0].judged.classes)


def test_leaving_out_a_gate_moves_only_what_that_gate_decides(cases: dict[float, Case]) -> None:
    found = count_with_and_without(cases[1.0].judged.gates, Battery())
    assert found["without_pairing"][SHARED] >= found["with_all"][SHARED]
    assert found["without_activation"][SPECIFIC] == 0
    assert found["and_causal"][SHARED] <= found["with_all"][SHARED]
    assert {sum(one.values()) for one in found.values()} == {len(cases[1.0].judged.classes)}
    bimodal = found["with_all"][SHARED] + found["with_all"][POLYSEMANTIC]
    assert found["without_pairing"][SHARED] + found["without_pairing"][POLYSEMANTIC] == bimodal


def gates(**changes) -> Gates:
    """One feature that passes everything."""
    values = {
        "status": OK,
        "activation": "bimodal",
        "pairing": PASS,
        "meaning": PASS,
        "causal": PASS,
        "robustness": PASS,
        "has_partner": False,
        "partner_cosine": np.nan,
        "is_dense": False,
        "gap_share": 0.0,
        "gap_cosine": 0.0,
    }
    return Gates(**{name: np.array([value]) for name, value in (values | changes).items()})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, SHARED),
        ({"pairing": FAIL}, POLYSEMANTIC),
        ({"meaning": FAIL}, POLYSEMANTIC),
        ({"meaning": NOT_TESTED}, SHARED),
        ({"causal": FAIL, "robustness": FAIL}, SHARED),
        ({"status": RARE}, RARE),
        ({"status": DEAD, "activation": DEAD}, DEAD),
        ({"activation": UNDECIDED}, UNDECIDED),
        ({"activation": "image"}, SPECIFIC),
        ({"activation": "text", "has_partner": True, "partner_cosine": 0.6}, COLLINEAR),
        ({"activation": "text", "has_partner": True, "partner_cosine": 0.5}, HETEROGENEOUS),
        ({"activation": "image", "is_dense": True, "gap_share": -0.2, "has_partner": True}, BIAS),
        ({"activation": "image", "is_dense": True, "gap_cosine": 0.7}, BIAS),
        ({"activation": "image", "is_dense": True}, SPECIFIC),
        ({"activation": "image", "gap_cosine": 0.7}, SPECIFIC),
    ],
)
def test_the_first_rule_that_applies_decides(changes: dict, expected: str) -> None:
    assert classify(gates(**changes), Battery()).tolist() == [expected]


def test_a_gate_that_is_required_has_to_pass() -> None:
    strict = Battery(require=("causal", "robustness"))
    assert classify(gates(causal=FAIL), strict).tolist() == [POLYSEMANTIC]
    assert classify(gates(robustness=NOT_TESTED), strict).tolist() == [SHARED]
    assert set(count_with_and_without(gates(), strict)) >= {"without_causal", "without_robustness"}


@given(st.integers(1, 60), st.integers(1, 60))
@settings(max_examples=15, deadline=None)
def test_the_histogram_of_a_truly_shared_feature_with_few_firings_is_what_the_control_says(n: int, scale: int) -> None:
    """A feature that fires n times on either side alike: the exact expectation sums to one and has the right mean score."""
    size = 100 * scale
    rows = np.random.default_rng(n).permutation(2 * size)[:n]
    image = csr_array((np.ones((rows < size).sum()), (rows[rows < size], np.zeros((rows < size).sum(), int))), shape=(size, 1))
    text = csr_array(
        (np.ones((rows >= size).sum()), (rows[rows >= size] - size, np.zeros((rows >= size).sum(), int))), shape=(size, 1)
    )
    found = control_histogram(image, text, 1, (0.1, 0.9), 0)
    assert found.expected_count.sum() == pytest.approx(1)
    assert found.observed_count.sum() == pytest.approx(1)
    if n == 1:
        assert found.expected_count[[0, -1]].tolist() == [0.5, 0.5]


def test_rare_shared_features_look_one_sided_and_the_control_knows_it() -> None:
    generator = np.random.default_rng(0)
    draw = [(generator.random((2000, 400)) < 0.001) * generator.exponential(size=(2000, 400)) for _ in range(2)]
    found = control_histogram(csr_array(draw[0]), csr_array(draw[1]), 1, (0.1, 0.9), 0)
    assert found.one_sided > 0.3
    assert found.one_sided == pytest.approx(found.one_sided_expected, abs=0.08)
    assert found.one_sided_energy == pytest.approx(found.one_sided_energy_expected, abs=0.08)
    np.testing.assert_allclose(found.observed_count, found.expected_count, atol=0.06)


def test_the_interval_of_a_resampled_number_holds_it() -> None:
    replicates = np.array([[5.0, 0.0], [1.0, 0.0], [2.0, 1.0]])
    low, high = interval(replicates)
    assert low[0] <= 5.0 <= high[0]
    assert low[1] == 0.0


def test_codes_of_another_dictionary_are_refused(cases: dict[float, Case]) -> None:
    sides = cases[1.0].world.sides
    with pytest.raises(AnalysisError, match=r"features, the dictionary 3; give codes of this dictionary"):
        make_sides(sides.image, sides.text, sides.pairs, sides.dictionary[:3], sides.n_records)
    with pytest.raises(AnalysisError, match="no pair of an image and a text"):
        pair(sides._replace(pairs=np.zeros((0, 2), dtype=np.int64)))
    with pytest.raises(AnalysisError, match="widths of the embeddings"):
        make_embeddings("external", np.arange(9), np.arange(9), np.ones((9, 3)), np.ones((9, 4)))
    assert make_embeddings("external", np.arange(3), np.arange(3), np.ones((3, 3)), np.ones((3, 3))) is None


def test_signed_codes_are_judged_by_their_size(cases: dict[float, Case]) -> None:
    """Features whose codes are all negated on both sides keep their classes: only mu_mean is lost."""
    sides, embeddings = cases[1.0].world.sides, cases[1.0].world.embeddings
    sign = np.where(np.arange(len(sides.dictionary)) % 2, -1.0, 1.0)
    image, text = (csr_array(side.codes * sign[None]) for side in (sides.image, sides.text))
    signed = remake(sides, image, text, sides.pairs, sides.text.record, sides.dictionary * sign[:, None])
    judged = judge(signed, embeddings, None, SETTINGS)
    assert judged.classes.tolist() == cases[1.0].judged.classes.tolist()
    assert np.isnan(tabulate_features(judged, None)["mu_mean"]).all()


def test_with_fewer_pairs_the_calibration_finds_less() -> None:
    few = Settings(Thresholds(), Battery(), Resample(20, 0))
    found = calibrate(150, few)
    assert found["n_pairs"] == 150
    assert set(found["by_cosine"]) == {"1", "0.8", "0.5", "0"}
    assert found["by_cosine"]["1"][SHARED]["recall"]["value"] < 0.5


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"least_rho": 1.0}, "least_rho=1.0"),
        ({"least_bridge_rho": 1.0}, "least_bridge_rho=1.0"),
        ({"dense_above": 0.0}, "dense_above=0.0"),
        ({"edges": 0}, "edges=0"),
        ({"least_pairs": 1}, "least_pairs=1"),
        ({"calibration_pairs": -1}, "calibration_pairs=-1"),
        ({"meaning": "external"}, "give battery.external"),
    ],
)
def test_thresholds_that_make_no_sense_are_refused_with_their_value(fields: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Battery(**fields)
    with pytest.raises(ConfigError, match=r"rate=0\.0"):
        Toy(rate=0.0)


def test_every_class_has_a_name_of_its_own() -> None:
    assert len(set(CLASSES)) == 9
    assert set(BRIDGED) < set(CLASSES)
