# pyright: basic
"""Matching pursuit whose scores are products in low precision and whose choices are those of exact fp32.

Per step two kernels. `correlate_top` gives the best scores of each tile of atoms. `_finish` knows by how much a score can
differ from the exact inner product, |score_j - <d_j, r>| <= e with (d^, r^ the operands rounded)

    e = (eps + slack) |r| + norm |r - r^|,   eps = max_j |d_j - d^_j|,   norm = max_j |d^_j|,
    slack = norm (d_in 2^-23 for the sums in fp32 + 2 tile.atoms 2^-23 for the packed keys),

computes in fp32 every inner product that can still be the largest (score >= best - 2 e) and takes the largest of those.
Where the last score that a tile reports is itself in the band, an atom that was not reported may be too: the whole tile
is then computed in fp32, at once and on the device. So the pick is the fp32 one, whatever the low precision.

Cost per row and step: 2 d_sae d_in low-precision flops, and 20 d_in + 4 KEPT_PER_TILE d_sae / tile.atoms bytes of memory in
`_finish`; on an H200 at (d_in 768, d_sae 16384, row 8192) at least 0.26 ms and 0.03 ms.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from thresher.train.kernels.cuda.correlate import NO_KEY, correlate_top, plan_top
from thresher.train.kernels.cuda.device import launch
from thresher.train.kernels.cuda.plan import KEPT_PER_TILE, RowPlan, Tile, plan_row, round_up
from thresher.train.kernels.cuda.rows import correlate_some, find_norm, is_among, keep_better, round_like
from thresher.train.kernels.rule import Rule


@triton.jit
@no_type_check
def _begin(X, R, LOW, BAND, LIMIT, BOUNDS, slack, tol, d, DP: tl.constexpr, TF32: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, DP)
    inside = lanes < d
    r = tl.load(X + row * d + lanes, mask=inside, other=0.0)
    norm = find_norm(r)
    low = round_like(r, LOW, TF32)
    lost = find_norm(r - low.to(tl.float32))
    tl.store(R + row * d + lanes, r, mask=inside)
    tl.store(LOW + row * d + lanes, low, mask=inside)
    longest = tl.load(BOUNDS + 1)
    tl.store(BAND + row, (tl.load(BOUNDS) + slack * longest) * norm + longest * lost)
    tl.store(LIMIT + row, tol * norm)


@triton.jit(do_not_specialize=["step"])
@no_type_check
def _finish(R, LOW, BAND, LIMIT, BOUNDS, D, KEYS, IDX, VAL, slack, step, k, n_atoms, n_tiles, d, TOP: tl.constexpr,
            KP: tl.constexpr, DP: tl.constexpr, CB: tl.constexpr, BN: tl.constexpr, RELU: tl.constexpr, ABS: tl.constexpr,
            RESELECT: tl.constexpr, TF32: tl.constexpr):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, DP)
    inside = lanes < d
    limit = tl.load(LIMIT + row)
    r = tl.load(R + row * d + lanes, mask=inside, other=0.0)
    value = 0.0
    pick = 0
    if find_norm(r) > limit:
        band = tl.load(BAND + row)
        place = tl.arange(0, KP)
        tile = place % n_tiles
        key = tl.load(KEYS + row * (TOP * n_tiles) + place, mask=place < TOP * n_tiles, other=NO_KEY)
        atom = tile * BN + (key & (BN - 1))
        bits = key & (-BN)
        bits = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
        bound = tl.where(key == NO_KEY, float("-inf"), bits.to(tl.float32, bitcast=True))
        score = bound
        if not RESELECT:
            score = tl.where(is_among(atom, IDX + row * k, step, key != NO_KEY), float("-inf"), score)
        least = tl.max(score, axis=0) - 2 * band
        rivals = (score >= least) & (score > float("-inf"))
        # An atom that its tile did not report is at most as good as the last one that the tile did report.
        is_open = (place // n_tiles == TOP - 1) & (bound >= least) & (key != NO_KEY)
        best = float("-inf")
        best_atom = 2147483647
        some = tl.arange(0, CB)
        place_among = tl.cumsum(rivals.to(tl.int32), axis=0) - 1
        n_rivals = tl.sum(rivals.to(tl.int32), axis=0)
        for start in range(0, n_rivals, CB):
            is_here = rivals[None, :] & (place_among[None, :] == (start + some)[:, None])
            atoms = tl.sum(tl.where(is_here, atom[None, :], 0), axis=1)
            wanted = start + some < n_rivals
            dots = correlate_some(D, atoms, wanted, r, lanes, d)
            best, best_atom = keep_better(best, best_atom, dots, atoms, wanted, ABS)
        n_open = tl.sum(is_open.to(tl.int32), axis=0)
        while n_open > 0:
            open_tile = tl.min(tl.where(is_open, tile, 2147483647), axis=0)
            is_open = is_open & (tile != open_tile)
            n_open -= 1
            for start in range(0, BN, CB):
                atoms = open_tile * BN + start + some
                wanted = atoms < n_atoms
                if not RESELECT:
                    wanted = wanted & (is_among(atoms, IDX + row * k, step, wanted) == 0)
                dots = correlate_some(D, atoms, wanted, r, lanes, d)
                best, best_atom = keep_better(best, best_atom, dots, atoms, wanted, ABS)
        # Nothing is chosen where the dictionary holds a NaN: the row stops instead of reading out of bounds.
        width = tl.where(best_atom < n_atoms, d, 0)
        direction = tl.load(D + best_atom.to(tl.int64) * d + lanes, mask=lanes < width, other=0.0)
        dot = tl.sum(direction * r, axis=0)
        goes_on = dot > 0 if RELU else dot != 0
        value = tl.where(goes_on, dot, 0.0)
        pick = tl.where(goes_on, best_atom, 0)
        r = r - value * direction
        low = round_like(r, LOW, TF32)
        lost = find_norm(r - low.to(tl.float32))
        longest = tl.load(BOUNDS + 1)
        tl.store(R + row * d + lanes, r, mask=inside)
        tl.store(LOW + row * d + lanes, low, mask=inside)
        tl.store(BAND + row, (tl.load(BOUNDS) + slack * longest) * find_norm(r) + longest * lost)
        tl.store(LIMIT + row, tl.where(goes_on, limit, float("inf")))
    else:
        tl.store(LIMIT + row, float("inf"))
    tl.store(IDX + row * k + step, pick.to(tl.int64))
    tl.store(VAL + row * k + step, value)


def round_to_tf32(x: Tensor) -> Tensor:
    """fp32 whose mantissa has 10 bits, rounded to nearest: what a tensor core reads without further loss."""
    return ((x.view(torch.int32) + 0x1000) & -0x2000).view(torch.float32)


def find_bounds(dictionary: Tensor, low: Tensor, low_error: Tensor) -> Tensor:
    """The certificate's eps and norm as [2] on the device: largest |d_j - d^_j|, largest |d^_j|."""
    eps = low_error.amax()
    return torch.stack([eps, torch.linalg.vector_norm(dictionary, dim=1).amax() + eps])


