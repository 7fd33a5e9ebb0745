"""The k largest encoder outputs of each row, and how to find them at half the cost."""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from thresher.train.kernels import sparse_encode

Selection = Literal["full", "bf16"]
"""In which precision the largest outputs are looked for: that of the weights, or bfloat16 with a check."""
SPARE_CANDIDATES = 8
EXTRA_PER_PICK = 0.03
"""Candidates beyond k are this times k sqrt(d_in), plus a few. Normally distributed outputs have about 0.02 k sqrt(d_in) of
them within twice the error of the k-th, for thousands of atoms and k / d_sae around 1 / 500."""
BF16_EPS = 2.0**-8
"""Twice the largest relative error of rounding to bfloat16: of the output, and of the sum before the bias is added."""


class Screened(NamedTuple):
    """The k outputs that are largest as far as a screening in low precision can tell."""

    indices: Int[Tensor, "row k"]
    """Largest first."""
    scores: Float[Tensor, "row d_sae"]
    """All outputs, in bfloat16."""
    is_certain: Bool[Tensor, "row"]
    """Whether no other positive output can be larger than the smallest of the k."""


@torch.no_grad()
def screen_topk(
    x: Float[Tensor, "row d_in"], weight: Float[Tensor, "d_sae d_in"], bias: Float[Tensor, "d_sae"], k: int
) -> Screened:
    """Look for the k largest entries of x weight^T + bias in bfloat16, and order the candidates by their exact values.

    With w' and x' the rounded ones, |<x, w> - <x', w'>| <= |x| |w - w'| + |x - x'| |w'|; rounding of the bias, of the sum
    and of the accumulation is added. What is not a candidate is at most the smallest candidate's score plus that.
    """
    low_x, low_weight, low_bias = x.bfloat16(), weight.bfloat16(), bias.bfloat16()
    scores = functional.linear(low_x, low_weight, low_bias)
    n_candidates = min(k + round(EXTRA_PER_PICK * k * weight.shape[1] ** 0.5) + SPARE_CANDIDATES, weight.shape[0])
    found, candidates = scores.topk(n_candidates, dim=1)
    exact = sparse_encode(x, weight, candidates) + bias.index_select(0, candidates.flatten()).view_as(candidates)
    values, order = exact.topk(k, dim=1)
    indices = candidates.gather(1, order)
    if n_candidates == weight.shape[0]:
        return Screened(indices, scores, torch.ones_like(values[:, 0], dtype=torch.bool))
    size = torch.linalg.vector_norm(low_weight, dim=1, dtype=torch.float32).amax()
    lost = torch.linalg.vector_norm(weight - low_weight, dim=1).amax()
    norm = torch.linalg.vector_norm(x, dim=1)
    accumulated = weight.shape[1] * torch.finfo(torch.float32).eps
    error = norm * (lost + accumulated * size) + torch.linalg.vector_norm(x - low_x, dim=1) * size
    error = error + BF16_EPS * (found[:, -1].float().abs() + bias.abs().amax()) + (bias - low_bias).abs().amax()
    others_at_most = found[:, -1].float() + error
    return Screened(indices, scores, (values[:, -1] >= others_at_most) | (others_at_most <= 0))


@torch.no_grad()
def find_topk(
    x: Float[Tensor, "row d_in"], weight: Float[Tensor, "d_sae d_in"], bias: Float[Tensor, "d_sae"], k: int
) -> Int[Tensor, "row k"]:
    """The k largest entries of x weight^T + bias, largest first."""
    return functional.linear(x, weight, bias).topk(k, dim=1).indices


@torch.no_grad()
def repair(
    screened: Screened, x: Float[Tensor, "row d_in"], weight: Float[Tensor, "d_sae d_in"], bias: Float[Tensor, "d_sae"]
) -> Int[Tensor, "row k"]:
    """The indices, looked for again in full where they are not certain; the host waits to know where."""
    rows = (~screened.is_certain).nonzero()[:, 0]
    if rows.numel() == 0:
        return screened.indices
    again = find_topk(x.index_select(0, rows), weight, bias, screened.indices.shape[1])
    return screened.indices.index_copy(0, rows, again)
