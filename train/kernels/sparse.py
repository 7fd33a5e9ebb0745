"""Products of sparse codes with dictionaries, and their gradients, without a [row, d_sae] tensor."""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from thresher.train.kernels.codes import Codes
from thresher.train.kernels.engines import find_products, has_triton

GATHERED_AT_ONCE = {"cpu": 2**18, "cuda": 2**28}
"""Numbers of gathered atoms held at once, row by row: [row, k, d_in] never exists as a whole.

cpu: 1 MB of fp32, which stays in the second-level cache (5 times as fast as a product of matrices over 4 MB, measured).
"""


def sparse_decode(codes: Codes, dictionary: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, "row d_in"]:
    """Sum of each row's atoms weighted by its values, in the wider of their types; differentiable in values and dictionary."""
    dtype = torch.promote_types(codes.values.dtype, dictionary.dtype)
    return _Decode.apply(codes.values.to(dtype), codes.indices, dictionary.to(dtype))  # pyright: ignore[reportReturnType]


def sparse_encode(
    x: Float[Tensor, "row d_in"], weight: Float[Tensor, "d_sae d_in"], indices: Int[Tensor, "row k"]
) -> Float[Tensor, "row k"]:
    """Inner products of each row with the chosen rows of `weight` only, in the wider type; differentiable in x and weight."""
    dtype = torch.promote_types(x.dtype, weight.dtype)
    return _Encode.apply(x.to(dtype), weight.to(dtype), indices)  # pyright: ignore[reportReturnType]


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, indices: Tensor, dictionary: Tensor) -> Tensor:
        ctx.save_for_backward(values, indices, dictionary)
        return _sum_atoms(values, indices, dictionary)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, Tensor | None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (gradient,) = gradients
        values, indices, dictionary = ctx.saved_tensors
        needs_values, _, needs_dictionary = ctx.needs_input_grad
        return (
            _dot_atoms(gradient, dictionary, indices) if needs_values else None,
            None,
            scatter_rows(values, indices, gradient, dictionary.shape[0]) if needs_dictionary else None,
        )


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, indices: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, indices)
        return _dot_atoms(x, weight, indices)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (gradient,) = gradients
        x, weight, indices = ctx.saved_tensors
        needs_x, needs_weight, _ = ctx.needs_input_grad
        return (
            _sum_atoms(gradient, indices, weight) if needs_x else None,
            scatter_rows(gradient, indices, x, weight.shape[0]) if needs_weight else None,
            None,
        )


def _sum_atoms(values: Tensor, indices: Tensor, atoms: Tensor) -> Tensor:
    """[row, d_in]: sum over k of values times atoms."""
    if _fits_triton(values, atoms):
        return find_products().sum_atoms(values.contiguous(), indices.contiguous(), atoms.contiguous())
    return functional.embedding_bag(indices, atoms, per_sample_weights=values.contiguous(), mode="sum")


def _dot_atoms(x: Tensor, atoms: Tensor, indices: Tensor) -> Tensor:
    """[row, k]: inner products of each row with its atoms."""
    if _fits_triton(x, atoms):
        return find_products().dot_atoms(x.contiguous(), atoms.contiguous(), indices.contiguous())
    found = torch.empty(indices.shape, dtype=x.dtype, device=x.device)
    for rows in _chunks(indices, x.shape[1]):
        gathered = atoms.index_select(0, indices[rows].flatten()).view(-1, indices.shape[1], x.shape[1])
        found[rows] = gathered.mul_(x[rows, None, :]).sum(2)
    return found


def scatter_rows(
    values: Float[Tensor, "row k"], indices: Int[Tensor, "row k"], x: Float[Tensor, "row d_in"], n_atoms: int
) -> Float[Tensor, "n_atoms d_in"]:
    """For each atom, the sum of the rows that name it in `indices`, weighted by `values`.

    Sorted by atom, so that each atom adds up its own rows in order: the same bits each time, without atomics on a GPU.
    """
    if _fits_triton(values, x):
        return find_products().scatter_rows(values.contiguous(), indices.contiguous(), x.contiguous(), n_atoms)
    atoms, order = indices.flatten().sort(stable=True)
    starts = torch.searchsorted(atoms, torch.arange(n_atoms, device=atoms.device))
    rows = order.div(indices.shape[1], rounding_mode="floor")
    return functional.embedding_bag(rows, x, starts, per_sample_weights=values.flatten()[order], mode="sum")


def _fits_triton(left: Tensor, right: Tensor) -> bool:
    """Whether the compiled products for CUDA take these."""
    return (
        left.device.type == "cuda"
        and left.dtype == right.dtype == torch.float32
        and left.numel() > 0
        and right.numel() > 0
        and has_triton()
    )


def _chunks(indices: Tensor, d_in: int) -> Iterator[slice]:
    at_once = GATHERED_AT_ONCE.get(indices.device.type, GATHERED_AT_ONCE["cuda"])
    n = max(at_once // max(indices.shape[1] * d_in, 1), 1)
    return (slice(start, start + n) for start in range(0, indices.shape[0], n))