def pursue_with_certificate(
    x: Tensor, dictionary: Tensor, low: Tensor, low_error: Tensor, rule: Rule
) -> tuple[Tensor, Tensor, Tensor]:
    """Indices, values and residual; `low` is `dictionary` in bf16, or in fp32 rounded to tf32."""
    (n_rows, d), device = x.shape, x.device
    rounded, residual = torch.empty_like(x, dtype=low.dtype), torch.empty_like(x)
    tile, plan = plan_top(rounded, low), plan_row(d)
    keys = torch.empty(n_rows, KEPT_PER_TILE, triton.cdiv(low.shape[0], tile.atoms), dtype=torch.int32, device=device)
    indices = torch.empty(n_rows, rule.k, dtype=torch.int64, device=device)
    values = torch.empty(n_rows, rule.k, dtype=torch.float32, device=device)
    band, limit = torch.empty(2, n_rows, dtype=torch.float32, device=device)
    bounds = find_bounds(dictionary, low, low_error)
    slack = (d + 2 * tile.atoms) * 2.0**-23
    launch(
        _begin, n_rows, x, residual, rounded, band, limit, bounds, slack, rule.residual_tol or 0.0, d, DP=plan.width,
        TF32=low.dtype == torch.float32, num_warps=plan.warps,
    )  # fmt: skip
    for step in range(rule.k):
        correlate_top(rounded, low, limit, keys, tile, takes_absolute=rule.sign == "abs")
        state = (residual, rounded, band, limit, bounds)
        _take_step(state, dictionary, keys, indices, values, slack, step, tile, plan, rule)
    return indices, values, residual


def _take_step(
    state: tuple[Tensor, ...], dictionary: Tensor, keys: Tensor, indices: Tensor, values: Tensor, slack: float, step: int,
    tile: Tile, plan: RowPlan, rule: Rule,
) -> None:  # fmt: skip
    n_tiles = keys.shape[2]
    launch(
        _finish, indices.shape[0], *state, dictionary, keys, indices, values, slack, step, rule.k, dictionary.shape[0],
        n_tiles, dictionary.shape[1],
        TOP=KEPT_PER_TILE, KP=round_up(KEPT_PER_TILE * n_tiles), DP=plan.width, CB=plan.at_once, BN=tile.atoms,
        RELU=rule.sign == "relu", ABS=rule.sign == "abs", RESELECT=rule.reselect, TF32=state[1].dtype == torch.float32,
        num_warps=plan.warps,
    )  # fmt: skip
