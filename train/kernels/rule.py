"""What a pursuit is asked to do at each step, apart from how fast."""

from typing import Literal, NamedTuple

Sign = Literal["relu", "signed", "abs"]
"""How an atom is chosen from its inner products with the residual.

`relu`: the largest, if positive. `signed`: the largest, whatever its sign. `abs`: the largest in absolute value.
"""

Method = Literal["auto", "reference", "residual", "gram", "numba_gram", "numba_certified", "triton_gram", "triton_certified"]
"""How the inner products are kept.

`reference`: the definition, through plain autograd. `residual`: computed anew at each step. `gram`: updated from the
dictionary's Gram matrix. `numba_gram`, `triton_gram`: the same, compiled for the CPU and for CUDA. `numba_certified`,
`triton_certified`: low precision finds candidates, float32 decides between them. `auto`: `choose_method`.
"""


class Rule(NamedTuple):
    """The choices that decide the result of a pursuit."""

    k: int
    """Steps at most."""
    residual_tol: float | None
    """Stop a row when its residual's norm is at most this fraction of the row's norm."""
    sign: Sign
    reselect: bool
    """May an atom be picked again?"""
