"""Sparse codes: which atoms with which coefficients."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class Codes(NamedTuple):
    """A batch of sparse codes. An entry with value 0 is padding and has index 0."""

    indices: Int[Tensor, "row k"]
    """Atoms in the order of selection (by falling value where nothing selects in order); a pursuit may pick one twice."""
    values: Float[Tensor, "row k"]
    """Their coefficients, same order. The coefficient of an atom is the sum over its picks."""


def pack(activations: Float[Tensor, "row d_sae"], k: int | None = None) -> Codes:
    """The non-zero entries of non-negative dense codes, largest first, at most `k` per row.

    As wide as the fullest row (at least 1), which the host has to wait for.
    """
    width = 1 if activations.numel() == 0 else max(int((activations > 0).sum(1).max()), 1)
    values, indices = activations.topk(width if k is None else min(k, width), dim=1)
    return Codes(torch.where(values > 0, indices, 0), values)


def merge_repeats(codes: Codes) -> Codes:
    """The same codes with each atom at most once per row, in the order of the index; zeros in between are padding."""
    indices, order = codes.indices.sort(dim=1, stable=True)
    values = codes.values.gather(1, order)
    is_first = torch.ones_like(indices, dtype=torch.bool)
    is_first[:, 1:] = indices[:, 1:] != indices[:, :-1]
    slot = is_first.long().cumsum(1) - 1
    merged = torch.zeros_like(values).scatter_add(1, slot, values)
    atoms = torch.zeros_like(indices).scatter(1, slot, indices)
    return Codes(torch.where(merged != 0, atoms, 0), merged)


def count_active(codes: Codes) -> Int[Tensor, "row"]:
    """L0 of each row: different atoms with a non-zero coefficient; an atom picked twice counts once."""
    return (merge_repeats(codes).values != 0).sum(1)


def mark_fired(codes: Codes, d_sae: int) -> Bool[Tensor, "d_sae"]:
    """Which atoms have a non-zero coefficient anywhere in the batch."""
    fired = torch.zeros(d_sae, dtype=torch.int64, device=codes.indices.device)
    return fired.index_add(0, codes.indices.flatten(), (codes.values != 0).flatten().long()) > 0


def densify(codes: Codes, d_sae: int) -> Float[Tensor, "row d_sae"]:
    """Dense codes, repeats added up. For tests and exports: nothing else holds a tensor of this size."""
    dense = torch.zeros(codes.values.shape[0], d_sae, dtype=codes.values.dtype, device=codes.values.device)
    return dense.scatter_add(1, codes.indices, codes.values)
