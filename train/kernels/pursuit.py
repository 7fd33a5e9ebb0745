"""Matching pursuit with the exact sparse backward."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from thresher.train.kernels.check import check_atoms, check_rows, check_rule, check_same, check_shapes
from thresher.train.kernels.choose import choose_method
from thresher.train.kernels.codes import Codes
from thresher.train.kernels.engines import check_support, find_engine, has_bf16, has_numba, has_triton, prepare
from thresher.train.kernels.forms import Picked
from thresher.train.kernels.precision import keep_types
from thresher.train.kernels.prepared import Prepared
from thresher.train.kernels.reference import pursue_plainly
from thresher.train.kernels.rule import Method, Rule, Sign


def pursue(
    x: Float[Tensor, "row d_in"],
    dictionary: Float[Tensor, "d_sae d_in"],
    k: int,
    *,
    residual_tol: float | None = None,
    sign: Sign = "relu",
    reselect: bool = True,
    method: Method = "auto",
    prepared: Prepared | None = None,
    check: bool = True,
) -> tuple[Codes, Float[Tensor, "row d_in"]]:
    """Explain each row by `k` greedy picks; return the codes and the residual.

    Atoms must have unit norm, so that an inner product is the best coefficient; then ||residual|| never grows and the
    residual is orthogonal to the last pick. Of scores that are equal as computed, the one of the lowest index is taken. A
    row stops when its best coefficient is 0 (for `relu`: not positive) or ||residual|| <= residual_tol ||x||; the rest of
    its code is padding. The default sign and repeats are those of arXiv 2506.03093, Alg. 1; Mallat & Zhang 1993 choose by
    `abs`.

    Differentiable once with respect to `x` and `dictionary` through values and residual, in O(row k d_in) time and with
    only indices, values and residual saved. Half-precision inputs are computed in float32 and give float32, also under
    `torch.autocast`; `torch.set_float32_matmul_precision` does decide how exactly `residual` and `gram` compare atoms.

    `prepared` (from `prepare`, for this very dictionary) saves deriving the same again; its method then counts. The
    gradient goes to `dictionary` all the same. Raises ValueError for shapes, types and devices that do not fit and, unless
    `check` is off, for atoms without unit norm, for NaN and for what was prepared from other atoms: looking at values costs
    a pass over the inputs and makes the host wait for a GPU. Without it atoms of any norm are taken as they are.
    """
    rule = Rule(k, residual_tol, sign, reselect)
    check_shapes(x, dictionary)
    check_rule(rule, dictionary.shape[0])
    if check:
        check_rows(x)
        check_atoms(dictionary)
    dtype = torch.promote_types(torch.promote_types(x.dtype, dictionary.dtype), torch.float32)
    x, dictionary = x.to(dtype), dictionary.to(dtype)
    method = resolve_method(method, prepared, x, dictionary, k)
    if check and prepared is not None:
        check_same(prepared.dictionary, dictionary)
    with keep_types(x.device):
        if method == "reference":
            return pursue_plainly(x, dictionary, rule)
        indices, values, residual = _apply(x, dictionary, prepared or prepare(dictionary, method), rule)
    return Codes(indices, values), residual


def resolve_method(method: Method, prepared: Prepared | None, x: Tensor, dictionary: Tensor, k: int) -> Method:
    """The method that will run, never `auto`. Raises ValueError when it or what is prepared does not fit the tensors."""
    if prepared is not None:
        if method not in ("auto", prepared.method):
            raise ValueError(f"method={method!r}, but what is prepared is for {prepared.method!r}: leave one of them out")
        made, wanted = prepared.dictionary, dictionary
        if (made.shape, made.dtype, made.device) != (wanted.shape, wanted.dtype, wanted.device):
            raise ValueError(
                f"prepared for a dictionary {list(made.shape)} {made.dtype} on {made.device}, given one {list(wanted.shape)} "
                f"to be used in {wanted.dtype} on {wanted.device}: prepare again"
            )
        method = prepared.method
    elif method == "auto":
        return choose_installed(x.shape[0], x, dictionary, k)
    check_support(method, x)
    return method


def choose_installed(rows: int, x: Float[Tensor, "_ d_in"], dictionary: Float[Tensor, "d_sae d_in"], k: int) -> Method:
    """`choose_method` for `rows` rows of the kind of `x`, among the methods that can run here."""
    dtype = torch.promote_types(torch.promote_types(x.dtype, dictionary.dtype), torch.float32)
    found = {"has_numba": has_numba(), "has_triton": has_triton(), "has_bf16": has_bf16()}
    return choose_method(rows, x.shape[1], dictionary.shape[0], k, dtype, x.device.type, **found)


class _Pursuit(torch.autograd.Function):
    """(x, dictionary) -> (indices, values, residual), differentiated by running the steps backwards."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dictionary: Tensor, prepared: Prepared, rule: Rule) -> Picked:
        engine = find_engine(prepared.method)
        indices, values, residual = engine.pursue(x.contiguous(), prepared, rule)
        ctx.save_for_backward(indices, values, residual, dictionary)
        ctx.step_back = engine.step_back
        ctx.mark_non_differentiable(indices)
        ctx.set_materialize_grads(False)
        return indices, values, residual

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, Tensor | None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        _, for_values, for_residual = gradients
        indices, values, residual, dictionary = ctx.saved_tensors
        needs_x, needs_dictionary, *_ = ctx.needs_input_grad
        for_x, for_dictionary = ctx.step_back(
            indices, values, residual, dictionary, for_values, for_residual, needs_dictionary=needs_dictionary
        )
        return for_x if needs_x else None, for_dictionary, None, None


def _apply(x: Tensor, dictionary: Tensor, prepared: Prepared, rule: Rule) -> Picked:
    """`_Pursuit.apply`, which torch leaves untyped."""
    return _Pursuit.apply(x, dictionary, prepared, rule)  # pyright: ignore[reportReturnType]
