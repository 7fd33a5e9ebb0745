"""Matching pursuit over a dictionary that several processes have parts of."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from thresher.train.kernels import Codes, Rule
from thresher.train.kernels.backward import add_rows, step_back
from thresher.train.kernels.forms import argmax_first
from thresher.train.kernels.precision import keep_types
from thresher.train.parallel.shard import Shard

SCORES_AT_ONCE = {"cpu": 2**22, "cuda": 2**28}
"""Inner products held at once. More rows at once mean fewer and longer messages."""
FETCHED_AT_ONCE = {"cpu": 2**22, "cuda": 2**28}
"""Numbers of atoms fetched at once in the backward pass."""


class Pursued(NamedTuple):
    """A pursuit without gradients; the same in all processes."""

    indices: Int[Tensor, "row k"]
    values: Float[Tensor, "row k"]
    residual: Float[Tensor, "row d_in"]
    norms: Float[Tensor, "row step"]
    """Norm of the residual after 0, 1, ..., k steps."""


def pursue_sharded(
    x: Float[Tensor, "row d_in"], own: Float[Tensor, "own d_in"], shard: Shard, rule: Rule
) -> tuple[Codes, Float[Tensor, "row d_in"]]:
    """What `pursue` gives for the whole dictionary, of which `own` are this process's atoms; `x` is the same in all.

    Each step takes the best atom of each process, compares their inner products, and sends the atom that is best to all:
    8 (d_in + 4) bytes per row and step or so. Differentiable once in `x` and `own`; the gradient of `own` is that of its
    atoms, the gradient of `x` the same in all processes. Repeats are allowed.
    """
    with keep_types(x.device):
        indices, values, residual = _apply(x.float(), own, shard, rule)
    return Codes(indices, values), residual


@torch.no_grad()
def find_codes(x: Float[Tensor, "row d_in"], own: Float[Tensor, "own d_in"], shard: Shard, rule: Rule) -> Pursued:
    """The pursuit itself."""
    n_rows = x.shape[0]
    at_once = max(SCORES_AT_ONCE.get(x.device.type, SCORES_AT_ONCE["cuda"]) * shard.group.size // shard.n_atoms, 64)
    indices = torch.zeros(n_rows, rule.k, dtype=torch.int64, device=x.device)
    found = Pursued(indices, x.new_zeros(n_rows, rule.k), x.clone(), x.new_zeros(n_rows, rule.k + 1))
    for start in range(0, n_rows, at_once):
        _pursue_chunk(Pursued(*(each[start : start + at_once] for each in found)), own, shard, rule)
    return found


def _pursue_chunk(chunk: Pursued, own: Tensor, shard: Shard, rule: Rule) -> None:
    """Run the pursuit in place: the residual holds the rows at first."""
    residual = chunk.residual
    chunk.norms[:, 0] = torch.linalg.vector_norm(residual, dim=1)
    limit = None if rule.residual_tol is None else rule.residual_tol * chunk.norms[:, 0]
    is_going = torch.ones(residual.shape[0], dtype=torch.bool, device=residual.device)
    for step in range(rule.k):
        scores = residual @ own.T
        picks = argmax_first(scores.abs_() if rule.sign == "abs" else scores)
        values = (own.index_select(0, picks) * residual).sum(1)
        best = shard.find_best(picks, values, values.abs() if rule.sign == "abs" else values, own)
        is_going &= (best.value > 0) if rule.sign == "relu" else (best.value != 0)
        if limit is not None:
            is_going &= chunk.norms[:, step] > limit
        value = torch.where(is_going, best.value, 0)
        residual.addcmul_(best.atom, value[:, None], value=-1)
        chunk.indices[:, step] = torch.where(is_going, best.number, 0)
        chunk.values[:, step] = value
        chunk.norms[:, step + 1] = torch.linalg.vector_norm(residual, dim=1)


class _ShardedPursuit(torch.autograd.Function):
    """(x, own atoms) -> (indices, values, residual)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, own: Tensor, shard: Shard, rule: Rule) -> tuple[Tensor, Tensor, Tensor]:
        found = find_codes(x, own, shard, rule)
        ctx.save_for_backward(found.indices, found.values, found.residual, own)
        ctx.shard = shard
        ctx.mark_non_differentiable(found.indices)
        ctx.set_materialize_grads(False)
        return found.indices, found.values, found.residual

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor, Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        _, for_values, for_residual = gradients
        indices, values, residual, own = ctx.saved_tensors
        shard: Shard = ctx.shard
        for_x, for_own = torch.empty_like(residual), torch.zeros_like(own)
        per_row = max(indices.shape[1] * own.shape[1], 1)
        at_once = max(FETCHED_AT_ONCE.get(own.device.type, FETCHED_AT_ONCE["cuda"]) // per_row, 1)
        for start in range(0, len(indices), at_once):
            part = slice(start, start + at_once)
            given = [None if each is None else each[part] for each in (for_values, for_residual)]
            saved = (indices[part], values[part], residual[part])
            for_x[part] = _step_back_chunk(*saved, own, for_own, shard, *given)
        return for_x, for_own, None, None


def _step_back_chunk(
    indices: Tensor,
    values: Tensor,
    residual: Tensor,
    own: Tensor,
    for_own: Tensor,
    shard: Shard,
    for_values: Tensor | None,
    for_residual: Tensor | None,
) -> Tensor:
    """The gradient of some rows; that of the own atoms is added to `for_own`. Every pick is taken for an atom of its own."""
    picks = indices.flatten()
    atoms = shard.fetch(picks, own)
    places = torch.arange(len(picks), device=picks.device).view_as(indices)
    for_x, for_atoms = step_back(places, values, residual, atoms, for_values, for_residual, needs_dictionary=True)
    assert for_atoms is not None
    is_own = (picks >= shard.first) & (picks < shard.stop)
    add_rows(for_own, torch.where(is_own, picks - shard.first, 0), for_atoms.masked_fill_(~is_own[:, None], 0))
    return for_x


def _apply(x: Tensor, own: Tensor, shard: Shard, rule: Rule) -> tuple[Tensor, Tensor, Tensor]:
    """`_ShardedPursuit.apply`, which torch leaves untyped."""
    return _ShardedPursuit.apply(x, own, shard, rule)  # pyright: ignore[reportReturnType]
