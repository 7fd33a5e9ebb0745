"""The sums of moments in loops that numba compiles: one pass over the rows in place of six, and nothing that fills a cache.

Every addition is the one that `moments` makes with numpy, in the same order, so that both give the same bits.
"""

# pyright: reportUntypedFunctionDecorator=none
# numba is not typed

from collections.abc import Callable
from typing import Any, no_type_check

import numpy as np
import numpy.typing as npt
from numba import njit

KINDS = {"float32": 0, "float16": 1, "uint16": 2}
"""numpy type of stored rows -> how their bits become those of float32; uint16 holds bfloat16."""


def _compiled(function: Callable[..., Any]) -> Any:
    """Compiled when first called, to run without the interpreter's lock; kept on disk where that can be written."""
    try:
        return njit(cache=True, nogil=True)(function)
    except RuntimeError:  # Neither the package nor the user's cache folder can be written.
        return njit(nogil=True)(function)


def sum_rows(
    stored: npt.NDArray[Any],
    group_rows: int,
    block: int,
    sums: npt.NDArray[np.float32],
    squared_norms: npt.NDArray[np.float32],
) -> Any:
    """Fill `sums` [2, group, width] of rows and of their squares and `squared_norms` [row]; gives the largest |x|."""
    bits = stored.view(f"u{stored.itemsize}")
    return np.uint32(_sum_rows(bits, KINDS[stored.dtype.name], group_rows, block, sums, squared_norms)).view(np.float32)


@_compiled
@no_type_check
def _sum_rows(rows: Any, kind: int, group_rows: int, block: int, sums: Any, squared_norms: Any) -> Any:
    bits = np.empty(rows.shape[1], np.uint32)
    x, squares = bits.view(np.float32), np.empty(rows.shape[1], np.float32)
    totals, largest = np.empty(block, np.float32), np.uint32(0)
    for row in range(len(rows)):
        _widen(rows[row], kind, bits, x)
        largest = max(largest, _find_largest(bits))
        group = row // group_rows
        if row % group_rows:
            _add(x, sums[0, group], sums[1, group], squares)
        else:
            _start(x, sums[0, group], sums[1, group], squares)
        squared_norms[row] = _sum_row(squares, block, totals)
    return largest


@_compiled
@no_type_check
def _widen(row: Any, kind: int, bits: Any, x: Any) -> None:
    """The bits of stored values as those of float32."""
    if kind == 0:
        for i in range(len(row)):
            bits[i] = row[i]
    elif kind == 2:
        for i in range(len(row)):
            bits[i] = np.uint32(row[i]) << np.uint32(16)
    else:
        # The exponent counts from another place: exact by a product, also of subnormals; infinity and NaN stay what they are.
        for i in range(len(row)):
            bits[i] = (np.uint32(row[i]) & np.uint32(0x7FFF)) << np.uint32(13)
        for i in range(len(row)):
            x[i] = x[i] * np.float32(2.0**112)
        for i in range(len(row)):
            special = np.uint32(0x7F800000) if (row[i] & 0x7C00) == 0x7C00 else np.uint32(0)
            bits[i] = bits[i] | special | ((np.uint32(row[i]) & np.uint32(0x8000)) << np.uint32(16))


@_compiled
@no_type_check
def _find_largest(bits: Any) -> Any:
    """Of the absolute values, as bits, which are in the same order."""
    largest = np.uint32(0)
    for i in range(len(bits)):
        largest = max(largest, bits[i] & np.uint32(0x7FFFFFFF))
    return largest


@_compiled
@no_type_check
def _start(x: Any, total: Any, total_of_squares: Any, squares: Any) -> None:
    for i in range(len(x)):
        square = x[i] * x[i]
        squares[i] = square
        total[i] = x[i]
        total_of_squares[i] = square


@_compiled
@no_type_check
def _add(x: Any, total: Any, total_of_squares: Any, squares: Any) -> None:
    for i in range(len(x)):
        square = x[i] * x[i]
        squares[i] = square
        total[i] += x[i]
        total_of_squares[i] += square


@_compiled
@no_type_check
def _sum_row(values: Any, block: int, totals: Any) -> Any:
    """The sum of a row: of its blocks to one, of that, and what is left of the row."""
    n_blocks = len(values) // block
    total = np.float32(0)
    if n_blocks:
        for i in range(block):
            totals[i] = values[i]
        for start in range(block, n_blocks * block, block):
            _add_block(values[start : start + block], totals)
        total = _sum_short(totals)
    return total + _sum_short(values[n_blocks * block :])


@_compiled
@no_type_check
def _add_block(values: Any, totals: Any) -> None:
    for i in range(len(values)):
        totals[i] += values[i]


@_compiled
@no_type_check
def _sum_short(values: Any) -> Any:
    """The sum of at most 128 values, in the order of numpy's `sum` along contiguous values."""
    n = len(values)
    if n < 8:
        total = np.float32(0)
        for i in range(n):
            total += values[i]
        return total
    a, b, c, d, e, f, g, h = values[0], values[1], values[2], values[3], values[4], values[5], values[6], values[7]
    for i in range(8, n - n % 8, 8):
        a += values[i]
        b += values[i + 1]
        c += values[i + 2]
        d += values[i + 3]
        e += values[i + 4]
        f += values[i + 5]
        g += values[i + 6]
        h += values[i + 7]
    total = ((a + b) + (c + d)) + ((e + f) + (g + h))
    for i in range(n - n % 8, n):
        total += values[i]
    return total
