"""All gates of all features of one dictionary, and the class that follows."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from thresher.analyze.battery.activation import Activation, judge_activation
from thresher.analyze.battery.classes import DEAD, FAIL, NOT_TESTED, PASS, RARE, Gates, classify
from thresher.analyze.battery.meaning import Embeddings, Meanings, judge_meaning
from thresher.analyze.battery.pairing import (
    Edges,
    Partner,
    Partners,
    Totals,
    choose_partner,
    control,
    find_partners,
    measure_self,
    total,
)
from thresher.analyze.battery.sides import Sides, pair, resample_means
from thresher.analyze.config import Battery, Thresholds
from thresher.analyze.metrics.angle import measure_angle
from thresher.analyze.metrics.estimate import LEVEL
from thresher.analyze.metrics.gap import Gap, decompose_gap
from thresher.analyze.metrics.margin import FeatureMargins, divide_margin
from thresher.analyze.metrics.resample import Resample
from thresher.analyze.statistics.margins import sum_margins

NOISE = 4.0
"""The squared gap has to be so many times its sampling variance before features can carry it."""


class Stability(NamedTuple):
    """How well each atom is found again by other seeds; mean over the seeds."""

    cosine: Float[np.ndarray, " feature"]
    null: Float[np.ndarray, " feature"]
    """The same against random dictionaries."""
    n_seeds: int


class Settings(NamedTuple):
    """What decides a class."""

    thresholds: Thresholds
    battery: Battery
    resample: Resample


class Pairings(NamedTuple):
    """Level 2, which alone depends on which image belongs to which text."""

    own: Edges
    """Each feature with itself."""
    own_q: Float[np.ndarray, " feature"]
    partners: Partners
    partner: Partner
    partner_cosine: Float[np.ndarray, " feature"]


class Gaps(NamedTuple):
    """Where the gap between the mean image and the mean text lies."""

    gap: Gap
    cosine: Float[np.ndarray, " feature"]
    replicates: Float[np.ndarray, "replicate feature"]
    """Shares of the gap in each resample."""
    is_beyond_noise: bool
    """Whether the gap is more than the choice of the items makes; a mean per modality that was taken off leaves no more."""


class Judged(NamedTuple):
    """The verdict on one dictionary."""

    sides: Sides
    totals: Totals
    activation: Activation
    pairings: Pairings
    meanings: Meanings | None
    margins: FeatureMargins
    gaps: Gaps
    stability: Stability | None
    gates: Gates
    classes: np.ndarray
    """One of `battery.classes.CLASSES` per feature."""


def judge(sides: Sides, embeddings: Embeddings | None, stability: Stability | None, settings: Settings) -> Judged:
    """Judge every feature. Deterministic for given inputs and seed; chunks and blocks change nothing.

    Raises AnalysisError when there are no pairs.
    """
    activation = judge_activation(sides, settings.thresholds, settings.battery, settings.resample)
    totals = total(pair(sides), None if sides.scratch is None else sides.scratch / "postings")
    pairings = judge_pairing(totals, activation, sides.dictionary, settings)
    meanings = judge_meaning(sides, embeddings) if embeddings is not None else None
    weights = weigh_groups(totals, settings.resample)
    margins = divide_margin(sum_margins(totals.pairing, sides.dictionary), sides.dictionary, weights)
    gaps = _judge_gap(sides, settings.resample)
    gates = Gates(
        status=activation.status,
        activation=activation.gate,
        pairing=_gate_pairing(pairings, activation, settings),
        meaning=_gate_meaning(meanings, settings, len(sides.dictionary)),
        causal=_gate(interval(margins.left_out)[0] > 0, activation.status != DEAD),
        robustness=_gate_robustness(stability, settings, len(sides.dictionary)),
        has_partner=find_bridged(pairings, settings),
        partner_cosine=pairings.partner_cosine,
        is_dense=activation.is_dense,
        gap_share=gaps.gap.share * gaps.is_beyond_noise,
        gap_cosine=gaps.cosine * gaps.is_beyond_noise,
    )
    classes = classify(gates, settings.battery)
    return Judged(sides, totals, activation, pairings, meanings, margins, gaps, stability, gates, classes)


def reclassify(judged: Judged, totals: Totals, settings: Settings) -> np.ndarray:
    """The classes that the same features would have with other pairs (`totals`); the rest does not depend on the pairs."""
    pairings = judge_pairing(totals, judged.activation, judged.sides.dictionary, settings)
    gates = judged.gates._replace(
        pairing=_gate_pairing(pairings, judged.activation, settings),
        has_partner=find_bridged(pairings, settings),
        partner_cosine=pairings.partner_cosine,
    )
    return classify(gates, settings.battery)


def judge_pairing(
    totals: Totals, activation: Activation, dictionary: Float[np.ndarray, "feature d_in"], settings: Settings
) -> Pairings:
    """Correlations with itself and with the best partner. Rare features are not tested, and are nobody's partner."""
    is_tested = ~np.isin(activation.status, (DEAD, RARE))
    own = measure_self(totals)
    own = own._replace(p=np.where(is_tested, own.p, np.nan))
    frequent = is_tested & (activation.records >= settings.thresholds.rare_below)
    partners = find_partners(totals, frequent[0], frequent[1], settings.battery.edges)
    partner = choose_partner(totals, partners, activation.is_image)
    has = partner.feature >= 0
    cosine = np.full(len(has), np.nan)
    cosine[has] = np.einsum("ij,ij->i", dictionary[has], dictionary[partner.feature[has]])
    return Pairings(own, control(own.p), partners, partner, cosine)


