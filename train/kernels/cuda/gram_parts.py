# pyright: basic
"""The parts of a step in the Gram form, shared by the kernel with scores in registers and that with scores in memory."""

from typing import no_type_check

import triton
import triton.language as tl

from thresher.train.kernels.cuda.rows import correlate_some, find_norm

SUMS = tl.constexpr(2.0**-23)
"""Rounding of one fp32 sum relative to its terms."""


@triton.jit
@no_type_check
def rank_scores(scores, ABS: tl.constexpr):
    """What is compared: -inf marks atoms that do not exist or may not be taken again."""
    if ABS:
        return tl.where(scores == float("-inf"), scores, tl.abs(scores))
    return scores


@triton.jit
@no_type_check
def find_band(r, r_low, norm, norm_then, subtracted, rounding, eps, longest):
    """By how much a score can differ from the exact inner product; `norm_then` is 0 until the first refresh."""
    moved = tl.where(norm_then > 0, tl.minimum(subtracted, norm_then + norm), norm)
    return eps * moved + longest * find_norm(r - r_low) + rounding + 2 * SUMS * norm


@triton.jit
@no_type_check
def find_least(top, band):
    """The lowest score of an atom that can still be the best; finite, so that -inf never reaches it."""
    return tl.maximum(top - 2 * band, -3.0e38)


@triton.jit
@no_type_check
def rewrite_scores(SCORES, D, r, lanes, n_atoms, d, CB: tl.constexpr):
    """Write the fp32 inner products of all atoms with `r` to SCORES, but for those marked -inf."""
    some = tl.arange(0, CB)
    tl.debug_barrier()
    for start in range(0, n_atoms, CB):
        atoms = start + some
        old = tl.load(SCORES + atoms, mask=atoms < n_atoms, other=float("-inf"))
        dots = correlate_some(D, atoms, atoms < n_atoms, r, lanes, d)
        tl.store(SCORES + atoms, tl.where(old == float("-inf"), old, dots), mask=atoms < n_atoms)
    tl.debug_barrier()


@triton.jit
@no_type_check
def compare_rivals(scores, least, atoms, D, r, lanes, d, best, best_dot, best_atom, ABS: tl.constexpr):
    """Compute the atoms whose score reaches `least` in fp32, by rising index: the best rank, inner product and atom."""
    # The mask is computed again for each rival: to keep it would take a register per score.
    atom = tl.min(tl.where(rank_scores(scores, ABS) >= least, atoms, 2147483647), axis=0)
    while atom < 2147483647:
        dot = tl.sum(tl.load(D + atom.to(tl.int64) * d + lanes, mask=lanes < d, other=0.0) * r, axis=0)
        rank = tl.abs(dot) if ABS else dot
        is_better = rank > best
        best_dot = tl.where(is_better, dot, best_dot)
        best_atom = tl.where(is_better, atom, best_atom)
        best = tl.where(is_better, rank, best)
        is_next = (rank_scores(scores, ABS) >= least) & (atoms > atom)
        atom = tl.min(tl.where(is_next, atoms, 2147483647), axis=0)
    return best, best_dot, best_atom


@triton.jit
@no_type_check
def subtract_pick(scores, atoms, G, pick, value, own, n_atoms, RESELECT: tl.constexpr):
    """Scores after `value` of `pick` is subtracted; `own` is the pick's inner product with itself."""
    row = tl.load(G + pick.to(tl.int64) * n_atoms + atoms, mask=atoms < n_atoms, other=0.0).to(tl.float32)
    scores = scores - value * tl.where(atoms == pick, own, row)
    if not RESELECT:
        scores = tl.where(atoms == pick, float("-inf"), scores)
    return scores


@triton.jit
@no_type_check
def find_tops(SCORES, tops, blocks, lanes_block, n_atoms, BLOCK: tl.constexpr, ABS: tl.constexpr):
    """Highest rank of each block of scores in memory."""
    for block in range(tl.cdiv(n_atoms, BLOCK)):
        atoms = block * BLOCK + lanes_block
        part = tl.load(SCORES + atoms, mask=atoms < n_atoms, other=float("-inf"))
        tops = tl.where(blocks == block, tl.max(rank_scores(part, ABS), axis=0), tops)
    return tops


@triton.jit
@no_type_check
def count_rivals(SCORES, tops, blocks, least, lanes_block, n_atoms, BLOCK: tl.constexpr, ABS: tl.constexpr):
    """How many scores in memory reach `least`; only blocks whose top does are read."""
    n_rivals = 0
    for block in range(tl.cdiv(n_atoms, BLOCK)):
        if tl.max(tl.where(blocks == block, tops, float("-inf")), axis=0) >= least:
            atoms = block * BLOCK + lanes_block
            part = tl.load(SCORES + atoms, mask=atoms < n_atoms, other=float("-inf"))
            n_rivals += tl.sum((rank_scores(part, ABS) >= least).to(tl.int32), axis=0)
    return n_rivals
