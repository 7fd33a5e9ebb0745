"""How well codes give back the activations: R2, FVU, NMSE, cosine, L0 (analysis of one modality or of rows pooled)."""

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


def sum_reconstruction(
    x: Float[Tensor, "row d_in"],
    x_hat: Float[Tensor, "row d_in"],
    n_active: Int[np.ndarray, " row"],
    record: Int[np.ndarray, " row"],
    weights: Float[np.ndarray, "replicate record"],
) -> ReconstructionSums:
    """Statistics of one chunk; `record` says which column of `weights` each row takes its weight from.

    Rows or reconstructions of length zero have cosine 0, rows of length zero relative error 0.
    """
    rows, given = x.to("cpu", torch.float64).numpy(), x_hat.to("cpu", torch.float64).numpy()
    norm, given_norm = np.linalg.norm(rows, axis=1), np.linalg.norm(given, axis=1)
    error = np.square(rows - given).sum(1)
    per_row = np.column_stack(
        [
            np.ones(len(rows)),
            norm**2,
            error,
            _divide(error, norm**2),
            _divide((rows * given).sum(1), norm * given_norm),
            n_active.astype(np.float64),
            rows,
            rows * _divide(np.ones(len(rows)), norm)[:, None],
        ]
    )
    sums = weights @ sum_rows(per_row, record, weights.shape[1])
    scalars, d_in = sums[:, :6].T, rows.shape[1]
    return ReconstructionSums(
        n=scalars[0],
        x=sums[:, 6 : 6 + d_in],
        direction=sums[:, 6 + d_in :],
        x_square=scalars[1],
        error_square=scalars[2],
        relative_error=scalars[3],
        cosine=scalars[4],
        n_active=scalars[5],
    )


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


def measure_reconstruction(sums: ReconstructionSums) -> Reconstruction:
    """Closed forms of the sums.

    r2 = 1 - sum ||x - x_hat||^2 / sum ||x - m||^2 with m the mean VECTOR of the same rows (arXiv 2502.12892, eq. 5), so
    that predicting the mean scores 0; fvu = 1 - r2. A scalar mean in place of m would score far too high on activations
    that lie in a cone. For rows of two modalities pooled, m is the pooled mean and r2 also credits explaining the gap
    between them: read it beside the two per-modality numbers.
    nmse = mean ||x - x_hat||^2 / ||x||^2, not centred.
    cosine = mean cos(x, x_hat); cosine_of_mean is what predicting m scores, the floor to read it against.
    l0 = mean number of different active atoms.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = sums.x / sums.n[:, None]
        centred = sums.x_square - sums.n * np.square(mean).sum(1)
        # Rows that are all equal have no variance to explain; what is left of the difference is rounding.
        is_constant = centred <= 1e-12 * sums.x_square
        fvu = np.where(is_constant, np.nan, sums.error_square / np.where(is_constant, 1, centred))
        length = np.linalg.norm(mean, axis=1)
        return Reconstruction(
            r2=1 - fvu,
            fvu=fvu,
            nmse=sums.relative_error / sums.n,
            cosine=sums.cosine / sums.n,
            cosine_of_mean=(sums.direction * mean).sum(1) / length / sums.n,
            l0=sums.n_active / sums.n,
        )


def _divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)
