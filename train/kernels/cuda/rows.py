# pyright: basic
"""What the kernels that own one row share: rounding, the certificate's norms, exact inner products with some atoms."""

from typing import no_type_check

import triton
import triton.language as tl


@triton.jit
@no_type_check
def find_norm(r):
    """Norm of a row, scaled so that it neither overflows nor vanishes."""
    largest = tl.max(tl.abs(r), axis=0)
    scale = tl.where(largest > 0, largest, 1.0)
    return scale * tl.sqrt(tl.sum((r / scale) * (r / scale), axis=0))


@triton.jit
@no_type_check
def round_like(r, OUT, TF32: tl.constexpr):
    """`r` rounded to the type of OUT; with TF32 to 10 bits of mantissa in fp32, so that tensor cores lose nothing more."""
    if TF32:
        bits = r.to(tl.int32, bitcast=True)
        rounded = ((bits + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
    else:
        rounded = r.to(OUT.dtype.element_ty)
    return rounded


@triton.jit
@no_type_check
def correlate_some(D, atoms, wanted, r, lanes, d):
    """fp32 inner products of the row `r` with the chosen atoms; every atom is summed in the same order."""
    mask = wanted[:, None] & (lanes[None, :] < d)
    block = tl.load(D + atoms.to(tl.int64)[:, None] * d + lanes[None, :], mask=mask, other=0.0)
    return tl.sum(block * r[None, :], axis=1)


@triton.jit
@no_type_check
def is_among(atoms, PICKS, n_picks, wanted):
    """Which of `wanted` atoms are among the first `n_picks` entries at PICKS."""
    found = wanted & (atoms < 0)
    for step in range(n_picks):
        found = found | (atoms == tl.load(PICKS + step).to(tl.int32))
    return found


@triton.jit
@no_type_check
def keep_better(best, best_atom, dots, atoms, wanted, ABS: tl.constexpr):
    """The best atom so far and its score, the lowest index among equals."""
    scores = tl.abs(dots) if ABS else dots
    scores = tl.where(wanted, scores, float("-inf"))
    top = tl.max(scores, axis=0)
    atom = tl.min(tl.where(wanted & (scores == top), atoms, 2147483647), axis=0)
    is_better = (top > best) | ((top == best) & (atom < best_atom))
    return tl.where(is_better, top, best), tl.where(is_better, atom, best_atom)
