"""The automatic choice of a method: a pure function of shapes, type and device."""

from typing import NamedTuple

import torch

from thresher.train.kernels.rule import Method


class Cost(NamedTuple):
    """What a method costs, in flops of a float32 matrix product that would take the same time."""

    matrix: float
    """Per number and dimension of the Gram matrix, of which half is computed; 0 without one."""
    product: float
    """Per flop of a product of rows and atoms: one at the start and, without a Gram matrix, one per step."""
    score: float
    """Per score and step: the update from the Gram matrix, and the search for the largest."""
    bytes_per_score: int
    """Of a stored inner product of two atoms."""


COSTS: dict[str, dict[Method, Cost]] = {
    "cpu": {
        "residual": Cost(0.0, 1.0, 50.0, 0),
        "gram": Cost(1.2, 1.0, 110.0, 4),
        "numba_gram": Cost(1.1, 1.0, 50.0, 4),
        "numba_certified": Cost(0.6, 0.5, 40.0, 2),
    },
    "cuda": {
        "residual": Cost(0.0, 1.0, 190.0, 0),
        "gram": Cost(2.0, 1.0, 380.0, 4),
        "triton_gram": Cost(0.2, 0.2, 60.0, 2),
        "triton_certified": Cost(0.0, 0.2, 10.0, 0),
    },
}
"""cpu: measured on one core of an AMD EPYC with AVX512-BF16 (torch 2.15, 90 Gflop/s in float32), rounded; at (d_in, d_sae, k)
= (512, 4096, 16) the Gram forms win from 175 rows (`gram`), 151 (`numba_gram`), 79 (`numba_certified`). cuda: from the
data sheet of an H200 (67 Tflop/s in float32, 4.3 TB/s), not measured."""
GRAM_BYTES_AT_MOST = {"cpu": 2**31, "cuda": 2**33}


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
    has_bf16: bool = True,
) -> Method:
    """The cheapest method by `COSTS` for rows and a new dictionary of these shapes, computed in `dtype`.

    `has_bf16` says whether a CPU multiplies matrices in bfloat16 faster than in float32 (`engines.has_bf16`). Only float32
    has compiled methods.
    """
    costs = COSTS.get(device_type, COSTS["cuda"])
    is_float = dtype == torch.float32
    allowed = {
        "numba": has_numba and is_float and device_type == "cpu",
        "triton": has_triton and is_float and device_type == "cuda",
    }
    methods: list[Method] = [
        method
        for method, cost in costs.items()
        if allowed.get(method.partition("_")[0], True)
        and (method != "numba_certified" or has_bf16)
        and cost.bytes_per_score * d_sae**2 <= GRAM_BYTES_AT_MOST.get(device_type, 2**31)
    ]

    def find_cost(method: Method) -> float:
        cost = costs[method]
        products = 1 if cost.matrix else k
        per_score = products * 2 * d_in * cost.product + k * cost.score
        return cost.matrix * d_sae**2 * d_in + rows * d_sae * per_score

    return min(methods, key=find_cost)
