# pyright: basic
"""Sums over picks by atom, without atomics and the same bits every time.

The picks are sorted by atom (stable), the sorted list is cut into pieces of `PICKS_PER_SEGMENT`, and one program walks each
piece in order. The sum of an atom whose picks begin inside the piece is written by that program alone; what a piece holds of
an atom that began in an earlier piece goes into a partial sum per piece. A second pass gives each such atom to one program,
which adds its partial sums in order. So an atom that every row picks is shared by many programs, and no
order is left to chance.

Cost: a radix sort of the picks, one read of what is summed (4 d_in bytes per pick), one write per atom that occurs, and
8 d_in / PICKS_PER_SEGMENT bytes per pick of partial sums.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from thresher.train.kernels.cuda.device import launch
from thresher.train.kernels.cuda.plan import PICKS_PER_SEGMENT, plan_row

CHUNK_KEYS_AT_MOST = 2**31 - 1


@triton.jit(do_not_specialize=["first_pick"])
@no_type_check
def _sum_pieces(SOURCE, WEIGHT, ORDER, ATOMS, HEADS, TOTAL, first_pick, n_picks, n_atoms, d, picks_per_source,
                LENGTH: tl.constexpr, DP: tl.constexpr, WEIGHTED: tl.constexpr, ADD: tl.constexpr):  # fmt: skip
    piece = tl.program_id(0)
    begin = piece * LENGTH
    end = tl.minimum(begin + LENGTH, n_picks)
    lanes = tl.arange(0, DP)
    inside = lanes < d
    total = tl.zeros((DP,), tl.float32)
    # An atom that the previous piece ends with began there.
    before = tl.load(ATOMS + begin - 1, mask=begin > 0, other=-1)
    is_head = tl.load(ATOMS + begin) == before
    for place in range(begin, end):
        atom = tl.load(ATOMS + place)
        after = tl.load(ATOMS + place + 1, mask=place + 1 < n_picks, other=-1)
        pick = tl.load(ORDER + place)
        source = SOURCE + ((pick - first_pick) // picks_per_source).to(tl.int64) * d
        # Padding sorts last, behind every atom: nothing of it is read.
        part = tl.load(source + lanes, mask=lanes < tl.where(atom < n_atoms, d, 0), other=0.0)
        if WEIGHTED:
            part = part * tl.load(WEIGHT + pick)
        total += part
        if (after != atom) | (place + 1 == end):
            if is_head:
                tl.store(HEADS + piece.to(tl.int64) * d + lanes, total, mask=inside)
            elif atom < n_atoms:
                out = TOTAL + atom.to(tl.int64) * d + lanes
                if ADD:
                    total += tl.load(out, mask=inside, other=0.0)
                tl.store(out, total, mask=inside)
            is_head = False
            total = tl.zeros((DP,), tl.float32)


@triton.jit
@no_type_check
def _sum_heads(ATOMS, HEADS, TOTAL, n_picks, n_pieces, n_atoms, d, LENGTH: tl.constexpr, DP: tl.constexpr):
    piece = tl.program_id(0)
    lanes = tl.arange(0, DP)
    inside = lanes < d
    # A piece leads when its head began in the piece just before it.
    atom = tl.load(ATOMS + piece * LENGTH)
    before = tl.load(ATOMS + piece * LENGTH - 1, mask=piece > 0, other=-1)
    earlier = tl.load(ATOMS + (piece - 1) * LENGTH, mask=piece > 0, other=-1)
    ancestor = tl.load(ATOMS + (piece - 1) * LENGTH - 1, mask=piece > 1, other=-1)
    leads = (atom == before) & ((earlier != atom) | (ancestor != atom)) & (atom < n_atoms)
    if leads:
        out = TOTAL + atom.to(tl.int64) * d + lanes
        total = tl.load(out, mask=inside, other=0.0)
        follower = piece
        while tl.load(ATOMS + tl.minimum(follower * LENGTH, n_picks - 1)) == atom and follower < n_pieces:
            total += tl.load(HEADS + follower.to(tl.int64) * d + lanes, mask=inside, other=0.0)
            follower += 1
        tl.store(out, total, mask=inside)


def sort_by_atom(indices: Tensor, is_used: Tensor, n_atoms: int, rows_per_chunk: int) -> tuple[Tensor, Tensor]:
    """Order of the flattened picks by chunk of rows, then atom, then position; and the atom at each place of that order.

    Picks that are not used are given atom `n_atoms` and come last in their chunk. Both are int32 [row k].
    """
    n_rows = indices.shape[0]
    atoms = torch.where(is_used, indices, n_atoms)
    chunk = torch.arange(n_rows, device=indices.device) // rows_per_chunk
    key = (chunk[:, None] * (n_atoms + 1) + atoms).flatten()
    if (n_rows // rows_per_chunk + 1) * (n_atoms + 1) <= CHUNK_KEYS_AT_MOST:
        key = key.to(torch.int32)  # half of the radix passes
    key, order = key.sort(stable=True)
    return order.to(torch.int32), (key % (n_atoms + 1)).to(torch.int32)


def add_by_atom(
    total: Tensor, source: Tensor, weight: Tensor | None, order: Tensor, atoms: Tensor, *, first_pick: int, is_first: bool
) -> None:
    """Add to row `atoms[i]` of `total` the row of `source` that pick `order[i]` belongs to, times its weight, for all i.

    `source` has a row per pick, or per row of picks, from pick `first_pick` on. With `is_first`, `total` is all zeros.
    """
    (n_picks,), d, n_atoms = order.shape, source.shape[1], total.shape[0]
    if n_picks == 0:
        return
    plan, n_pieces = plan_row(d), triton.cdiv(n_picks, PICKS_PER_SEGMENT)
    heads = torch.empty(n_pieces, d, dtype=torch.float32, device=source.device)
    launch(
        _sum_pieces, n_pieces, source, weight, order, atoms, heads, total, first_pick, n_picks, n_atoms, d,
        n_picks // source.shape[0],
        LENGTH=PICKS_PER_SEGMENT, DP=plan.width, WEIGHTED=weight is not None, ADD=not is_first, num_warps=plan.warps,
    )  # fmt: skip
    launch(
        _sum_heads, n_pieces, atoms, heads, total, n_picks, n_pieces, n_atoms, d, LENGTH=PICKS_PER_SEGMENT, DP=plan.width,
        num_warps=plan.warps,
    )  # fmt: skip
