"""What a measure needs of its input; each refusal names the measure, what was found and what was expected."""

import numpy as np
from scipy.sparse import csr_array

from thresher.errors import AnalysisError


def need_items(measure: str, found: int, least: int, unit: str) -> None:
    """Raise AnalysisError when there are fewer than `least` units to measure on."""
    if found < least:
        raise AnalysisError(f"{measure}: {found} {unit}, expected at least {least}; give it more {unit} or leave it out")


def need_equal(measure: str, what: str, first: int, second: int) -> None:
    """Raise AnalysisError when two inputs that have to agree in a count or a width do not."""
    if first != second:
        raise AnalysisError(f"{measure}: {what} differ, {first} and {second}; both have to describe the same things")


def need_non_negative(measure: str, codes: csr_array, instead: str) -> None:
    """Raise AnalysisError when a code is negative and the measure means nothing then; `instead` names what does."""
    n_negative = int((codes.data < 0).sum())
    if n_negative:
        found = f"{n_negative} of {codes.nnz} codes are negative"
        raise AnalysisError(f"{measure}: {found}, expected none; use {instead}")


def normalize_rows(x: np.ndarray) -> np.ndarray:
    """Rows at unit length, float64; rows of length zero stay zero."""
    rows = np.asarray(x, dtype=np.float64)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, length, out=np.zeros_like(rows), where=length > 0)


def divide(numerator: np.ndarray | float, denominator: np.ndarray | float) -> np.ndarray:
    """Quotient, NaN where the denominator is 0 or NaN: undefined, never infinite."""
    numerator, denominator = np.broadcast_arrays(np.asarray(numerator, float), np.asarray(denominator, float))
    return np.divide(numerator, denominator, out=np.full(numerator.shape, np.nan), where=np.nan_to_num(denominator) != 0)
