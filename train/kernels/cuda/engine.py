"""The methods `triton_gram` and `triton_certified`: what `thresher.train.kernels.engines` asks of a form."""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from thresher.train.kernels.cuda import ops
from thresher.train.kernels.cuda.certified import round_to_tf32
from thresher.train.kernels.cuda.device import require_device
from thresher.train.kernels.forms import Picked
from thresher.train.kernels.prepared import Prepared
from thresher.train.kernels.rule import Rule


def prepare_gram(dictionary: Float[Tensor, "d_sae d_in"], *, stored: Literal["fp16", "fp32"] = "fp16") -> Prepared:
    """The Gram matrix of the atoms in bf16, kept in fp16: 2 d_sae^2 bytes and d_sae^2 d_in low-precision flops.

    With `stored="fp32"` atoms and matrix stay in fp32, for twice the memory and about 10 times the time. Either way the
    picks are those of fp32 inner products.
    """
    require_device(dictionary, "method='triton_gram'")
    low, low_error = _lower(dictionary, torch.float32 if stored == "fp32" else torch.bfloat16)
    gram, gram_error = ops.correlate_atoms(low, stored)
    return Prepared("triton_gram", dictionary, gram, low, low_error, gram_error)


def prepare_certified(dictionary: Float[Tensor, "d_sae d_in"], *, precision: Literal["bf16", "tf32"] = "bf16") -> Prepared:
    """The atoms in low precision. tf32 takes twice the time of bf16 and names an eighth as many false rivals."""
    require_device(dictionary, "method='triton_certified'")
    if precision == "tf32":
        low = round_to_tf32(dictionary)
        return Prepared("triton_certified", dictionary, low=low, low_error=torch.linalg.vector_norm(dictionary - low, dim=1))
    low, low_error = _lower(dictionary, torch.bfloat16)
    return Prepared("triton_certified", dictionary, low=low, low_error=low_error)


def pursue_gram(x: Float[Tensor, "row d_in"], prepared: Prepared, rule: Rule) -> Picked:
    """Pursuit by rows of the Gram matrix, any dictionary size; holds [row, d_sae] scores for a chunk of rows."""
    require_device(x, "method='triton_gram'")
    gram, gram_error, low, low_error = prepared.gram, prepared.gram_error, prepared.low, prepared.low_error
    if gram is None or gram_error is None or low is None or low_error is None:
        raise ValueError("method='triton_gram' needs what prepare_gram gives, found a dictionary without a Gram matrix")
    return ops.pursue_gram(x.contiguous(), prepared.dictionary, gram, gram_error, low, low_error, *rule)


def pursue_certified(x: Float[Tensor, "row d_in"], prepared: Prepared, rule: Rule) -> Picked:
    """Pursuit with one low-precision product per step; holds the best scores per tile of atoms, never [row, d_sae]."""
    require_device(x, "method='triton_certified'")
    low, low_error = prepared.low, prepared.low_error
    if low is None or low_error is None:
        raise ValueError("method='triton_certified' needs what prepare_certified gives, found no low-precision dictionary")
    return ops.pursue_certified(x.contiguous(), prepared.dictionary, low, low_error, *rule)


def step_back(
    indices: Int[Tensor, "row k"],
    values: Float[Tensor, "row k"],
    residual: Float[Tensor, "row d_in"],
    dictionary: Float[Tensor, "d_sae d_in"],
    for_values: Float[Tensor, "row k"] | None,
    for_residual: Float[Tensor, "row d_in"] | None,
    *,
    needs_dictionary: bool,
) -> tuple[Float[Tensor, "row d_in"], Float[Tensor, "d_sae d_in"] | None]:
    """`thresher.train.kernels.backward.step_back` without atomics: the same bits every time."""
    require_device(residual, "step_back")
    given = [None if part is None else part.contiguous() for part in (for_values, for_residual)]
    for_x, for_dictionary = ops.step_back(indices, values, residual, dictionary.contiguous(), *given, needs_dictionary)
    return for_x, for_dictionary if needs_dictionary else None


def _lower(dictionary: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The dictionary in `dtype` and each atom's distance from it."""
    low = dictionary.to(dtype)
    return low, torch.linalg.vector_norm(dictionary - low.float(), dim=1)
