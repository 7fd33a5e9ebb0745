"""When features fire and how much energy they carry."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_array

from thresher.analyze.metrics.grouping import count_columns, membership


class ActivitySums(NamedTuple):
    """Sufficient statistics per feature over the rows of one modality, float64; sums of two chunks are their sum.

    `rows`, `fires` and `energy` are resampled (one line per replicate, line 0 the data as they are); the rest is not.
    """

    rows: Float[np.ndarray, " replicate"]
    """Rows, weighted."""
    fires: Float[np.ndarray, "replicate feature"]
    """Rows with z != 0, weighted."""
    energy: Float[np.ndarray, "replicate feature"]
    """Sum of z^2, weighted."""
    total: Float[np.ndarray, " feature"]
    """Sum of z."""
    n_negative: Float[np.ndarray, " feature"]
    """Rows with z < 0."""
    energy_square: Float[np.ndarray, " feature"]
    """Sum over records of (sum of z^2)^2: how unequal the records are."""
    energy_fourth: Float[np.ndarray, " feature"]
    """Sum over records of (sum of z^2)^4."""
    firing_records: Float[np.ndarray, " feature"]
    """Records in which the feature fires at all."""
    records: float
    """Records that have rows of this modality."""


def sum_activity(
    codes: csr_array, record: Int[np.ndarray, " row"], weights: Float[np.ndarray, "replicate record"]
) -> ActivitySums:
    """Statistics of one chunk of codes [row, d_sae]; all rows of a record have to be in one chunk.

    `record` says which column of `weights` each row takes its weight from.
    """
    n_records = weights.shape[1]
    sum_per_record = membership(record, n_records)
    fires = codes.copy()
    fires.data = np.ones_like(codes.data)
    per_record, energy = sum_per_record @ fires, csr_array(sum_per_record @ codes.power(2))
    powers = [np.asarray(energy.power(power).sum(axis=0), dtype=np.float64) for power in (2, 4)]
    return ActivitySums(
        rows=weights @ np.bincount(record, minlength=n_records).astype(np.float64),
        fires=_weigh(weights, per_record),
        energy=_weigh(weights, energy),
        total=np.asarray(codes.sum(axis=0), dtype=np.float64),
        n_negative=np.bincount(codes.indices[codes.data < 0], minlength=count_columns(codes)).astype(np.float64),
        energy_square=powers[0],
        energy_fourth=powers[1],
        firing_records=np.bincount(per_record.indices, minlength=count_columns(codes)).astype(np.float64),
        records=float(len(np.unique(record))),
    )


def add_activity(first: ActivitySums, second: ActivitySums) -> ActivitySums:
    """Statistics of two chunks together."""
    summed: list[Any] = [one + other for one, other in zip(first, second, strict=True)]
    return ActivitySums(*summed)


def count_fires(sums: ActivitySums) -> Int[np.ndarray, " feature"]:
    """Rows in which each feature fires (z != 0; the sign does not matter)."""
    return np.rint(sums.fires[0]).astype(np.int64)


class Dead(NamedTuple):
    """Features that never fire on held-out rows. Dead on one modality only is a fact about modality, not a defect."""

    image: Bool[np.ndarray, " feature"]
    text: Bool[np.ndarray, " feature"]
    both: Bool[np.ndarray, " feature"]

    @property
    def one_sided(self) -> Bool[np.ndarray, " feature"]:
        """Dead on exactly one modality."""
        return self.image ^ self.text


def find_dead(image: ActivitySums, text: ActivitySums) -> Dead:
    """Features without a single firing over all held-out rows of each modality, and of both."""
    image_dead, text_dead = image.fires[0] == 0, text.fires[0] == 0
    return Dead(image_dead, text_dead, image_dead & text_dead)


def mean_energy(sums: ActivitySums) -> Float[np.ndarray, " feature"]:
    """E[z^2] over rows (arXiv 2602.06218); sign-proof, so fit for matching pursuit."""
    return sums.energy[0] / sums.rows[0]


def _weigh(weights: Float[np.ndarray, "replicate record"], per_record: csr_array) -> Float[np.ndarray, "replicate feature"]:
    return np.ascontiguousarray((per_record.T.tocsr() @ np.ascontiguousarray(weights.T)).T)
