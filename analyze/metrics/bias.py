"""Does a concept's feature move a classifier that has nothing to do with it? For probes on activations, such as of gender."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy.sparse import csr_array
from scipy.special import expit

from thresher.analyze.metrics.grouping import count_rows
from thresher.analyze.metrics.needs import divide, need_equal, need_items


def correlate_with_logit(codes: csr_array, logit: Float[np.ndarray, " row"]) -> Float[np.ndarray, " feature"]:
    """Pearson correlation of each feature's code with a probe's logit on the same rows (MSAE, arXiv 2502.20578); NaN for
    features that are constant. Correlation, not effect: see `sweep_feature`. Raises AnalysisError: other rows, or fewer than 3.
    """
    n = count_rows(codes)
    need_equal("concept bias", "rows of codes and logits", n, len(logit))
    need_items("concept bias", n, 3, "rows")
    mean, square = (np.asarray(codes.power(p).sum(axis=0), dtype=np.float64) / n for p in (1, 2))
    covariance = codes.T.tocsr() @ (logit - logit.mean()) / n
    variance = square - mean**2
    spread = np.sqrt(np.where(variance > 1e-12 * square, variance, np.nan))
    return divide(covariance, spread * float(logit.std()))


def sweep_feature(
    x_hat: Float[np.ndarray, "row d_in"],
    code: Float[np.ndarray, " row"],
    atom: Float[np.ndarray, " d_in"],
    probe: Float[np.ndarray, " d_in"],
    intercept: float,
    values: Sequence[float],
) -> Float[np.ndarray, "row value"]:
    """P(class) of a logistic probe when one feature is set to each value in turn, all others kept: x_hat + (v - z_i) d_i.

    `x_hat` is in the space of the probe, and so is `atom` (un-normalised). Flat for a feature that the probe does not read.
    """
    change = np.asarray(values, dtype=np.float64)[None, :] - code[:, None]
    return expit((x_hat @ probe + intercept)[:, None] + change * float(atom @ probe))
