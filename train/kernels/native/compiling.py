"""How loops are compiled."""

from collections.abc import Callable
from typing import Any

from numba import njit


def compiled(function: Callable[..., Any]) -> Any:
    """Compile when first called, to run without the interpreter's lock; keep the result on disk where that can be written.

    A cached function notices changes to its own file only: what calls each other stands in one file.
    """
    # Infinities are used, so no "ninf"; "nnan" lets maxima and "reassoc" lets sums be vectorised.
    options: Any = {"nogil": True, "error_model": "numpy", "fastmath": {"nnan", "nsz", "contract", "reassoc"}}
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # Neither the package nor the user's cache folder can be written.
        return njit(**options)(function)
