"""Rows of bfloat16 gathered into float32 in one pass, by a loop that numba compiles."""

# pyright: reportUntypedFunctionDecorator=none
# numba is not typed

from typing import Any, no_type_check

import numpy as np
from numba import njit

SIGNATURE = "void(uint16[:, ::1], int64[::1], uint32[:, ::1])"


@no_type_check
def widen_rows(bits: Any, places: Any, out: Any) -> None:
    """Write the rows of `bits` [place, width] at `places` [row] to `out` [row, width], as the bits of float32."""
    for row in range(len(places)):
        place = places[row]
        for column in range(bits.shape[1]):
            out[row, column] = np.uint32(bits[place, column]) << np.uint32(16)


@no_type_check
def compile_widening() -> Any:
    """`widen_rows`, compiled to run without the interpreter's lock; kept on disk where that can be written."""
    try:
        return njit(SIGNATURE, cache=True, nogil=True)(widen_rows)
    except RuntimeError:  # Neither the package nor the user's cache folder can be written.
        return njit(SIGNATURE, nogil=True)(widen_rows)
