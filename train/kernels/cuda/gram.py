# pyright: basic
"""Matching pursuit whose scores are updated by rows of the Gram matrix, with the choices of exact fp32.

One program owns a row for all steps. Its scores start as D^ x^ and lose value * G[pick] at every step; D^, x^ are the
operands in low precision, G = D^ D^T is stored in fp16 (or all three are fp32). So score_j is <d^_j, r^> for the residual
r^ = x^ - sum_s c_s d^_s, which is tracked beside the exact fp32 residual r, up to the rounding of G and of the sums:

    |score_j - <d_j, r>| <= e = eps |r| + norm |r - r^| + sum_s |c_s| (error_s + d_in norm^2 2^-23) + sums,

eps = max_j |d_j - d^_j|, norm = max_j |d^_j|, error_s the largest rounding error of row s of G off the diagonal (what is
subtracted at the pick itself is computed from d^). Every atom with score >= best - 2 e is computed in fp32, and the
largest is taken.
When more than `REFRESH_AT` atoms are in the band the row computes all scores anew from r in fp32: from then on
r^ = r, and eps |r| becomes eps times the norm of what is subtracted since.

Cost per row and step: d_sae bytes_per_entry of G and 10 d_in bytes, against 2 d_sae d_in flops of the other form: less time
where d_in > entry_bytes flop_rate / (2 bandwidth), 184 for fp16 on an H200 by its data sheet. Scores wider than
`SCORES_IN_REGISTERS` stay in memory, mostly in the second-level cache, for 8 d_sae bytes more per step.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from thresher.train.kernels.cuda.certified import find_bounds
from thresher.train.kernels.cuda.correlate import correlate
from thresher.train.kernels.cuda.device import launch
from thresher.train.kernels.cuda.gram_parts import (
    SUMS,
    compare_rivals,
    count_rivals,
    find_band,
    find_least,
    find_tops,
    rank_scores,
    rewrite_scores,
    subtract_pick,
)
from thresher.train.kernels.cuda.plan import REGISTERS_PER_THREAD, SCORES_AT_ONCE, GramPlan, plan_row, plan_scores, rows_at_once
from thresher.train.kernels.cuda.rows import find_norm
from thresher.train.kernels.rule import Rule

REFRESH_AT = 64
"""Atoms in the band, as a lower limit; and 1/64 of the dictionary. Each costs one read of an atom, a refresh d_sae of them."""


@triton.jit
@no_type_check
def _pursue_in_registers(X, XLOW, SCORES, R, D, LOW, G, ERROR, BOUNDS, IDX, VAL, tol, refresh_at, n_atoms, d, k,
                         BLOCK: tl.constexpr, NB: tl.constexpr, DP: tl.constexpr, CB: tl.constexpr, RELU: tl.constexpr,
                         ABS: tl.constexpr, RESELECT: tl.constexpr):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, DP)
    inside = lanes < d
    atoms = tl.arange(0, BLOCK)
    SCORES += row * n_atoms
    r = tl.load(X + row * d + lanes, mask=inside, other=0.0)
    r_low = tl.load(XLOW + row * d + lanes, mask=inside, other=0.0).to(tl.float32)
    scores = tl.load(SCORES + atoms, mask=atoms < n_atoms, other=float("-inf"))
    eps = tl.load(BOUNDS)
    longest = tl.load(BOUNDS + 1)
    norm = find_norm(r)
    limit = tol * norm
    norm_then = 0.0
    subtracted = 0.0
    rounding = d * SUMS * longest * norm
    is_going = norm > limit
    for step in range(k):
        value = 0.0
        pick = 0
        if is_going:
            band = find_band(r, r_low, norm, norm_then, subtracted, rounding, eps, longest)
            rank = rank_scores(scores, ABS)
            least = find_least(tl.max(rank, axis=0), band)
            if tl.sum((rank >= least).to(tl.int32), axis=0) > refresh_at:
                tl.store(SCORES + atoms, scores, mask=atoms < n_atoms)
                rewrite_scores(SCORES, D, r, lanes, n_atoms, d, CB)
                scores = tl.load(SCORES + atoms, mask=atoms < n_atoms, other=float("-inf"))
                r_low = r
                norm_then = norm
                subtracted = 0.0
                rounding = d * SUMS * longest * norm
                least = find_least(tl.max(rank_scores(scores, ABS), axis=0), rounding + 2 * SUMS * norm)
            best = float("-inf")
            dot = 0.0
            best, dot, pick = compare_rivals(scores, least, atoms, D, r, lanes, d, best, dot, pick, ABS)
            goes_on = dot > 0 if RELU else dot != 0
            value = tl.where(goes_on, dot, 0.0)
            low = tl.load(LOW + pick.to(tl.int64) * d + lanes, mask=inside, other=0.0).to(tl.float32)
            scores = subtract_pick(scores, atoms, G, pick, value, tl.sum(low * low, axis=0), n_atoms, RESELECT)
            r -= value * tl.load(D + pick.to(tl.int64) * d + lanes, mask=inside, other=0.0)
            r_low -= value * low
            rounding += tl.abs(value) * (tl.load(ERROR + pick) + d * SUMS * longest * longest) + 2 * SUMS * norm
            subtracted += tl.abs(value)
            norm = find_norm(r)
            pick = tl.where(goes_on, pick, 0)
            is_going = goes_on & (norm > limit)
        tl.store(IDX + row * k + step, pick.to(tl.int64))
        tl.store(VAL + row * k + step, value)
    tl.store(R + row * d + lanes, r, mask=inside)


@triton.jit
@no_type_check
def _pursue_in_memory(X, XLOW, SCORES, R, D, LOW, G, ERROR, BOUNDS, IDX, VAL, tol, refresh_at, n_atoms, d, k,
                      BLOCK: tl.constexpr, NB: tl.constexpr, DP: tl.constexpr, CB: tl.constexpr, RELU: tl.constexpr,
                      ABS: tl.constexpr, RESELECT: tl.constexpr):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, DP)
    inside = lanes < d
    lanes_block = tl.arange(0, BLOCK)
    blocks = tl.arange(0, NB)
    SCORES += row * n_atoms
    r = tl.load(X + row * d + lanes, mask=inside, other=0.0)
    r_low = tl.load(XLOW + row * d + lanes, mask=inside, other=0.0).to(tl.float32)
    tops = tl.full((NB,), float("-inf"), tl.float32)
    tops = find_tops(SCORES, tops, blocks, lanes_block, n_atoms, BLOCK, ABS)
    eps = tl.load(BOUNDS)
    longest = tl.load(BOUNDS + 1)
    norm = find_norm(r)
    limit = tol * norm
    norm_then = 0.0
    subtracted = 0.0
    rounding = d * SUMS * longest * norm
    is_going = norm > limit
    for step in range(k):
        value = 0.0
        pick = 0
        if is_going:
            band = find_band(r, r_low, norm, norm_then, subtracted, rounding, eps, longest)
            least = find_least(tl.max(tops, axis=0), band)
            if count_rivals(SCORES, tops, blocks, least, lanes_block, n_atoms, BLOCK, ABS) > refresh_at:
                rewrite_scores(SCORES, D, r, lanes, n_atoms, d, CB)
                tops = find_tops(SCORES, tops, blocks, lanes_block, n_atoms, BLOCK, ABS)
                r_low = r
                norm_then = norm
                subtracted = 0.0
                rounding = d * SUMS * longest * norm
                least = find_least(tl.max(tops, axis=0), rounding + 2 * SUMS * norm)
            best = float("-inf")
            dot = 0.0
            for block in range(tl.cdiv(n_atoms, BLOCK)):
                if tl.max(tl.where(blocks == block, tops, float("-inf")), axis=0) >= least:
                    atoms = block * BLOCK + lanes_block
                    part = tl.load(SCORES + atoms, mask=atoms < n_atoms, other=float("-inf"))
                    best, dot, pick = compare_rivals(part, least, atoms, D, r, lanes, d, best, dot, pick, ABS)
            goes_on = dot > 0 if RELU else dot != 0
            value = tl.where(goes_on, dot, 0.0)
            low = tl.load(LOW + pick.to(tl.int64) * d + lanes, mask=inside, other=0.0).to(tl.float32)
            own = tl.sum(low * low, axis=0)
            for block in range(tl.cdiv(n_atoms, BLOCK)):
                atoms = block * BLOCK + lanes_block
                part = tl.load(SCORES + atoms, mask=atoms < n_atoms, other=float("-inf"))
                part = subtract_pick(part, atoms, G, pick, value, own, n_atoms, RESELECT)
                tl.store(SCORES + atoms, part, mask=atoms < n_atoms)
                tops = tl.where(blocks == block, tl.max(rank_scores(part, ABS), axis=0), tops)
            # The next step reads these scores in another assignment of lanes to threads.
            tl.debug_barrier()
            r -= value * tl.load(D + pick.to(tl.int64) * d + lanes, mask=inside, other=0.0)
            r_low -= value * low
            rounding += tl.abs(value) * (tl.load(ERROR + pick) + d * SUMS * longest * longest) + 2 * SUMS * norm
            subtracted += tl.abs(value)
            norm = find_norm(r)
            pick = tl.where(goes_on, pick, 0)
            is_going = goes_on & (norm > limit)
        tl.store(IDX + row * k + step, pick.to(tl.int64))
        tl.store(VAL + row * k + step, value)
    tl.store(R + row * d + lanes, r, mask=inside)


def pursue_by_gram(
    x: Tensor, dictionary: Tensor, gram: Tensor, gram_error: Tensor, low: Tensor, low_error: Tensor, rule: Rule, *,
    plan: GramPlan | None = None, refresh_at: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Indices, values and residual; `gram` holds the inner products of the rows of `low`.

    `plan` (else `plan_scores`) says where the scores live, `refresh_at` (else `REFRESH_AT`, or 1/64 of the dictionary) how
    many atoms in the band a row compares before it computes its scores anew; neither changes a pick.
    """
    (n_rows, d), n_atoms = x.shape, dictionary.shape[0]
    residual = torch.empty_like(x)
    indices = torch.empty(n_rows, rule.k, dtype=torch.int64, device=x.device)
    values = torch.empty(n_rows, rule.k, dtype=torch.float32, device=x.device)
    bounds, row_plan, plan = find_bounds(dictionary, low, low_error), plan_row(d), plan or plan_scores(n_atoms)
    kernel = _pursue_in_registers if plan.in_registers else _pursue_in_memory
    refresh_at = max(REFRESH_AT, n_atoms // 64) if refresh_at is None else refresh_at
    step = rows_at_once(n_rows, n_atoms, SCORES_AT_ONCE)
    for start in range(0, n_rows, step):
        chunk = slice(start, start + step)
        rounded = x[chunk].to(low.dtype)
        scores = correlate(rounded, low)
        launch(
            kernel, rounded.shape[0], x[chunk], rounded, scores, residual[chunk], dictionary, low, gram, gram_error, bounds,
            indices[chunk],
            values[chunk], rule.residual_tol or 0.0, refresh_at, n_atoms, d, rule.k, BLOCK=plan.width,
            NB=plan.n_blocks(n_atoms), DP=row_plan.width, CB=row_plan.at_once, RELU=rule.sign == "relu",
            ABS=rule.sign == "abs", RESELECT=rule.reselect, num_warps=max(plan.warps, row_plan.warps),
            maxnreg=REGISTERS_PER_THREAD,
        )  # fmt: skip
    return indices, values, residual
