"""Levels 0 and 1: does a feature fire at all, how much stands behind it, and on which modality."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_array

from thresher.analyze.battery.classes import BIMODAL, DEAD, IMAGE, OK, ONE_SIDED, RARE, TEXT, UNDECIDED
from thresher.analyze.battery.sides import Sides
from thresher.analyze.config import Battery, Thresholds
from thresher.analyze.metrics import modality
from thresher.analyze.metrics.activity import ActivitySums, count_fires
from thresher.analyze.metrics.energy import effective_sample_size
from thresher.analyze.metrics.grouping import count_columns
from thresher.analyze.metrics.modality import ModalityScores, score_modality
from thresher.analyze.metrics.resample import Resample
from thresher.analyze.statistics.rows import iterate_rows, read_entries

GATE = {modality.SHARED: BIMODAL, modality.IMAGE: IMAGE, modality.TEXT: TEXT, modality.UNDECIDED: UNDECIDED}
"""The gate by what the score alone says."""


class Activation(NamedTuple):
    """One entry per feature; [2, feature] is images, texts."""

    status: np.ndarray
    is_dense: Bool[np.ndarray, " feature"]
    fires: Int[np.ndarray, "2 feature"]
    records: Int[np.ndarray, "2 feature"]
    rate: Float[np.ndarray, "2 feature"]
    energy: Float[np.ndarray, "2 feature"]
    mean: Float[np.ndarray, "2 feature"]
    n_negative: Int[np.ndarray, " feature"]
    ess: Float[np.ndarray, " feature"]
    scores: ModalityScores
    gate: np.ndarray
    """BIMODAL, IMAGE, TEXT or UNDECIDED; DEAD for features that never fire."""

    @property
    def is_image(self) -> Bool[np.ndarray, " feature"]:
        """Whether most of the energy is on images."""
        return np.nan_to_num(self.scores.energy, nan=0.0) >= 0.5


def judge_activation(sides: Sides, thresholds: Thresholds, settings: Battery, resample: Resample) -> Activation:
    """Status, rates, energies and modality scores with their intervals."""
    image, text = sides.image.activity, sides.text.activity
    sums = (image, text)
    scores = score_modality(image, text, resample.pseudo_counts(len(sides.dictionary)))
    records = np.rint(np.stack([one.firing_records for one in sums])).astype(np.int64)
    ess = _measure_ess(sides.image.codes, sides.text.codes)
    rate = np.stack([one.fires[0] / one.rows[0] for one in sums])
    decided = modality.classify(scores.energy, scores.energy_interval, thresholds.text_below, thresholds.image_above)
    return Activation(
        status=_find_status(records, ess, thresholds, settings),
        is_dense=rate.max(axis=0) > settings.dense_above,
        fires=np.stack([count_fires(one) for one in sums]),
        records=records,
        rate=rate,
        energy=np.stack([one.energy[0] / one.rows[0] for one in sums]),
        mean=np.stack([_mean(one) for one in sums]),
        n_negative=np.rint(image.n_negative + text.n_negative).astype(np.int64),
        ess=ess,
        scores=scores,
        gate=np.array([GATE.get(str(one), DEAD) for one in decided], dtype="<U9"),
    )


def _find_status(
    records: Int[np.ndarray, "2 feature"], ess: Float[np.ndarray, " feature"], thresholds: Thresholds, settings: Battery
) -> np.ndarray:
    is_rare = (records.sum(axis=0) < thresholds.rare_below) | (np.nan_to_num(ess) < settings.ess_below)
    rules = [(records.sum(axis=0) == 0, DEAD), (is_rare, RARE), (records.min(axis=0) == 0, ONE_SIDED)]
    return np.select([condition for condition, _ in rules], [name for _, name in rules], OK)


def _measure_ess(image: csr_array, text: csr_array) -> Float[np.ndarray, " feature"]:
    n_features = count_columns(image)
    powers = np.zeros((2, n_features))
    for codes in (image, text):
        for rows in iterate_rows(codes):
            entries = read_entries(codes, rows)
            for total, power in zip(powers, (2, 4), strict=True):
                total += np.bincount(entries.feature, weights=entries.value**power, minlength=n_features)
    return effective_sample_size(powers[0], powers[1])


def _mean(sums: ActivitySums) -> Float[np.ndarray, " feature"]:
    return sums.total / sums.rows[0]
