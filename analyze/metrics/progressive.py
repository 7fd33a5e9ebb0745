"""Progressive recovery: how the reconstruction improves with the number of coefficients that are kept."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from thresher.analyze.metrics.needs import divide, need_items

ROWS_AT_ONCE = 1024


class Recovery(NamedTuple):
    """One number per prefix."""

    k: Int[np.ndarray, " prefix"]
    """Coefficients kept per row."""
    fvu: Float[np.ndarray, " prefix"]
    """1 - R2, around the mean vector of the rows; NaN when all rows are equal."""
    nmse: Float[np.ndarray, " prefix"]
    """mean ||x - x_hat||^2 / ||x||^2 over the rows that are not 0."""
    cosine: Float[np.ndarray, " prefix"]
    """mean cos(x, x_hat) over the rows that are not 0; 0 where x_hat is 0."""
    dead: Float[np.ndarray, " prefix"]
    """Share of features that no row keeps."""


def order_by_size(
    indices: Int[np.ndarray, "row k"], values: Float[np.ndarray, "row k"]
) -> tuple[Int[np.ndarray, "row k"], Float[np.ndarray, "row k"]]:
    """The codes with the largest |coefficient| first: the order in which TopK-like codes are cut (MSAE, arXiv 2502.20578)."""
    order = np.argsort(-np.abs(values), axis=1, kind="stable")
    return np.take_along_axis(indices, order, axis=1), np.take_along_axis(values, order, axis=1)


def trace_recovery(
    x: Float[np.ndarray, "row d_in"],
    indices: Int[np.ndarray, "row k"],
    values: Float[np.ndarray, "row k"],
    dictionary: Float[np.ndarray, "d_sae d_in"],
    bias: Float[np.ndarray, "*group d_in"],
    prefixes: Sequence[int],
) -> Recovery:
    """Measures with the first 0 <= k' <= k coefficients of each row, for every k' in `prefixes` (ascending).

    The order of the columns is the order of keeping: that of selection for matching pursuit, whose prefixes are its codes of
    fewer steps (arXiv 2506.03093), `order_by_size` for codes without an order. `bias` [d_in] or [row, d_in] is added always.
    One reconstruction is grown, so it costs O(row * k * d_in) for all prefixes together.
    Raises AnalysisError: fewer than 2 rows, or a prefix longer than the codes.
    """
    need_items("progressive recovery", len(x), 2, "rows")
    need_items("progressive recovery", values.shape[1], max(prefixes), "coefficients per row")
    sums = np.zeros((3, len(prefixes)))
    kept = np.zeros((len(prefixes), len(dictionary)), dtype=bool)
    for start in range(0, len(x), ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        offset = np.broadcast_to(bias, x.shape)[part]
        sums += _grow(x[part], indices[part], values[part], dictionary, offset, prefixes)
        for line, k in enumerate(prefixes):
            alive = values[part, :k] != 0
            kept[line, indices[part, :k][alive]] = True
    centred = np.square(x - x.mean(axis=0)).sum()
    n_nonzero = float((np.square(x).sum(axis=1) > 0).sum())
    is_constant = centred <= 1e-12 * np.square(x).sum()
    return Recovery(
        k=np.array(prefixes, dtype=np.int64),
        fvu=np.full(len(prefixes), np.nan) if is_constant else sums[0] / centred,
        nmse=divide(sums[1], n_nonzero),
        cosine=divide(sums[2], n_nonzero),
        dead=1 - kept.mean(axis=1),
    )


def _grow(
    x: np.ndarray, indices: np.ndarray, values: np.ndarray, dictionary: np.ndarray, bias: np.ndarray, prefixes: Sequence[int]
) -> np.ndarray:
    """Sums over rows of squared error, relative squared error and cosine, [3, prefix]."""
    found, done, x_hat = np.empty((3, len(prefixes))), 0, bias.astype(np.float64)
    square = np.square(x).sum(axis=1)
    for line, k in enumerate(prefixes):
        for step in range(done, k):
            x_hat = x_hat + values[:, step, None] * dictionary[indices[:, step]]
        done = max(done, k)
        error = np.square(x - x_hat).sum(axis=1)
        cosine = np.nan_to_num(divide((x * x_hat).sum(axis=1), np.sqrt(square) * np.linalg.norm(x_hat, axis=1)))
        found[:, line] = error.sum(), np.nansum(divide(error, square)), cosine.sum()
    return found
