# pyright: basic
"""The gradient of matching pursuit by running its steps backwards, one program per row, and a sum by atom.

A program holds the residual and its gradient of one row and undoes the steps (the formulas are those of
`thresher.train.kernels.backward`). What a pick contributes to its atom, gamma r_{t-1} - c lam, is written per pick for a
chunk of rows of at most `PAIRS_AT_ONCE` numbers and summed by atom before the next chunk: [row k, d_in] never exists.

Why not without that buffer: r and lam of a step are the final ones plus sums over later picks, so recomputing them per pick
costs k / 2 gathers of an atom instead of one write and one read. Per pick 12 d_in bytes: the atom (mostly from the
second-level cache), the write and the read; at (d_in 768, k 32, row 8192) 2.4 GB, 0.6 ms on an H200 at 4.3 TB/s, to which each
chunk beyond the first adds 8 d_in bytes per atom that occurs in it.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from thresher.train.kernels.cuda.device import launch
from thresher.train.kernels.cuda.plan import PAIRS_AT_ONCE, plan_row, rows_at_once
from thresher.train.kernels.cuda.segments import add_by_atom, sort_by_atom


@triton.jit
@no_type_check
def _reverse(IDX, VAL, R, D, FOR_VALUES, FOR_R, FOR_X, PAIRS, d, k, DP: tl.constexpr, HAS_VALUES: tl.constexpr,
             HAS_R: tl.constexpr, NEEDS_PAIRS: tl.constexpr):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, DP)
    inside = lanes < d
    r = tl.load(R + row * d + lanes, mask=inside, other=0.0)
    lam = tl.zeros((DP,), tl.float32)
    if HAS_R:
        lam = tl.load(FOR_R + row * d + lanes, mask=inside, other=0.0)
    for back in range(k):
        pick = row * k + (k - 1 - back)
        value = tl.load(VAL + pick)
        atom = tl.load(D + tl.load(IDX + pick) * d + lanes, mask=inside, other=0.0)
        gamma = -tl.sum(atom * lam, axis=0)
        if HAS_VALUES:
            gamma += tl.load(FOR_VALUES + pick)
        gamma = tl.where(value != 0, gamma, 0.0)
        if NEEDS_PAIRS:
            r += value * atom
            if value != 0:
                tl.store(PAIRS + pick * d + lanes, gamma * r - value * lam, mask=inside)
        lam += gamma * atom
    tl.store(FOR_X + row * d + lanes, lam, mask=inside)


def step_back(
    indices: Tensor, values: Tensor, residual: Tensor, dictionary: Tensor, for_values: Tensor | None,
    for_residual: Tensor | None, *, needs_dictionary: bool, pairs_at_once: int = PAIRS_AT_ONCE,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Gradients for the rows and, if needed, for the dictionary; see `thresher.train.kernels.backward.step_back`."""
    (n_rows, k), (n_atoms, d) = indices.shape, dictionary.shape
    for_x = torch.empty_like(residual)
    total = torch.zeros_like(dictionary) if needs_dictionary else None
    if n_rows == 0:
        return for_x, total
    step = rows_at_once(n_rows, k * d, pairs_at_once) if needs_dictionary else n_rows
    pairs = torch.empty(step * k if needs_dictionary else 0, d, dtype=torch.float32, device=residual.device)
    order, atoms = sort_by_atom(indices, values != 0, n_atoms, step) if needs_dictionary else (indices, indices)
    plan = plan_row(d)
    for start in range(0, n_rows, step):
        rows, picks = slice(start, start + step), slice(start * k, (start + step) * k)
        launch(
            _reverse, len(for_x[rows]), indices[rows], values[rows], residual[rows], dictionary,
            None if for_values is None else for_values[rows],
            None if for_residual is None else for_residual[rows], for_x[rows], pairs, d, k, DP=plan.width,
            HAS_VALUES=for_values is not None, HAS_R=for_residual is not None, NEEDS_PAIRS=needs_dictionary,
            num_warps=plan.warps,
        )  # fmt: skip
        if total is not None:
            here = pairs[: len(for_x[rows]) * k]
            add_by_atom(total, here, None, order[picks], atoms[picks], first_pick=start * k, is_first=start == 0)
    return for_x, total
