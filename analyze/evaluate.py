"""Closed forms of what was measured on one dictionary: the numbers that are reported."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from thresher.analyze.config import Thresholds
from thresher.analyze.measure import Measured
from thresher.analyze.metrics import modality
from thresher.analyze.metrics.activity import count_fires, find_dead, mean_energy
from thresher.analyze.metrics.estimate import Estimate, estimate, exact
from thresher.analyze.metrics.gap import Gap, decompose_gap
from thresher.analyze.metrics.modality import ModalityScores, score_modality
from thresher.analyze.metrics.reconstruction import ReconstructionSums, add_reconstruction, measure_reconstruction
from thresher.analyze.metrics.resample import Resample

N_BINS = 20
"""Bins of the histograms of modality scores."""
DENSE = 0.5
"""A feature that fires on more than this share of rows is called dense."""


class ModalityResult(NamedTuple):
    """What the modality score of the features says about one dictionary."""

    scores: ModalityScores
    classes: np.ndarray
    """Class of each feature [feature], strings."""
    energy: Float[np.ndarray, " feature"]
    """Mean of the two modalities' E[z^2]."""
    n_fires: Int[np.ndarray, "2 feature"]
    """Rows in which it fires: images, texts."""
    gap: Gap
    shares: dict[str, Estimate]
    """Shares of alive features by their score."""
    energy_shares: modality.EnergyShares
    histograms: dict[str, modality.Histogram]
    """`features`, `energy` (weighted) and `frequent` (without rare features)."""


def evaluate_reconstruction(measured: Mapping[str, Measured]) -> dict[str, dict[str, Estimate]]:
    """R2, FVU, NMSE, cosine and L0 per modality, and over the rows of both where there are two."""
    sums: dict[str, ReconstructionSums] = {name: one.reconstruction for name, one in measured.items()}
    if len(sums) == 2:
        sums["pooled"] = add_reconstruction(sums["image"], sums["text"])
    return {name: _estimate_reconstruction(one) for name, one in sums.items()}


def _estimate_reconstruction(sums: ReconstructionSums) -> dict[str, Estimate]:
    n = round(float(sums.n[0]))
    return {name: estimate(values, n, "rows") for name, values in measure_reconstruction(sums)._asdict().items()}


def evaluate_dead(measured: Mapping[str, Measured]) -> dict[str, Estimate]:
    """Share of features that never fire, per modality and on both."""
    activity = {name: one.activity for name, one in measured.items()}
    if len(activity) == 2:
        return {name: _share(dead) for name, dead in find_dead(activity["image"], activity["text"])._asdict().items()}
    return {name: _share(one.fires[0] == 0) for name, one in activity.items()}


def count_dense(measured: Mapping[str, Measured]) -> int:
    """Features that fire on more than half of the rows of some modality."""
    rates = [one.activity.fires[0] / one.activity.rows[0] for one in measured.values()]
    return int((np.max(rates, axis=0) > DENSE).sum())


def evaluate_modality(
    measured: Mapping[str, Measured],
    resample: Resample,
    dictionary: Float[np.ndarray, "feature d_in"],
    thresholds: Thresholds,
) -> ModalityResult:
    """Scores, classes and their summaries. Energies are means over rows; the gap is that of the mean items, as everywhere."""
    image, text = measured["image"].activity, measured["text"].activity
    means = [one.codes.sum(axis=0) / len(one.codes.indptr[1:]) for one in (measured["image"], measured["text"])]
    scores = score_modality(image, text, resample.pseudo_counts(len(dictionary)))
    text_below, image_above = thresholds.text_below, thresholds.image_above
    energy = (mean_energy(image) + mean_energy(text)) / 2
    n_fires = np.stack([count_fires(image), count_fires(text)])
    return ModalityResult(
        scores=scores,
        classes=modality.classify(scores.energy, scores.energy_interval, text_below, image_above),
        energy=energy,
        n_fires=n_fires,
        gap=decompose_gap(means[0], means[1], dictionary),
        shares=_share_classes(scores, thresholds),
        energy_shares=modality.share_energy(scores.energy, energy, text_below, image_above),
        histograms=_histograms(scores.energy, energy, n_fires.sum(axis=0), thresholds.rare_below),
    )


def _share_classes(scores: ModalityScores, thresholds: Thresholds) -> dict[str, Estimate]:
    ranges = {
        modality.IMAGE: (np.nextafter(thresholds.image_above, 1), 1.0),
        modality.SHARED: (thresholds.text_below, thresholds.image_above),
        modality.TEXT: (0.0, np.nextafter(thresholds.text_below, 0)),
        "within 0.05 to 0.95": (0.05, 0.95),
        "within 0.3 to 0.7": (0.3, 0.7),
    }
    shares = {name: modality.share_of_class(scores.energy, scores.energy_interval, ends) for name, ends in ranges.items()}
    alive = np.isfinite(scores.energy)
    undecided = modality.classify(scores.energy, scores.energy_interval, thresholds.text_below, thresholds.image_above)
    shares[modality.UNDECIDED] = _share(undecided[alive] == modality.UNDECIDED, "alive features")
    return shares


def _histograms(
    score: Float[np.ndarray, " feature"],
    energy: Float[np.ndarray, " feature"],
    n_fires: Int[np.ndarray, " feature"],
    rare_below: int,
) -> dict[str, modality.Histogram]:
    everything, ones = np.ones(len(score), dtype=bool), np.ones(len(score))
    return {
        "features": modality.histogram(score, ones, everything, N_BINS),
        "energy": modality.histogram(score, energy, everything, N_BINS),
        "frequent": modality.histogram(score, ones, n_fires >= rare_below, N_BINS),
    }


def _share(members: Bool[np.ndarray, " feature"], unit: str = "features") -> Estimate:
    return exact(float(np.mean(members)) if members.size else float("nan"), members.size, unit)
