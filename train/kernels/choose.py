"""The automatic choice of a method: a pure function of shapes, type and device."""

import torch

from thresher.train.kernels.rule import Method

FLOPS_PER_SCORE_UPDATE = {"cpu": 18, "cuda": 250}
"""What updating one score from a Gram row costs, in flops of a matrix product done in the same time.

cpu: 0.2 ns at 90 Gflop/s, measured on one core of an AMD EPYC (torch 2.15, rows of 1024 and 4096). cuda: 16 bytes at
4.3 TB/s against 67 Tflop/s of fp32, from data sheets, not measured.
"""
GRAM_BYTES_AT_MOST = 2**31


def choose_method(
    rows: int,
    d_in: int,
    d_sae: int,
    k: int,
    dtype: torch.dtype,
    device_type: str,
    *,
    has_numba: bool,
    has_triton: bool,
) -> Method:
    """The cheapest method for these shapes when the dictionary is new, in the type that is computed in.

    The Gram form where its matrix and updates cost fewer flops than k - 1 products.
    """
    return _choose_form(rows, d_in, d_sae, k, device_type)


def _choose_form(rows: int, d_in: int, d_sae: int, k: int, device_type: str) -> Method:
    if 4 * d_sae**2 > GRAM_BYTES_AT_MOST:
        return "residual"
    update = FLOPS_PER_SCORE_UPDATE.get(device_type, FLOPS_PER_SCORE_UPDATE["cuda"])
    by_gram = d_sae**2 * d_in + (k - 1) * rows * d_sae * update
    by_residual = (k - 1) * rows * d_sae * 2 * d_in
    return "gram" if by_gram < by_residual else "residual"
