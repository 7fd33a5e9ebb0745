"""How well codes give back the activations: R2, three FVUs, cosine, shrinkage, L0 (of one modality, or of rows pooled)."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from thresher.analyze.metrics.grouping import sum_rows


class ReconstructionSums(NamedTuple):
    """Sufficient statistics over rows, float64, one line per replicate; sums of two chunks are their sum."""

    n: Float[np.ndarray, " replicate"]
    """Rows, weighted."""
    x: Float[np.ndarray, "replicate d_in"]
    """Sum of x."""
    direction: Float[np.ndarray, "replicate d_in"]
    """Sum of x / ||x||."""
    x_square: Float[np.ndarray, " replicate"]
    """Sum of ||x||^2."""
    error_square: Float[np.ndarray, " replicate"]
    """Sum of ||x - x_hat||^2."""
    relative_error: Float[np.ndarray, " replicate"]
    """Sum of ||x - x_hat||^2 / ||x||^2."""
    cosine: Float[np.ndarray, " replicate"]
    """Sum of cos(x, x_hat)."""
    n_active: Float[np.ndarray, " replicate"]
    """Sum of L0."""
    x_hat_square: Float[np.ndarray, " replicate"]
    """Sum of ||x_hat||^2."""
    inner: Float[np.ndarray, " replicate"]
    """Sum of <x, x_hat>."""
    length_ratio: Float[np.ndarray, " replicate"]
    """Sum of ||x_hat|| / ||x||."""
    relative_variance: Float[np.ndarray, " replicate"]
    """Sum of Var(x - x_hat) / Var(x), each over the dimensions of one row."""
    n_nonzero: Float[np.ndarray, " replicate"]
    """Rows of a length above 0, weighted: what relative errors, cosines and length ratios are means over."""
    n_varying: Float[np.ndarray, " replicate"]
    """Rows whose entries are not all equal, weighted."""


def sum_reconstruction(
    x: Float[Tensor, "row d_in"],
    x_hat: Float[Tensor, "row d_in"],
    n_active: Int[np.ndarray, " row"],
    record: Int[np.ndarray, " row"],
    weights: Float[np.ndarray, "replicate record"],
) -> ReconstructionSums:
    """Statistics of one chunk; `record` says which column of `weights` each row takes its weight from.

    Rows of length zero have no relative error, cosine or length ratio, rows whose entries are all equal no relative variance:
    they count in none of these means. A reconstruction of length zero has cosine 0.
    """
    rows, given = x.to("cpu", torch.float64).numpy(), x_hat.to("cpu", torch.float64).numpy()
    norm, given_norm = np.linalg.norm(rows, axis=1), np.linalg.norm(given, axis=1)
    error, inner = np.square(rows - given).sum(1), (rows * given).sum(1)
    scalars = [
        np.ones(len(rows)),
        norm**2,
        error,
        _divide(error, norm**2),
        _divide(inner, norm * given_norm),
        n_active.astype(np.float64),
        given_norm**2,
        inner,
        _divide(given_norm, norm),
        _divide((rows - given).var(axis=1), rows.var(axis=1)),
        (norm > 0).astype(np.float64),
        (rows.var(axis=1) > 0).astype(np.float64),
    ]
    directions = rows * _divide(np.ones(len(rows)), norm)[:, None]
    per_row = np.column_stack([*scalars, rows, directions])
    sums = weights @ sum_rows(per_row, record, weights.shape[1])
    n, x_square, error_square, relative_error, cosine, active, *rest = sums[:, : len(scalars)].T
    x_sum, direction = np.split(sums[:, len(scalars) :], 2, axis=1)
    return ReconstructionSums(n, x_sum, direction, x_square, error_square, relative_error, cosine, active, *rest)


def add_reconstruction(first: ReconstructionSums, second: ReconstructionSums) -> ReconstructionSums:
    """Statistics of two chunks together, or of two modalities pooled."""
    return ReconstructionSums(*(a + b for a, b in zip(first, second, strict=True)))


class Reconstruction(NamedTuple):
    """Measures per replicate; NaN where undefined."""

    r2: Float[np.ndarray, " replicate"]
    fvu: Float[np.ndarray, " replicate"]
    nmse: Float[np.ndarray, " replicate"]
    cosine: Float[np.ndarray, " replicate"]
    cosine_of_mean: Float[np.ndarray, " replicate"]
    l0: Float[np.ndarray, " replicate"]
    fvu_over_dimensions: Float[np.ndarray, " replicate"]
    r2_scalar_mean: Float[np.ndarray, " replicate"]
    """Too high on activations with a common mean; only to reproduce published numbers."""
    length_ratio: Float[np.ndarray, " replicate"]
    bias: Float[np.ndarray, " replicate"]


def measure_reconstruction(sums: ReconstructionSums) -> Reconstruction:
    """Closed forms of the sums.

    r2 = 1 - sum ||x - x_hat||^2 / sum ||x - m||^2 with m the mean VECTOR of the same rows (arXiv 2502.12892, eq. 5), so
    that predicting the mean scores 0; fvu = 1 - r2. A scalar mean in place of m would score far too high on activations
    that lie in a cone. For rows of two modalities pooled, m is the pooled mean and r2 also credits explaining the gap
    between them: read it beside the two per-modality numbers.
    nmse = mean ||x - x_hat||^2 / ||x||^2, not centred (MSAE, arXiv 2502.20578; OpenAI, arXiv 2406.04093), and
    fvu_over_dimensions = mean Var(x - x_hat) / Var(x), variances over the dimensions of each row (MSAE's evaluation): three
    different numbers, all called "fraction of variance unexplained" somewhere.
    r2_scalar_mean = r2 with the mean of all entries in place of m (overcomplete 0.3.0's `r2_score`): the mean vector of a
    cone scores 0.88 there, so it is for reproduction only.
    cosine = mean cos(x, x_hat); cosine_of_mean is what predicting m scores, the floor to read it against.
    length_ratio = mean ||x_hat|| / ||x||, below 1 where codes shrink; bias = E||x_hat||^2 / E<x, x_hat>, 1 when no rescaling
    of x_hat would help (arXiv 2404.16014, eq. 10; SAEBench, arXiv 2503.09532).
    l0 = mean number of different active atoms.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = sums.x / sums.n[:, None]
        centred = sums.x_square - sums.n * np.square(mean).sum(1)
        # Rows that are all equal have no variance to explain; what is left of the difference is rounding.
        is_constant = centred <= 1e-12 * sums.x_square
        fvu = np.where(is_constant, np.nan, sums.error_square / np.where(is_constant, 1, centred))
        length = np.linalg.norm(mean, axis=1)
        around_scalar = sums.x_square - np.square(sums.x.sum(axis=1)) / (sums.n * sums.x.shape[1])
        is_flat = around_scalar <= 1e-12 * sums.x_square
        return Reconstruction(
            r2=1 - fvu,
            fvu=fvu,
            nmse=sums.relative_error / sums.n_nonzero,
            cosine=sums.cosine / sums.n_nonzero,
            cosine_of_mean=(sums.direction * mean).sum(1) / length / sums.n_nonzero,
            l0=sums.n_active / sums.n,
            fvu_over_dimensions=sums.relative_variance / sums.n_varying,
            r2_scalar_mean=np.where(is_flat, np.nan, 1 - sums.error_square / np.where(is_flat, 1, around_scalar)),
            length_ratio=sums.length_ratio / sums.n_nonzero,
            bias=np.where(sums.inner == 0, np.nan, sums.x_hat_square / np.where(sums.inner == 0, 1, sums.inner)),
        )


def _divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)
