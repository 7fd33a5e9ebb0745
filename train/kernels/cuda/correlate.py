# pyright: basic
"""Products of rows and atoms: the best scores of each tile without writing the others, or all of them.

Cost of one product of rows and atoms: 2 row d_sae d_in flops on tensor cores (bf16: 790 Tflop/s on an H200 by its data
sheet; tf32 half of that), and (1/tile.rows + 1/tile.atoms) row d_sae d_in elements from the second-level cache, which is
what binds small tiles. `correlate_top` writes 4 KEPT_PER_TILE / tile.atoms bytes per score instead of 4.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from thresher.train.kernels.cuda.device import is_interpreted, launch
from thresher.train.kernels.cuda.plan import KEPT_PER_TILE, Tile, plan_correlation, plan_gram_product

NO_KEY = tl.constexpr(-(2**31))
"""Key of a column that does not exist."""


@triton.jit
@no_type_check
def multiply_tile(A, B, row0, col0, n_rows, n_cols, d, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
                  PRECISION: tl.constexpr, UPCAST: tl.constexpr):  # fmt: skip
    """[BM, BN] inner products of the rows of A from `row0` and of B from `col0`, in fp32; zeros beyond the edges."""
    rows = tl.arange(0, BM)
    cols = tl.arange(0, BN)
    depth = tl.arange(0, BK)
    # Offsets in 64 bits up to the tile, in 32 within it: 64-bit index tensors cost twice the registers.
    a = A + row0.to(tl.int64) * d + rows[:, None] * d + depth[None, :]
    b = B + col0.to(tl.int64) * d + cols[None, :] * d + depth[:, None]
    has_row = rows[:, None] < n_rows - row0
    has_col = cols[None, :] < n_cols - col0
    total = tl.zeros((BM, BN), tl.float32)
    for start in range(0, d, BK):
        left = tl.load(a + start, mask=has_row & (depth[None, :] < d - start), other=0.0)
        right = tl.load(b + start, mask=has_col & (depth[:, None] < d - start), other=0.0)
        if UPCAST:  # the interpreter multiplies bf16 as if its bits were integers
            left = left.to(tl.float32)
            right = right.to(tl.float32)
        total = tl.dot(left, right, total, input_precision=PRECISION)
    return total


@triton.jit
@no_type_check
def _correlate_top(R, D, LIMIT, KEYS, n_rows, n_atoms, d, n_tiles, TOP: tl.constexpr, ABS: tl.constexpr, BM: tl.constexpr,
                   BN: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr):  # fmt: skip
    # Neighbouring programs share a tile of atoms; the rows of a batch fit into the second-level cache.
    row_tiles = tl.cdiv(n_rows, BM)
    tile = tl.program_id(0) // row_tiles
    row0 = (tl.program_id(0) % row_tiles) * BM
    rows = row0 + tl.arange(0, BM)
    limit = tl.load(LIMIT + rows, mask=rows < n_rows, other=float("inf"))
    if tl.min(limit, axis=0) < float("inf"):
        col0 = tile * BN
        scores = multiply_tile(R, D, row0, col0, n_rows, n_atoms, d, BM, BN, BK, PRECISION, UPCAST)
        if ABS:
            scores = tl.abs(scores)
        bits = scores.to(tl.int32, bitcast=True)
        bits = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
        col = tl.arange(0, BN)[None, :]
        key = tl.where(col < n_atoms - col0, (bits & (-BN)) | col, NO_KEY)
        out = KEYS + rows.to(tl.int64) * (TOP * n_tiles) + tile
        for rank in tl.static_range(TOP):
            best = tl.max(key, axis=1)
            tl.store(out + rank * n_tiles, best, mask=rows < n_rows)
            key = tl.where(key == best[:, None], NO_KEY, key)


@triton.jit
@no_type_check
def _correlate(A, B, OUT, ERROR, n_rows, n_cols, d, SYMMETRIC: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
               BK: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr):  # fmt: skip
    row_tiles = tl.cdiv(n_rows, BM)
    row_tile = tl.program_id(0) % row_tiles
    col_tile = tl.program_id(0) // row_tiles
    if not SYMMETRIC or col_tile >= row_tile:
        row0 = row_tile * BM
        col0 = col_tile * BN
        exact = multiply_tile(A, B, row0, col0, n_rows, n_cols, d, BM, BN, BK, PRECISION, UPCAST)
        rows = row0 + tl.arange(0, BM)
        cols = col0 + tl.arange(0, BN)
        stored = exact.to(OUT.dtype.element_ty)
        inside = (rows[:, None] < n_rows) & (cols[None, :] < n_cols)
        tl.store(OUT + rows.to(tl.int64)[:, None] * n_cols + cols[None, :], stored, mask=inside)
        if SYMMETRIC:
            mirror = OUT + cols.to(tl.int64)[:, None] * n_cols + rows[None, :]
            tl.store(mirror, tl.trans(stored), mask=(cols[:, None] < n_cols) & (rows[None, :] < n_rows))
            error = tl.abs(exact - stored.to(tl.float32))
            error = tl.where(inside & (rows[:, None] != cols[None, :]), error, 0.0)
            tl.store(ERROR + col_tile.to(tl.int64) * n_rows + rows, tl.max(error, axis=1), mask=rows < n_rows)
            tl.store(ERROR + row_tile.to(tl.int64) * n_rows + cols, tl.max(error, axis=0), mask=cols < n_cols)


def plan_top(rows: Tensor, low: Tensor) -> Tile:
    """The tile that `correlate_top` takes for these operands."""
    return plan_correlation(rows.shape[0], rows.shape[1], low.shape[0], low.element_size())


def correlate_top(rows: Tensor, low: Tensor, limit: Tensor, keys: Tensor, tile: Tile, *, takes_absolute: bool) -> None:
    """Write the `KEPT_PER_TILE` best scores of every row in each tile of atoms into `keys` [row, KEPT_PER_TILE, tiles].

    A key is the score's bits in an order that integers share, its last bits replaced by the column within the tile, which
    lowers the score by at most 2^(log2(tile.atoms) - 23) of itself. Tiles of rows whose `limit` is infinite are skipped.
    """
    (n_rows, d), n_atoms, n_tiles = rows.shape, low.shape[0], keys.shape[2]
    launch(
        _correlate_top, triton.cdiv(n_rows, tile.rows) * n_tiles, rows, low, limit, keys, n_rows, n_atoms, d, n_tiles,
        TOP=KEPT_PER_TILE, ABS=takes_absolute, BM=tile.rows,
        BN=tile.atoms, BK=tile.depth, PRECISION="tf32", UPCAST=is_interpreted(), num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip


def correlate(rows: Tensor, atoms: Tensor) -> Tensor:
    """All inner products [row, d_sae] in fp32, summed in fp32; fp32 operands are multiplied as such, not as tf32."""
    scores = torch.empty(rows.shape[0], atoms.shape[0], dtype=torch.float32, device=rows.device)
    tile = plan_correlation(rows.shape[0], rows.shape[1], atoms.shape[0], rows.element_size())
    _launch(rows, atoms, scores, scores, tile, symmetric=False)
    return scores


def correlate_with_itself(atoms: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Inner products [d_sae, d_sae] of all atoms in `dtype`, from the upper triangle, and each row's largest rounding error.

    The error is that of storing (fp32 sums against what is kept), off the diagonal, [d_sae] in fp32.
    """
    n_atoms = atoms.shape[0]
    gram = torch.empty(n_atoms, n_atoms, dtype=dtype, device=atoms.device)
    tile = plan_gram_product(atoms.shape[1], n_atoms, atoms.element_size())
    error = torch.empty(triton.cdiv(n_atoms, tile.rows), n_atoms, dtype=torch.float32, device=atoms.device)
    _launch(atoms, atoms, gram, error, tile, symmetric=True)
    return gram, error.amax(0)


def _launch(a: Tensor, b: Tensor, out: Tensor, error: Tensor, tile: Tile, *, symmetric: bool) -> None:
    n_programs = triton.cdiv(a.shape[0], tile.rows) * triton.cdiv(b.shape[0], tile.atoms)
    launch(
        _correlate, n_programs, a, b, out, error, a.shape[0], b.shape[0], a.shape[1], SYMMETRIC=symmetric, BM=tile.rows,
        BN=tile.atoms, BK=tile.depth,
        PRECISION="ieee", UPCAST=is_interpreted(), num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
