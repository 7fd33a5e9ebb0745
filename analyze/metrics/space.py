"""The space of embeddings, before any dictionary: the gap between the modalities, cones, isotropy, effective rank."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from thresher.analyze.metrics.needs import divide, need_items, normalize_rows


class SpaceGap(NamedTuple):
    """The modality gap of embeddings at unit norm (arXiv 2203.02053)."""

    norm: float
    """||mean image - mean text||, between 0 and 2."""
    relative: float
    """Norm over the mean distance of an embedding from its own modality's mean; NaN when nothing is spread."""
    separability: float
    """Share of rows on their own modality's side of Fisher's discriminant, both modalities weighing half, judged on the
    odd rows and fitted on the even ones, and the other way round; 0.5 when there is no gap."""


def measure_space_gap(image: Float[np.ndarray, "image d_in"], text: Float[np.ndarray, "text d_in"]) -> SpaceGap:
    """The gap between image and text embeddings. Raises AnalysisError: fewer than 4 rows of a modality."""
    for name, rows in (("image", image), ("text", text)):
        need_items("modality gap", len(rows), 4, f"{name} rows")
    sides = [normalize_rows(image), normalize_rows(text)]
    means = [side.mean(axis=0) for side in sides]
    norm = float(np.linalg.norm(means[0] - means[1]))
    spread = np.mean([np.linalg.norm(side - mean, axis=1).mean() for side, mean in zip(sides, means, strict=True)])
    halves = [[side[::2] for side in sides], [side[1::2] for side in sides]]
    judged = [_judge(halves[0], halves[1]), _judge(halves[1], halves[0])]
    return SpaceGap(norm, float(divide(norm, float(spread))), float(np.mean(judged)))


class ShiftedGap(NamedTuple):
    """One number per shift."""

    norm: Float[np.ndarray, " shift"]
    """Gap that is left."""
    paired: Float[np.ndarray, " shift"]
    """Mean cosine of matched pairs."""
    unpaired: Float[np.ndarray, " shift"]
    """Mean cosine of pairs that do not match."""


def sweep_shift(
    image: Float[np.ndarray, "pair d_in"], text: Float[np.ndarray, "pair d_in"], shifts: Sequence[float]
) -> ShiftedGap:
    """Move images by -lambda / 2 and texts by +lambda / 2 along the gap's direction, normalise, measure (arXiv 2203.02053).

    Row n of both is one pair. Lambda = 0 is the space as it is. Raises AnalysisError: fewer than 2 pairs, or no gap.
    """
    need_items("gap sweep", len(image), 2, "pairs")
    sides = normalize_rows(image), normalize_rows(text)
    delta = sides[0].mean(axis=0) - sides[1].mean(axis=0)
    need_items("gap sweep", int(np.linalg.norm(delta) > 0), 1, "gaps (the two means are equal)")
    half = delta / np.linalg.norm(delta) / 2
    n, found = len(image), np.empty((3, len(shifts)))
    for place, shift in enumerate(shifts):
        moved = normalize_rows(sides[0] - shift * half), normalize_rows(sides[1] + shift * half)
        sums = moved[0].sum(axis=0), moved[1].sum(axis=0)
        paired = float((moved[0] * moved[1]).sum())
        found[:, place] = np.linalg.norm(sums[0] - sums[1]) / n, paired / n, (sums[0] @ sums[1] - paired) / (n * (n - 1))
    return ShiftedGap(*found)


def measure_cone(x: Float[np.ndarray, "row d_in"]) -> float:
    """Mean cosine of two different rows, (||sum x||^2 - n) / (n (n - 1)) with unit x: 0 for directions all around, 1 for one.

    Raises AnalysisError: fewer than 2 rows that are not 0.
    """
    unit = normalize_rows(x[np.linalg.norm(x, axis=1) > 0])
    n = len(unit)
    need_items("mean cosine", n, 2, "rows that are not 0")
    return (float(np.square(unit.sum(axis=0)).sum()) - n) / (n * (n - 1))


class Spectrum(NamedTuple):
    """Eigenvalues of the covariance of rows, and what they say about how many directions are used."""

    eigenvalues: Float[np.ndarray, " d_in"]
    """Descending, never negative."""
    effective_rank: float
    """exp of the entropy of the eigenvalues (Roy & Vetterli 2007), between 1 and d_in; NaN when all rows are equal."""
    participation: float
    """(sum)^2 / sum of squares, between 1 and d_in."""
    iso_score: float
    """(participation - 1) / (d_in - 1): IsoScore (arXiv 2108.07344), 1 when all directions vary alike, 0 when one does."""


def measure_spectrum(x: Float[np.ndarray, "row d_in"]) -> Spectrum:
    """The spectrum of the covariance of rows. Raises AnalysisError: fewer than 2 rows or dimensions."""
    need_items("spectrum", len(x), 2, "rows")
    need_items("IsoScore", x.shape[1], 2, "dimensions")
    eigenvalues = np.linalg.eigvalsh(np.cov(x.T))[::-1]
    noise = np.finfo(np.float64).eps * len(eigenvalues) * max(float(np.square(x).sum(axis=1).mean()), 0.0)
    kept = np.where(eigenvalues > noise, eigenvalues, 0.0)
    participation = float(divide(kept.sum() ** 2, np.square(kept).sum()))
    return Spectrum(kept, count_effective(kept), participation, (participation - 1) / (x.shape[1] - 1))


def count_effective(weights: Float[np.ndarray, " value"]) -> float:
    """exp(-sum p log p), p = weights / their sum: how many equal weights would be as spread; NaN when all are 0."""
    p = weights[weights > 0] / weights.sum() if weights.sum() > 0 else np.array([np.nan])
    return float(np.exp(-(p * np.log(p)).sum()))


def _judge(fitted: Sequence[np.ndarray], judged: Sequence[np.ndarray]) -> float:
    means = [side.mean(axis=0) for side in fitted]
    within = np.atleast_2d(np.cov(fitted[0].T, bias=True) + np.cov(fitted[1].T, bias=True))
    penalty = max(1e-3 * float(np.trace(within)) / len(within), np.finfo(np.float64).tiny)
    direction = np.linalg.solve(within + penalty * np.eye(len(within)), means[0] - means[1])
    threshold = direction @ (means[0] + means[1]) / 2
    margins = judged[0] @ direction - threshold, threshold - judged[1] @ direction
    # Exactly on the line is half right, so that no gap at all gives 0.5.
    return float(np.mean([np.mean(np.where(side == 0, 0.5, side > 0)) for side in margins]))
