"""How likely a sum of products is when the texts are dealt to the images at random: the tail by a saddlepoint.

The units of both sides are put into levels of about equal code. How many units have level i on the image and level j on the
text is a table with fixed margins, and when texts are dealt at random it is a table of independent Poisson counts given these
margins. So the tail of T = sum_ij N_ij a_i b_j is that of a conditional distribution, which the double saddlepoint gives
(Skovgaard 1987, "Saddlepoint expansions for conditional distributions"; Booth and Butler 1990 for randomizations). Unlike a
curve through three or four right moments it knows the largest codes, so heavy tails and codes of both signs do no harm.
"""

from collections.abc import Generator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import csr_array
from scipy.special import ndtr
from torch import Tensor

N_LEVELS = 20
"""Levels of a side; the silent units are the first. The largest codes have levels of their own."""
AT_ONCE = 128
"""Tables tilted together."""
N_STEPS, LONGEST, DONE = 100, 2.0, 1e-7
"""Newton steps at most; how much one changes the logarithm of a cell at most; where it is small enough."""


class Levels(NamedTuple):
    """The codes of features over the units of one side, put into levels."""

    value: Float[np.ndarray, "feature level"]
    """Mean code of the units in a level; 0 in the first."""
    units: Float[np.ndarray, "feature level"]
    """Units in it; 0 where fewer levels are needed."""


