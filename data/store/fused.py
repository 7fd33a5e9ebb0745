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

from thresher.data.store.moments import BLOCK_WIDTH, GROUP_ROWS

TOGETHER = 4
"""Rows added to the sums in one pass: the sums are read and written a quarter as often."""
NOTHING = np.float32(-0.0)
"""Where a sum begins: plus a number it is that number to the last bit, also plus the zero that is negative."""
KINDS = {"float32": 0, "float16": 1, "uint16": 2}
"""numpy type of stored rows -> how their bits become those of float32; uint16 holds bfloat16."""


def _compiled(function: Callable[..., Any]) -> Any:
    """Compiled when first called, to run without the interpreter's lock; kept on disk where that can be written."""
    try:
        return njit(cache=True, nogil=True)(function)
    except RuntimeError:  # Neither the package nor the user's cache folder can be written.
        return njit(nogil=True)(function)


def sum_rows(stored: npt.NDArray[Any], sums: npt.NDArray[np.float32], squared_norms: npt.NDArray[np.float32]) -> Any:
    """Fill `sums` [2, group, width] of rows and of their squares and `squared_norms` [row]; gives the largest |x|."""
    bits = stored.view(f"u{stored.itemsize}")
    return np.uint32(_sum_rows(bits, KINDS[stored.dtype.name], sums, squared_norms)).view(np.float32)


@_compiled
@no_type_check
def _sum_rows(rows: Any, kind: int, sums: Any, squared_norms: Any) -> Any:
    width = rows.shape[1]
    bits = np.empty((TOGETHER, width), np.uint32)
    x, totals = bits.view(np.float32), np.empty(BLOCK_WIDTH, np.float32)
    largest = np.uint32(0)
    for start in range(0, len(rows), TOGETHER):
        n, group = min(TOGETHER, len(rows) - start), start // GROUP_ROWS
        total, total_of_squares = sums[0, group], sums[1, group]
        if start % GROUP_ROWS == 0:
            total[:] = NOTHING
            total_of_squares[:] = NOTHING
        for i in range(n):
            _widen(rows[start + i], kind, bits[i], x[i])
            largest = max(largest, _find_largest(bits[i]))
            squared_norms[start + i] = _sum_squares(x[i], totals)
        if n == TOGETHER:
            _add_rows(x[0], x[1], x[2], x[3], total, total_of_squares)
        else:
            for i in range(n):
                _add_row(x[i], total, total_of_squares)
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
def _add_rows(a: Any, b: Any, c: Any, d: Any, total: Any, total_of_squares: Any) -> None:
    """One after the other, in one pass."""
    for i in range(len(total)):
        total[i] = (((total[i] + a[i]) + b[i]) + c[i]) + d[i]
        total_of_squares[i] = (((total_of_squares[i] + a[i] * a[i]) + b[i] * b[i]) + c[i] * c[i]) + d[i] * d[i]


@_compiled
@no_type_check
def _add_row(x: Any, total: Any, total_of_squares: Any) -> None:
    for i in range(len(x)):
        total[i] += x[i]
        total_of_squares[i] += x[i] * x[i]


@_compiled
@no_type_check
def _sum_squares(x: Any, totals: Any) -> Any:
    """Of a row: its blocks are added to one, and that and what is left of the row are summed up."""
    stop = len(x) - len(x) % BLOCK_WIDTH
    total = np.float32(0)
    if stop:
        totals[:] = NOTHING
        start = 0
        while start + 4 * BLOCK_WIDTH <= stop:
            part = x[start : start + 4 * BLOCK_WIDTH]
            for i in range(BLOCK_WIDTH):
                a, b, c, d = part[i], part[BLOCK_WIDTH + i], part[2 * BLOCK_WIDTH + i], part[3 * BLOCK_WIDTH + i]
                totals[i] = (((totals[i] + a * a) + b * b) + c * c) + d * d
            start += 4 * BLOCK_WIDTH
        while start < stop:
            part = x[start : start + BLOCK_WIDTH]
            for i in range(BLOCK_WIDTH):
                totals[i] += part[i] * part[i]
            start += BLOCK_WIDTH
        total = _sum_short(totals)
    rest = totals[: len(x) - stop]
    for i in range(len(rest)):
        rest[i] = x[stop + i] * x[stop + i]
    return total + _sum_short(rest)


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
