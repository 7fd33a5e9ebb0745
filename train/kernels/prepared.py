"""What a method derives from a dictionary before it sees a row."""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from thresher.train.kernels.rule import Method


class Prepared(NamedTuple):
    """What `prepare` gives; holds as long as the dictionary does not change. Nothing here carries a gradient."""

    method: Method
    """The method that it is for; never `auto`."""
    dictionary: Float[Tensor, "d_sae d_in"]
    """Contiguous, float32 (float64 for the forms in pure torch); may share memory with the dictionary it was made from."""
    gram: Float[Tensor, "d_sae d_sae"] | None = None
    """Inner products of all atoms, in the precision of the method."""
    low: Float[Tensor, "d_sae d_in"] | None = None
    """The dictionary in bfloat16."""
    low_error: Float[Tensor, "d_sae"] | None = None
    """Norm of the difference of each atom and its low copy."""
    gram_error: Float[Tensor, "d_sae"] | None = None
    """Largest rounding error of each stored row of `gram`, off the diagonal."""
