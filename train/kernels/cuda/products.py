# pyright: basic
"""Products of sparse codes with atoms: one program per row, and sums by atom for the gradient of the atoms.

Memory bound: k d_in entries of atoms per row, 4 bytes each, mostly from the second-level cache when the dictionary fits there.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from thresher.train.kernels.cuda.device import launch
from thresher.train.kernels.cuda.plan import plan_row
from thresher.train.kernels.cuda.segments import add_by_atom, sort_by_atom


@triton.jit
@no_type_check
def _sum_atoms(VAL, IDX, D, OUT, d, k, DP: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, DP)
    total = tl.zeros((DP,), tl.float32)
    for step in range(k):
        atom = tl.load(IDX + row * k + step)
        total += tl.load(VAL + row * k + step) * tl.load(D + atom * d + lanes, mask=lanes < d, other=0.0)
    tl.store(OUT + row * d + lanes, total, mask=lanes < d)


@triton.jit
@no_type_check
def _dot_atoms(X, IDX, D, OUT, d, k, DP: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, DP)
    x = tl.load(X + row * d + lanes, mask=lanes < d, other=0.0)
    for step in range(k):
        atom = tl.load(IDX + row * k + step)
        dot = tl.sum(x * tl.load(D + atom * d + lanes, mask=lanes < d, other=0.0), axis=0)
        tl.store(OUT + row * k + step, dot)


def sum_atoms(values: Tensor, indices: Tensor, atoms: Tensor) -> Tensor:
    """[row, d_in]: sum over k of values times atoms."""
    (n_rows, k), d = indices.shape, atoms.shape[1]
    found = torch.empty(n_rows, d, dtype=torch.float32, device=atoms.device)
    plan = plan_row(d)
    launch(_sum_atoms, n_rows, values, indices, atoms, found, d, k, DP=plan.width, num_warps=plan.warps)
    return found


def dot_atoms(x: Tensor, atoms: Tensor, indices: Tensor) -> Tensor:
    """[row, k]: inner products of each row with its atoms."""
    (n_rows, k), d = indices.shape, atoms.shape[1]
    found = torch.empty(n_rows, k, dtype=torch.float32, device=atoms.device)
    plan = plan_row(d)
    launch(_dot_atoms, n_rows, x, indices, atoms, found, d, k, DP=plan.width, num_warps=plan.warps)
    return found


def scatter_rows(values: Tensor, indices: Tensor, x: Tensor, n_atoms: int) -> Tensor:
    """[d_sae, d_in]: sum over rows and k of values times the row, at the atom; entries of value 0 are left out."""
    total = torch.zeros(n_atoms, x.shape[1], dtype=torch.float32, device=x.device)
    if x.shape[0] > 0:
        order, atoms = sort_by_atom(indices, values != 0, n_atoms, x.shape[0])
        add_by_atom(total, x, values, order, atoms, first_pick=0, is_first=True)
    return total