def find_levels(postings: csr_array, n_units: int) -> Levels:
    """Levels of codes [feature, unit]: one for each stored code where there are few, else of equal sums of |z|^1.5.

    No level has codes of both signs: what few positive codes reach must not drown among many negative ones.
    """
    n_features = len(postings.indptr) - 1
    value, units = np.zeros((2, n_features, N_LEVELS))
    for feature in range(n_features):
        codes = np.sort(postings.data[postings.indptr[feature] : postings.indptr[feature + 1]])
        units[feature, 0] = n_units - len(codes)
        if len(codes) == 0:
            continue
        n_negative, most = int(np.searchsorted(codes, 0.0)), N_LEVELS - 1
        below = min(n_negative, most - min(len(codes) - n_negative, most // 2))
        level = np.concatenate([_divide(codes[:n_negative], below), below + _divide(codes[n_negative:], most - below)])
        units[feature, 1:] = np.bincount(level, minlength=N_LEVELS - 1)
        total = np.bincount(level, weights=codes, minlength=N_LEVELS - 1)
        value[feature, 1:] = total / np.maximum(units[feature, 1:], 1)
    return Levels(value, units)


def _divide(codes: Float[np.ndarray, " code"], n_levels: int) -> Int[np.ndarray, " code"]:
    """The level of each of some sorted codes of one sign, from 0. A code beyond a level's share of what is left has its own."""
    if len(codes) <= n_levels:
        return np.arange(len(codes))
    weight = np.abs(codes) ** 1.5
    largest = np.sort(weight)[::-1][: n_levels - 1]
    left = weight.sum() - np.cumsum(largest) + largest
    n_own = int((largest * (n_levels - np.arange(len(largest))) > left).argmin())
    is_negative = codes[0] < 0
    inner = slice(n_own, None) if is_negative else slice(0, len(codes) - n_own)
    rest = weight[inner]
    share = (np.cumsum(rest) - rest / 2) / rest.sum()
    level = np.minimum((share * (n_levels - n_own)).astype(np.int64), n_levels - n_own - 1)
    own = np.arange(n_own)
    return np.concatenate([own, n_own + level]) if is_negative else np.concatenate([level, n_levels - n_own + own])


def chance_beyond(standardized: Float[np.ndarray, " edge"], image: Levels, text: Levels) -> Float[np.ndarray, " edge"]:
    """P((T - E T) / sd T >= t) over all ways to deal the texts; `standardized` holds t, which has to be above 0.

    `image` and `text` hold the two features of each edge, a line each. Costs about N_LEVELS^3 multiply-adds per edge and step.
    """
    found = np.ones(len(standardized))
    with _one_thread():
        for start in range(0, len(standardized), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            sides = [torch.from_numpy(one[part]) for side in (image, text) for one in side]
            found[part] = _find_tail(_make_tables(*sides), torch.from_numpy(standardized[part]))
    return found


@contextmanager
def _one_thread() -> Generator[None, None, None]:
    """Torch's threads wait for each other after every small operation: with two on a busy machine an edge took 3.7 ms of
    processor time, with one 0.2."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Tables(NamedTuple):
    """Tables of image level by text level."""

    product: Tensor
    """a_i b_j [table, level, level]."""
    start: Tensor
    """Expected counts [table, level, level] when texts are dealt at random."""
    rows: Tensor
    """Margins [table, level]."""
    columns: Tensor
    is_bound: Tensor
    """Columns [table, level] that the rest determines: one of each table, and those without units."""


def _make_tables(a: Tensor, rows: Tensor, b: Tensor, columns: Tensor) -> _Tables:
    start = rows[:, :, None] * columns[:, None, :] / rows.sum(1)[:, None, None]
    is_bound = columns == 0
    is_bound[torch.arange(len(columns)), columns.argmax(1)] = True
    return _Tables(a[:, :, None] * b[:, None, :], start, rows, columns, is_bound)


class _Tilt(NamedTuple):
    """Cells are `start` exp(slope a_i b_j + row_i + column_j)."""

    slope: Tensor
    row: Tensor
    column: Tensor


def _cells(tables: _Tables, tilt: _Tilt) -> Tensor:
    exponent = tilt.slope[:, None, None] * tables.product + tilt.row[:, :, None] + tilt.column[:, None, :]
    return tables.start * exponent.clamp(max=500).exp()


class _Curvature(NamedTuple):
    """Second derivatives at some cells, the rows eliminated: what is left are columns and slope."""

    row_sums: Tensor
    share: Tensor
    """Cells over the sum of their row."""
    factor: Tensor
    """Cholesky factor of the columns [table, level, level]."""
    by_row: Tensor
    """sum_j cell a_i b_j."""
    by_column: Tensor
    """sum_i cell a_i b_j less what the rows explain."""
    solved: Tensor
    """`by_column` over the columns' matrix."""
    variance: Tensor
    """Of T given the margins [table]."""
    log_determinant: Tensor
    """Of rows and columns without the slope [table]."""


def _curve(tables: _Tables, cells: Tensor) -> _Curvature:
    row_sums = cells.sum(2).clamp_min(1e-290)
    share = cells / row_sums[:, :, None]
    matrix = torch.diag_embed(cells.sum(1)) - share.mT @ cells
    bound = tables.is_bound
    matrix = matrix.masked_fill(bound[:, :, None] | bound[:, None, :], 0.0)
    # Rounding may leave an eigenvalue a little below 0; a bound column is a line of the identity.
    matrix = matrix + torch.diag_embed(bound.double() + 1e-13 * cells.sum((1, 2))[:, None])
    factor = torch.linalg.cholesky_ex(matrix).L
    weighted = cells * tables.product
    by_row = weighted.sum(2)
    by_column = (weighted.sum(1) - torch.einsum("tij,ti->tj", share, by_row)).masked_fill(bound, 0.0)
    solved = torch.cholesky_solve(by_column[:, :, None], factor)[:, :, 0]
    explained = (by_row.square() / row_sums).sum(1) + (by_column * solved).sum(1)
    variance = (weighted * tables.product).sum((1, 2)) - explained
    logs = torch.where(tables.rows > 0, row_sums.log(), 0.0).sum(1) + 2 * factor.diagonal(dim1=1, dim2=2).log().sum(1)
    return _Curvature(row_sums, share, factor, by_row, by_column, solved, variance, logs)


def _step(tables: _Tables, cells: Tensor, target: Tensor) -> _Tilt:
    """A Newton step towards the margins and towards T = `target`."""
    at = _curve(tables, cells)
    row_gap, column_gap = tables.rows - cells.sum(2), tables.columns - cells.sum(1)
    gap = target - (cells * tables.product).sum((1, 2))
    left = (column_gap - torch.einsum("tij,ti->tj", at.share, row_gap)).masked_fill(tables.is_bound, 0.0)
    solved = torch.cholesky_solve(left[:, :, None], at.factor)[:, :, 0]
    gap = gap - (at.by_row * row_gap / at.row_sums).sum(1) - (at.by_column * solved).sum(1)
    slope = gap / at.variance.clamp_min(1e-290)
    column = solved - at.solved * slope[:, None]
    row = (row_gap - torch.einsum("tij,tj->ti", cells, column) - at.by_row * slope[:, None]) / at.row_sums
    return _Tilt(slope, row.masked_fill(tables.rows == 0, 0.0), column)


def _find_tilt(tables: _Tables, target: Tensor) -> _Tilt:
    """The tilt at which margins and the mean of T are as asked for, as far as the steps go."""
    tilt = _Tilt(torch.zeros_like(target), torch.zeros_like(tables.rows), torch.zeros_like(tables.columns))
    moving = torch.arange(len(target))
    for _ in range(N_STEPS):
        some, now = _Tables(*(one[moving] for one in tables)), _Tilt(*(one[moving] for one in tilt))
        step = _step(some, _cells(some, now), target[moving])
        change = step.slope[:, None, None] * some.product + step.row[:, :, None] + step.column[:, None, :]
        size = torch.where(some.start > 0, change.abs(), 0.0).amax((1, 2))
        length = (LONGEST / size.clamp_min(1e-290)).clamp(max=1.0)
        length = torch.where(size.isfinite(), length, 0.0)
        for whole, part in zip(tilt, step, strict=True):
            whole[moving] += torch.nan_to_num(part) * length.reshape(-1, *[1] * (part.ndim - 1))
        moving = moving[size > DONE]
        if len(moving) == 0:
            break
    return tilt


def _find_tail(tables: _Tables, standardized: Tensor) -> Float[np.ndarray, " table"]:
    n = tables.rows.sum(1)
    flat = _curve(tables, tables.start)
    mean = (tables.start * tables.product).sum((1, 2))
    target = mean + standardized * (flat.variance * n / (n - 1)).sqrt()
    tilt = _find_tilt(tables, target)
    curved = _curve(tables, _cells(tables, tilt))
    distance = tilt.slope * target + (tilt.row * tables.rows).sum(1) + (tilt.column * tables.columns).sum(1)
    w = (2 * distance).clamp_min(1e-12).sqrt().numpy()
    spread = (curved.variance.clamp_min(0) * (curved.log_determinant - flat.log_determinant).exp()).sqrt()
    u = (tilt.slope * spread).numpy()
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        found = ndtr(-w) + np.exp(-np.square(w) / 2) / np.sqrt(2 * np.pi) * (1 / u - 1 / w)
    # Beyond what the levels can reach there is no tilt; the leading term then stands alone.
    return np.where(np.isfinite(found) & (found > 0), np.minimum(found, 1.0), ndtr(-w))
