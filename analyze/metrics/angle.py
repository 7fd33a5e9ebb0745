"""Does an atom lie along what tells the modalities apart? Angle to the gap, and share inside a modality subspace."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from thresher.analyze.metrics.needs import divide, need_equal, need_items, normalize_rows

RIDGE = 1e-6
"""Added to the variances, relative to their mean, so that directions without any variance can be inverted."""


def measure_angle(dictionary: Float[np.ndarray, "d_sae d_in"], gap: Float[np.ndarray, " width"]) -> Float[np.ndarray, " d_sae"]:
    """|cos(d_i, g)| with g the mean image minus the mean text activation, in the units the dictionary works in.

    The chance level of a random atom is about sqrt(2 / (pi d_in)). NaN where there is no gap or an atom is 0. The two arXiv
    versions of 2504.11695 state opposite tendencies, so nothing is settled here. Raises AnalysisError: widths differ.
    """
    need_equal("angle to the gap", "widths of dictionary and gap", dictionary.shape[1], len(gap))
    lengths = np.linalg.norm(dictionary, axis=1) * np.linalg.norm(gap)
    return np.abs(divide(dictionary @ gap, lengths))


class Erasure(NamedTuple):
    """LEACE (arXiv 2306.03819) for the two-valued concept "image or text": one direction read, one written."""

    read: Float[np.ndarray, " d_in"]
    """Sigma^-1 Delta, unit norm: what a linear classifier reads (Fisher's discriminant)."""
    write: Float[np.ndarray, " d_in"]
    """Delta, unit norm: what erasing changes, the gap itself."""


def fit_erasure(image: Float[np.ndarray, "image d_in"], text: Float[np.ndarray, "text d_in"]) -> Erasure:
    """The rank-1 erasure that leaves no linear trace of the modality, from rows of both, each modality weighing half.

    x - write <read, x - mean> / <read, write> has equal class means, hence (theorem 3.1 of the paper) no linear classifier
    beats a constant. Raises AnalysisError: fewer than 2 rows of a modality, or equal means.
    """
    delta, within = _contrast(image, text)
    total = within + np.outer(delta, delta) / 4
    read = np.linalg.solve(_stabilize(total), delta)
    return Erasure(read / np.linalg.norm(read), delta / np.linalg.norm(delta))


def erase(
    x: Float[np.ndarray, "row d_in"], erasure: Erasure, mean: Float[np.ndarray, " d_in"]
) -> Float[np.ndarray, "row d_in"]:
    """x - write <read, x - mean> / <read, write>: rows without a linear trace of the modality; `mean` is that of both means."""
    share = (x - mean) @ erasure.read / float(erasure.read @ erasure.write)
    return x - np.outer(share, erasure.write)


def find_modality_subspace(
    image: Float[np.ndarray, "image d_in"], text: Float[np.ndarray, "text d_in"], rank: int
) -> Float[np.ndarray, "rank d_in"]:
    """Orthonormal directions by which linear classifiers tell the modalities apart, the best first (INLP, arXiv 2004.07667).

    Each is the discriminant (Sigma + ridge)^-1 Delta of what the earlier ones, projected out, left. Deterministic.
    Fewer than `rank` come back when the means no longer differ. Raises AnalysisError as `fit_erasure`, and for a rank that
    is not below the width.
    """
    need_items("modality subspace", image.shape[1], rank + 1, "dimensions")
    delta, within = _contrast(image, text)
    scale, basis = np.linalg.norm(delta), np.zeros((0, len(delta)))
    for _ in range(rank):
        keep = np.eye(len(delta)) - basis.T @ basis
        left = keep @ delta
        if np.linalg.norm(left) <= 1e-9 * scale:
            break
        direction = keep @ np.linalg.solve(_stabilize(keep @ within @ keep), left)
        basis = np.vstack([basis, direction / np.linalg.norm(direction)])
    return basis


def share_in_subspace(
    dictionary: Float[np.ndarray, "d_sae d_in"], basis: Float[np.ndarray, "rank d_in"]
) -> Float[np.ndarray, " d_sae"]:
    """||Q d_i||^2 / ||d_i||^2 for an orthonormal basis Q: 1 inside the subspace; chance is rank / d_in. 0 for an atom of 0."""
    return np.square(normalize_rows(dictionary) @ basis.T).sum(axis=1)


def _contrast(image: np.ndarray, text: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Difference of the means, and the mean of the two covariances."""
    for name, rows in (("image", image), ("text", text)):
        need_items("modality subspace", len(rows), 2, f"{name} rows")
    delta = image.mean(axis=0) - text.mean(axis=0)
    need_items("modality subspace", int(np.linalg.norm(delta) > 0), 1, "differences between the mean image and the mean text")
    within = (np.cov(image.T, bias=True) + np.cov(text.T, bias=True)) / 2
    return delta, np.atleast_2d(within)


def _stabilize(covariance: np.ndarray) -> np.ndarray:
    size = len(covariance)
    return covariance + max(RIDGE * np.trace(covariance) / size, np.finfo(np.float64).tiny) * np.eye(size)
