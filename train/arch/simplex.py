"""Projection onto the probability simplex."""

import torch
from jaxtyping import Float
from torch import Tensor


def project_on_simplex(v: Float[Tensor, "row n"]) -> Float[Tensor, "row n"]:
    """The nearest non-negative row that sums to 1: sparsemax (arXiv 1602.02068, Alg. 1). Sorts each row.

    z = relu(v - tau), where tau makes the sum 1; its gradient on the support is the given one less its mean there.
    """
    with torch.no_grad():
        falling = v.sort(dim=1, descending=True).values
        excess = falling.cumsum(1) - 1
        counts = torch.arange(1, v.shape[1] + 1, device=v.device, dtype=v.dtype)
        # The largest entry is in the support whatever rounding does.
        n_active = (falling * counts > excess).sum(1, keepdim=True).clamp_min(1)
        is_active = v >= falling.gather(1, n_active - 1)
    total = torch.where(is_active, v, 0).sum(1, keepdim=True)
    return torch.where(is_active, v - (total - 1) / is_active.sum(1, keepdim=True), 0).relu()
