"""What a pursuit does step by step: does the residual shrink, stay orthogonal to the picks, and pick atoms again?

Modality by step is in `analyze/battery/steps.py`. A pursuit picks, at every step, the atom most alike the residual.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_array

from thresher.analyze.metrics.code_structure import measure_code_rank
from thresher.analyze.metrics.needs import divide, need_equal, need_items, normalize_rows


class Pursuit(NamedTuple):
    """Means over the rows that still pick at a step; NaN where none does."""

    residual: Float[np.ndarray, " steps_and_start"]
    """Mean ||r_t|| after 0, 1, ..., k picks, over all rows."""
    rise: float
    """Largest ||r_t|| / ||r_(t-1)|| - 1 of any row and pick: never above rounding for unit atoms and best coefficients."""
    alignment: Float[np.ndarray, "step step"]
    """[t, s]: mean |cos(r_t, d_j(s))| of the residual after step t with the atom of step s <= t, both from 0; NaN for s > t.
    Guaranteed to be 0 only on the diagonal (arXiv 2506.03093, proposition 3.1); below it for orthogonal pursuits too."""
    again: Float[np.ndarray, " step"]
    """Share of picks that are of an atom the row already has."""
    negative: Float[np.ndarray, " step"]
    """Share of picks with a negative coefficient."""


def trace_pursuit(
    x: Float[np.ndarray, "row d_in"],
    indices: Int[np.ndarray, "row k"],
    values: Float[np.ndarray, "row k"],
    dictionary: Float[np.ndarray, "d_sae d_in"],
) -> Pursuit:
    """Take the picks off `x` one by one, in the order of selection; picks of coefficient 0 are padding.

    `x` is what the pursuit started from: normalised, without the bias. For orthogonal pursuit, whose coefficients change at
    every step, only the last residual is its own. A residual that is 0 up to rounding is orthogonal to everything.
    Costs O(row k^2 d_in): give it some 1,000 rows. Raises AnalysisError: no rows.
    """
    need_items("pursuit", len(x), 1, "rows")
    k, start = indices.shape[1], np.linalg.norm(x, axis=1)
    unit, active = normalize_rows(dictionary), values != 0
    residual, before, rise = x, start, -np.inf
    norms, alignment = np.empty(k + 1), np.full((k, k), np.nan)
    norms[0] = start.mean()
    for t in range(k):
        residual = residual - values[:, t, None] * dictionary[indices[:, t]]
        norm = np.linalg.norm(residual, axis=1)
        grown = norm[active[:, t] & (before > 1e-9 * start)] / before[active[:, t] & (before > 1e-9 * start)]
        rise, norms[t + 1], before = max(rise, float(grown.max(initial=0)) - 1), norm.mean(), norm
        direction = np.where((norm > 1e-9 * start)[:, None], normalize_rows(residual), 0.0)
        cosine = np.abs(np.einsum("rd,rsd->rs", direction, unit[indices[:, : t + 1]]))
        picks = active[:, [t]] & active[:, : t + 1]
        alignment[t, : t + 1] = divide((cosine * picks).sum(axis=0), picks.sum(axis=0))
    repeats = _mark_repeats(indices, active)
    n_picks = active.sum(axis=0)
    return Pursuit(norms, rise, alignment, divide(repeats.sum(axis=0), n_picks), divide((values < 0).sum(axis=0), n_picks))


def trace_code_rank(
    indices: Int[np.ndarray, "row k"], values: Float[np.ndarray, "row k"], d_sae: int, prefixes: Sequence[int]
) -> Float[np.ndarray, " prefix"]:
    """Effective rank of the codes (`measure_code_rank`) of the first 1, 2, ... picks: said to grow with the steps on vision
    and to rise and fall on language (arXiv 2506.03093). Compare at equal numbers of rows, which bound it.
    """
    need_items("effective rank by step", values.shape[1], max(prefixes), "coefficients per row")
    need_equal("effective rank by step", "shapes of indices and values", indices.size, values.size)
    return np.array([measure_code_rank(_to_matrix(indices[:, :k], values[:, :k], d_sae)) for k in prefixes])


def _to_matrix(indices: np.ndarray, values: np.ndarray, d_sae: int) -> csr_array:
    starts = np.arange(len(indices) + 1, dtype=np.int64) * indices.shape[1]
    matrix = csr_array((values.ravel().copy(), indices.ravel().copy(), starts), shape=(len(indices), d_sae))
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    return matrix


def _mark_repeats(indices: np.ndarray, active: np.ndarray) -> np.ndarray:
    repeats = np.zeros_like(active)
    for t in range(1, indices.shape[1]):
        repeats[:, t] = active[:, t] & ((indices[:, :t] == indices[:, [t]]) & active[:, :t]).any(axis=1)
    return repeats
