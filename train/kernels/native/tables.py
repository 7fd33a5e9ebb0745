"""What the compiled loops are given: plain tuples of arrays and numbers, which numba reads by name."""

from typing import Any, NamedTuple

import numpy as np


class Terms(NamedTuple):
    """A `Rule` as the loops read it."""

    is_relu: bool
    is_abs: bool
    may_repeat: bool
    tolerance: np.float32
    """Negative for none."""


class Tables(NamedTuple):
    """What the certified loops know of the dictionary, whose low-precision copies are written d', G' below."""

    dictionary: Any
    low: Any
    gram: Any
    gram_error: Any
    """[d_sae]: at least |G'_ij - <d'_i, d'_j>| for j other than i."""
    atom_error: np.float32
    """At least |d_j - d'_j|, for all atoms."""
    norm: np.float32
    """At least |d_j| and |d'_j|, for all atoms."""
    candidates_at_most: int
    """With more candidates than this, products with all atoms are taken, which also sharpens the bound."""


class State(NamedTuple):
    """One row's work space. `scores` = <d'_j, tracked> + <d_j - d'_j, anchor>, up to the error called drift."""

    scores: Any
    peaks: Any
    tracked: Any
    """[d_in]: what the residual would be, had the low-precision row and atoms been subtracted."""
    anchor: Any
    """[d_in]: the residual that the scores were last computed from exactly; 0 before."""
    candidates: Any
