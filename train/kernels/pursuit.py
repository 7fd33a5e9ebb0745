"""Matching pursuit with the exact sparse backward."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from thresher.train.kernels.codes import Codes
from thresher.train.kernels.forms import Picked, pursue_by_gram, pursue_by_residual
from thresher.train.kernels.reference import pursue_plainly
from thresher.train.kernels.rule import Method, Rule, Sign

FLOPS_PER_SCORE_UPDATE = {"cpu": 18, "cuda": 250}
"""What updating one score from a Gram row costs, in flops of a matrix product done in the same time.

cpu: 0.2 ns at 90 Gflop/s, measured on one core of an AMD EPYC (torch 2.15, rows of 1024 and 4096). cuda: 16 bytes at
4.3 TB/s against 67 Tflop/s of fp32, from data sheets, not measured.
"""
GRAM_BYTES_AT_MOST = 2**31


def pursue(
    x: Float[Tensor, "row d_in"],
    dictionary: Float[Tensor, "d_sae d_in"],
    k: int,
    *,
    residual_tol: float | None = None,
    sign: Sign = "relu",
    reselect: bool = True,
    method: Method = "auto",
) -> tuple[Codes, Float[Tensor, "row d_in"]]:
    """Explain each row by `k` greedy picks; return the codes and the residual.

    Atoms must have unit norm, so that an inner product is the best coefficient; then ||residual|| never grows and the
    residual is orthogonal to the last pick. Ties go to the lowest index. A row stops when its best coefficient is 0 (for
    `relu`: not positive) or ||residual|| <= residual_tol ||x||; the rest of its code is padding. The default sign and
    repeats are those of arXiv 2506.03093, Alg. 1; Mallat & Zhang 1993 choose by `abs`.

    Differentiable once with respect to `x` and `dictionary` through values and residual, in O(row k d_in) time and with
    only indices, values and residual saved. Half-precision inputs are computed in float32 and give float32.
    Raises ValueError for widths that differ and for `k` out of range.
    """
    if x.shape[1] != dictionary.shape[1]:
        raise ValueError(f"x has width {x.shape[1]}, the dictionary {dictionary.shape[1]}: both must be d_in")
    if k < 1 or (not reselect and k > dictionary.shape[0]):
        raise ValueError(f"k={k}: pick at least 1 and, without repeats, at most d_sae={dictionary.shape[0]} atoms")
    dtype = torch.promote_types(torch.promote_types(x.dtype, dictionary.dtype), torch.float32)
    x, dictionary = x.to(dtype), dictionary.to(dtype)
    rule = Rule(k, residual_tol, sign, reselect)
    if method == "reference":
        return pursue_plainly(x, dictionary, rule)
    if method == "auto":
        method = choose_method(x.shape[0], x.shape[1], dictionary.shape[0], k, x.device.type)
    indices, values, residual = _apply(x, dictionary, rule, method)
    return Codes(indices, values), residual


def choose_method(rows: int, d_in: int, d_sae: int, k: int, device_type: str) -> Method:
    """The cheaper form for these shapes: `gram` when its matrix and updates cost fewer flops than k - 1 products."""
    if 4 * d_sae**2 > GRAM_BYTES_AT_MOST:
        return "residual"
    update = FLOPS_PER_SCORE_UPDATE.get(device_type, FLOPS_PER_SCORE_UPDATE["cuda"])
    by_gram = d_sae**2 * d_in + (k - 1) * rows * d_sae * update
    by_residual = (k - 1) * rows * d_sae * 2 * d_in
    return "gram" if by_gram < by_residual else "residual"


class _Pursuit(torch.autograd.Function):
    """(x, dictionary) -> (indices, values, residual), differentiated by running the steps backwards."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dictionary: Tensor, rule: Rule, method: Method) -> Picked:
        form = pursue_by_gram if method == "gram" else pursue_by_residual
        indices, values, residual = form(x, dictionary, rule)
        ctx.save_for_backward(indices, values, residual, dictionary)
        ctx.mark_non_differentiable(indices)
        ctx.set_materialize_grads(False)
        return indices, values, residual

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, Tensor | None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        _, for_values, for_residual = gradients
        indices, values, residual, dictionary = ctx.saved_tensors
        needs_x, needs_dictionary, *_ = ctx.needs_input_grad
        for_dictionary = torch.zeros_like(dictionary) if needs_dictionary else None
        for_x = _step_back(indices, values, residual, dictionary, for_values, for_residual, for_dictionary)
        return for_x if needs_x else None, for_dictionary, None, None


def _apply(x: Tensor, dictionary: Tensor, rule: Rule, method: Method) -> Picked:
    """`_Pursuit.apply`, which torch leaves untyped."""
    return _Pursuit.apply(x, dictionary, rule, method)  # pyright: ignore[reportReturnType]


def _step_back(
    indices: Tensor,
    values: Tensor,
    residual: Tensor,
    dictionary: Tensor,
    for_values: Tensor | None,
    for_residual: Tensor | None,
    for_dictionary: Tensor | None,
) -> Tensor:
    """Return the gradient for x; add that for the dictionary into `for_dictionary`.

    With value c and atom d of step t, residuals r_{t-1} = r_t + c d, and lam = dL/dr: the total derivative for c is
    gamma = dL/dc - <d, lam>; then dL/dd += gamma r_{t-1} - c lam and lam += gamma d. A value of 0 marks a stopped row,
    whose gamma is 0. Repeated picks need no care: each is its own step.
    """
    residual = residual.clone()
    lam = torch.zeros_like(residual) if for_residual is None else for_residual.clone()
    for step in reversed(range(indices.shape[1])):
        picks, value = indices[:, step], values[:, step, None]
        atoms = dictionary.index_select(0, picks)
        gamma = -(atoms * lam).sum(1, keepdim=True)
        if for_values is not None:
            gamma += for_values[:, step, None]
        gamma = torch.where(value != 0, gamma, 0)
        if for_dictionary is not None:
            residual.addcmul_(atoms, value)
            for_dictionary.index_add_(0, picks, (gamma * residual).addcmul_(value, lam, value=-1))
        lam.addcmul_(gamma, atoms)
    return lam