def weigh_groups(totals: Totals, resample: Resample) -> Float[np.ndarray, "replicate group"]:
    """Weights of the groups of records that sums over pairs are kept in; line 0 is ones."""
    return resample.weights(0, len(totals.sums.groups.pairs))


def interval(replicates: Float[np.ndarray, "replicate *any"]) -> tuple[np.ndarray, np.ndarray]:
    """95 % interval of resamples 1 and up; the value on the data itself, line 0, always lies inside."""
    low, high = np.quantile(replicates[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return np.fmin(low, replicates[0]), np.fmax(high, replicates[0])


def find_bridged(pairings: Pairings, settings: Settings) -> Bool[np.ndarray, " feature"]:
    """Features with a mutual best partner, correlated beyond chance; with itself a feature builds no bridge."""
    partner = pairings.partner
    is_other = partner.feature != np.arange(len(partner.feature))
    is_beyond = np.nan_to_num(partner.q, nan=1.0) <= settings.thresholds.alpha
    return is_other & partner.is_mutual & is_beyond & (np.nan_to_num(partner.rho) >= settings.battery.least_bridge_rho)


def _gate_pairing(pairings: Pairings, activation: Activation, settings: Settings) -> np.ndarray:
    """A feature that is silent on one side of all pairs fails."""
    is_beyond = np.nan_to_num(pairings.own_q, nan=1.0) <= settings.thresholds.alpha
    passes = is_beyond & (np.nan_to_num(pairings.own.rho) >= settings.battery.least_rho)
    return _gate(passes, ~np.isin(activation.status, (DEAD, RARE)))


def _gate_meaning(meanings: Meanings | None, settings: Settings, n_features: int) -> np.ndarray:
    if meanings is None:
        return np.full(n_features, NOT_TESTED)
    z = meanings.across.z
    agrees = np.nan_to_num(meanings.agreement, nan=-1.0) >= settings.battery.least_agreement
    return _gate((np.nan_to_num(z) >= settings.battery.least_z) & agrees, np.isfinite(z))


def _gate_robustness(stability: Stability | None, settings: Settings, n_features: int) -> np.ndarray:
    if stability is None:
        return np.full(n_features, NOT_TESTED)
    least = np.maximum(settings.battery.least_stability, stability.null)
    return _gate(stability.cosine >= least, np.isfinite(stability.cosine))


def _gate(passes: Bool[np.ndarray, " feature"], is_tested: Bool[np.ndarray, " feature"]) -> np.ndarray:
    return np.where(is_tested, np.where(passes, PASS, FAIL), NOT_TESTED)


def _judge_gap(sides: Sides, resample: Resample) -> Gaps:
    image, text = resample_means(sides.image, resample), resample_means(sides.text, resample)
    gap = decompose_gap(image[0], text[0], sides.dictionary)
    difference = image - text
    delta = difference @ sides.dictionary
    square = np.maximum(np.square(delta).sum(axis=1, keepdims=True), 1e-300)
    shares = difference * (delta @ sides.dictionary.T) / square
    noise = float(np.square(delta[1:] - delta[0]).sum(axis=1).mean())
    return Gaps(gap, measure_angle(sides.dictionary, delta[0]), shares, gap.norm**2 > NOISE * noise)
