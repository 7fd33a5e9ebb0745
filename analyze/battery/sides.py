"""What the battery judges: the codes of images and of texts, which of them belong together, and the atoms."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_array, diags_array

from thresher.analyze.metrics.activity import ActivitySums
from thresher.analyze.metrics.grouping import count_columns
from thresher.analyze.metrics.needs import normalize_rows
from thresher.analyze.metrics.resample import Resample
from thresher.analyze.statistics.pairing import Pairing, pair_codes
from thresher.analyze.statistics.rows import RowsWriter, iterate_rows
from thresher.errors import AnalysisError


class Side(NamedTuple):
    """The items of one modality."""

    codes: csr_array
    """Mean code of the item's rows [item, feature], float64."""
    record: Int[np.ndarray, " item"]
    activity: ActivitySums
    """When and how strongly features fire, over the rows."""


class Sides(NamedTuple):
    """Both modalities and their pairs."""

    image: Side
    text: Side
    pairs: Int[np.ndarray, "pair 2"]
    """Positions of the image and of the text."""
    dictionary: Float[np.ndarray, "feature d_in"]
    """Unit atoms; atoms of length zero stay zero."""
    n_records: int
    scratch: Path | None = None
    """Folder for codes and what is made of them; None for memory."""


def make_sides(
    image: Side,
    text: Side,
    pairs: Int[np.ndarray, "pair 2"],
    dictionary: Float[np.ndarray, "feature d_in"],
    n_records: int,
    scratch: Path | None = None,
) -> Sides:
    """Bring atoms to unit norm and codes with them: z * |d|, d / |d|, which changes no reconstruction.

    With `scratch` the codes lie in files there, and so does what is made of them later. Raises AnalysisError when codes and
    dictionary have different numbers of features.
    """
    for name, side in (("image", image), ("text", text)):
        if count_columns(side.codes) != len(dictionary):
            raise AnalysisError(
                f"{name} codes have {count_columns(side.codes)} features, the dictionary {len(dictionary)}; give codes of this "
                "dictionary"
            )
    norm = np.linalg.norm(dictionary, axis=1)
    folders = [None if scratch is None else scratch / name for name in ("image", "text")]
    scaled = [_scale(side, norm, folder) for side, folder in zip((image, text), folders, strict=True)]
    return Sides(scaled[0], scaled[1], pairs, normalize_rows(dictionary), n_records, scratch)


def reverse(sides: Sides) -> Sides:
    """Images called texts and texts called images."""
    return sides._replace(image=sides.text, text=sides.image, pairs=np.ascontiguousarray(sides.pairs[:, ::-1]))


def pair(sides: Sides) -> Pairing:
    """The pairs, an image with all its captions as one. Raises AnalysisError: there is none."""
    scratch = None if sides.scratch is None else sides.scratch / "pairs"
    return pair_codes(sides.image.codes, sides.text.codes, sides.pairs, sides.image.record, scratch)


def resample_means(side: Side, resample: Resample) -> Float[np.ndarray, "replicate feature"]:
    """Mean code over the items of a modality, in each resample of the records; line 0 is the data as they are."""
    total, n = np.zeros((resample.n_replicates + 1, count_columns(side.codes))), np.zeros((resample.n_replicates + 1, 1))
    for rows in iterate_rows(side.codes):
        record = side.record[rows]
        first = int(record.min())
        weights = resample.weights(first, int(record.max()) + 1)[:, record - first]
        total += weights @ side.codes[rows]
        n += weights.sum(axis=1, keepdims=True)
    return total / np.maximum(n, 1)


def _scale(side: Side, norm: Float[np.ndarray, " feature"], folder: Path | None) -> Side:
    writer = RowsWriter(len(norm), folder)
    for rows in iterate_rows(side.codes):
        part = csr_array(side.codes[rows] @ diags_array(norm))
        part.sum_duplicates()
        part.eliminate_zeros()
        writer.append(part)
    activity = side.activity._replace(
        energy=side.activity.energy * norm**2,
        total=side.activity.total * norm,
        energy_square=side.activity.energy_square * norm**4,
        energy_fourth=side.activity.energy_fourth * norm**8,
    )
    return Side(writer.finish(), side.record, activity)
