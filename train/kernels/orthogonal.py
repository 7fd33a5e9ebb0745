"""Orthogonal matching pursuit with the exact sparse backward."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from thresher.train.kernels.check import check_atoms, check_rows, check_rule, check_shapes
from thresher.train.kernels.codes import Codes
from thresher.train.kernels.orthogonal_form import Picked, pursue_by_basis
from thresher.train.kernels.precision import keep_types
from thresher.train.kernels.reference import pursue_orthogonally
from thresher.train.kernels.rule import Method, Rule, Sign
from thresher.train.kernels.sparse import scatter_rows

SYSTEMS_AT_ONCE = {"cpu": 2**18, "cuda": 2**26}
"""Numbers of gathered atoms held at once while the systems of the backward are solved."""


def orthogonal_pursue(
    x: Float[Tensor, "row d_in"],
    dictionary: Float[Tensor, "d_sae d_in"],
    k: int,
    *,
    residual_tol: float | None = None,
    sign: Sign = "relu",
    method: Method = "auto",
    check: bool = True,
) -> tuple[Codes, Float[Tensor, "row d_in"]]:
    """Explain each row by at most `k` different atoms, each time fitted anew; return the codes and the residual.

    The next atom is chosen as in `pursue`, from its inner product with the residual; then all values are the least-squares
    fit of the row on the atoms picked so far, and the residual is orthogonal to all of them. `sign` rules the choice alone:
    a value may be negative under `relu` too. Atoms must have unit norm, as selection compares inner products. A row stops
    as in `pursue`, or when its best score is at the level of rounding or the atom depends on those already picked
    (duplicates, more steps than dimensions); the rest of its code is padding.

    Differentiable once in `x` and `dictionary` through values and residual, with only indices, values and residual saved.
    Half-precision inputs are computed in float32. Methods: `reference` and `residual` (`auto`), a product of residual and
    dictionary per step. The Gram form loses here, because step t needs t rows of it (measured 1.5 to 2.5 times slower).
    Raises ValueError as `pursue` does, for more than d_sae steps and for other methods.
    """
    rule = Rule(k, residual_tol, sign, reselect=False)
    check_shapes(x, dictionary)
    check_rule(rule, dictionary.shape[0])
    if method not in ("auto", "reference", "residual"):
        raise ValueError(f"method={method!r}: orthogonal pursuit has 'reference' and 'residual'; leave it at 'auto'")
    if check:
        check_rows(x)
        check_atoms(dictionary)
    dtype = torch.promote_types(torch.promote_types(x.dtype, dictionary.dtype), torch.float32)
    x, dictionary = x.to(dtype), dictionary.to(dtype)
    with keep_types(x.device):
        if method == "reference":
            return pursue_orthogonally(x, dictionary, rule)
        indices, values, residual = _apply(x, dictionary, rule)
    return Codes(indices, values), residual


class _OrthogonalPursuit(torch.autograd.Function):
    """(x, dictionary) -> (indices, values, residual), differentiated as the least-squares fit on the support."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dictionary: Tensor, rule: Rule) -> Picked:
        indices, values, residual = pursue_by_basis(x, dictionary, rule)
        ctx.save_for_backward(indices, values, residual, dictionary)
        ctx.mark_non_differentiable(indices)
        ctx.set_materialize_grads(False)
        return indices, values, residual

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, Tensor | None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        _, for_values, for_residual = gradients
        indices, values, residual, dictionary = ctx.saved_tensors
        needs_x, needs_dictionary, *_ = ctx.needs_input_grad
        for_residual = torch.zeros_like(residual) if for_residual is None else for_residual
        for_values = torch.zeros_like(values) if for_values is None else for_values
        for_x, u = _solve(indices, values, dictionary, for_values, for_residual)
        for_dictionary = None
        if needs_dictionary:
            pairs = torch.cat([u, -values]), torch.cat([indices, indices]), torch.cat([residual, for_x])
            for_dictionary = scatter_rows(*pairs, dictionary.shape[0])
        return for_x if needs_x else None, for_dictionary, None


def _apply(x: Tensor, dictionary: Tensor, rule: Rule) -> Picked:
    """`_OrthogonalPursuit.apply`, which torch leaves untyped."""
    return _OrthogonalPursuit.apply(x, dictionary, rule)  # pyright: ignore[reportReturnType]


def _solve(
    indices: Tensor, values: Tensor, dictionary: Tensor, for_values: Tensor, for_residual: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradient for x, and u = G^-1 (g_z - A g_r), where A are the atoms of a row and G their inner products.

    With r = x - A^T z and z = G^-1 A x: dL/dx = g_r + A^T u and dL/dA = u r^T - z dL/dx^T. The systems are set up and
    solved in float64, in which independent atoms in the sense of `DEPENDENT` give a factor.
    """
    for_x, u = for_residual.clone(memory_format=torch.contiguous_format), torch.zeros_like(values)
    k, d_in = indices.shape[1], dictionary.shape[1]
    at_once = max(SYSTEMS_AT_ONCE.get(values.device.type, SYSTEMS_AT_ONCE["cuda"]) // (k * (d_in + k)), 1)
    for start in range(0, indices.shape[0], at_once):
        rows = slice(start, start + at_once)
        is_picked = values[rows] != 0
        atoms = (dictionary[indices[rows]] * is_picked[:, :, None]).double()
        gram = atoms @ atoms.mT + torch.diag_embed((~is_picked).double())
        wanted = torch.where(is_picked, for_values[rows], 0).double() - (for_residual[rows, None].double() @ atoms.mT)[:, 0]
        factor = torch.linalg.cholesky_ex(gram).L
        solved = torch.cholesky_solve(wanted[:, :, None], factor)
        u[rows] = solved[:, :, 0].to(u.dtype)
        for_x[rows] += (solved.mT @ atoms)[:, 0].to(u.dtype)
    return for_x, u
