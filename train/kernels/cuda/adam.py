# pyright: basic
"""One pass over the dictionary for everything that follows its gradient: projection, Adam, unit norm, low copy."""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from thresher.train.kernels.cuda.device import launch, require_device
from thresher.train.kernels.cuda.plan import plan_row


@triton.jit
@no_type_check
def _step_atoms(W, GRAD, MEAN, SQUARE, LOW, LOW_ERROR, LR, BIAS, SCALE, beta1, beta2, epsilon, d, DP: tl.constexpr,
                HAS_LOW: tl.constexpr, HAS_SCALE: tl.constexpr):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, DP)
    inside = lanes < d
    place = row * d + lanes
    w = tl.load(W + place, mask=inside, other=0.0)
    g = tl.load(GRAD + place, mask=inside, other=0.0)
    if HAS_SCALE:
        g *= tl.load(SCALE)
    g -= tl.sum(g * w, axis=0) * w
    mean = tl.load(MEAN + place, mask=inside, other=0.0)
    square = tl.load(SQUARE + place, mask=inside, other=0.0)
    mean += (1 - beta1) * (g - mean)
    square += (1 - beta2) * (g * g - square)
    w -= tl.load(LR) * (mean / tl.load(BIAS)) / (tl.sqrt(square / tl.load(BIAS + 1)) + epsilon)
    norm = tl.sqrt(tl.sum(w * w, axis=0))
    w = w / tl.where(norm > 1e-12, norm, 1e-12)
    tl.store(W + place, w, mask=inside)
    tl.store(MEAN + place, mean, mask=inside)
    tl.store(SQUARE + place, square, mask=inside)
    if HAS_LOW:
        low = w.to(LOW.dtype.element_ty)
        lost = w - low.to(tl.float32)
        tl.store(LOW + place, low, mask=inside)
        tl.store(LOW_ERROR + row, tl.sqrt(tl.sum(lost * lost, axis=0)))


@torch.no_grad()
def step_atoms(
    dictionary: Float[Tensor, "d_sae d_in"],
    gradient: Float[Tensor, "d_sae d_in"],
    mean: Float[Tensor, "d_sae d_in"],
    square: Float[Tensor, "d_sae d_in"],
    *,
    lr: Float[Tensor, ""],
    step: Float[Tensor, ""],
    betas: tuple[float, float],
    epsilon: float = 1e-8,
    scale: Float[Tensor, ""] | None = None,
    low: Float[Tensor, "d_sae d_in"] | None = None,
    low_error: Float[Tensor, "d_sae"] | None = None,
) -> None:
    """One Adam step on unit-norm atoms, in place: tangent projection, averages, update, unit norm.

    The same as removing each gradient's part along its atom, `torch.optim.Adam` and scaling to norm 1, in one pass of
    28 bytes per number instead of about 80. `step` counts from 1. `lr`, `step` and `scale` (which multiplies the gradient, for
    clipping) stay on the device, so nothing waits and a captured graph goes on counting. With `low` and `low_error` (what
    `prepare` derives for the certified method) these are brought up to date in the same pass. Raises ValueError where the
    kernels cannot run.
    """
    require_device(dictionary, "step_atoms")
    (n_atoms, d), plan = dictionary.shape, plan_row(dictionary.shape[1])
    bias = torch.stack([1 - beta ** step.double() for beta in betas]).float()
    launch(
        _step_atoms, n_atoms, dictionary, gradient.contiguous(), mean, square, low, low_error, lr, bias, scale, *betas,
        epsilon, d, DP=plan.width,
        HAS_LOW=low is not None, HAS_SCALE=scale is not None, num_warps=plan.warps,
    )  # fmt: skip
