"""Tile sizes as pure functions of shapes: no tuning at the first call, so equal calls do equal arithmetic."""

from typing import NamedTuple

LOW_BITS = 23
"""Mantissa bits of fp32; the packed keys give the last log2(tile) of them to the column."""
KEPT_PER_TILE = 3
"""Best scores that a tile of atoms reports, so that the exact pass knows up to two rivals of its best one by name.

Two would halve the integer work after the product, but 2 to 14 % of the rows would then rescore a tile at each step;
with three 0 to 0.7 % do (bf16, d_sae 4096 and 16384, counted on a CPU over random and trained dictionaries).
"""
SCORES_IN_REGISTERS = 16384
"""Widest dictionary whose scores one program holds in registers."""
SCORES_BLOCK = 8192
"""Scores per pass where they stay in memory."""
REGISTERS_PER_THREAD = 128
"""Limit for the Gram form, whose speed is the number of rows in flight."""
SCORES_AT_ONCE = 2**26
"""Scores in memory at once (256 MB of fp32) in the Gram form; rows are worked off in chunks."""
PAIRS_AT_ONCE = 2**26
"""Numbers of per-pick gradients in memory at once (256 MB of fp32) in the backward pass; rows are worked off in chunks."""
PICKS_PER_SEGMENT = 32
"""Picks that one program adds up when picks are summed by atom."""


class Tile(NamedTuple):
    """How a product of rows and atoms is cut."""

    rows: int
    atoms: int
    depth: int
    warps: int
    stages: int


class RowPlan(NamedTuple):
    """How one program holds one row."""

    width: int
    """d_in rounded up to a power of two."""
    warps: int
    at_once: int
    """Atoms whose inner products with the row are computed together."""


class GramPlan(NamedTuple):
    """How one program holds the scores of one row."""

    width: int
    """Scores per pass, a power of two."""
    warps: int
    in_registers: bool
    """All scores in one pass that stays in registers, or passes over memory."""

    def n_blocks(self, n_atoms: int) -> int:
        """Passes, rounded up to a power of two."""
        return round_up(-(-n_atoms // self.width))


def round_up(n: int) -> int:
    """The next power of two."""
    return 1 << max(n - 1, 0).bit_length()


def plan_correlation(n_rows: int, d_in: int, n_atoms: int, element_bytes: int) -> Tile:
    """Tile of the product of rows and atoms.

    A tile of 128 rows and 256 atoms moves 2 d_in (1/128 + 1/256) bytes per score of bf16 from the second-level cache
    instead of 2 d_in (1/128 + 1/128) and needs 144 kB of shared memory with three stages. Few rows take lower tiles.
    """
    rows = min(max(round_up(n_rows), 16), 128)
    atoms = min(max(round_up(n_atoms), 32), 256 if rows == 128 and element_bytes == 2 else 128)
    depth = min(max(round_up(d_in), 16), 64 if element_bytes == 2 else 32)
    warps = 8 if rows * atoms > 8192 else 4
    return Tile(rows, atoms, depth, warps, 3 if atoms == 256 else 4)


def plan_gram_product(d_in: int, n_atoms: int, element_bytes: int) -> Tile:
    """Square tile of the product of a dictionary with itself."""
    size = min(max(round_up(n_atoms), 16), 128)
    depth = min(max(round_up(d_in), 16), 64 if element_bytes == 2 else 32)
    return Tile(size, size, depth, 8 if size == 128 else 4, 4)


def plan_row(d_in: int) -> RowPlan:
    """One program per row: at most 32 numbers of the row and 64 of the atoms per thread."""
    width = max(round_up(d_in), 16)
    warps = min(max(width // 256, 1), 8)
    return RowPlan(width, max(warps, 4) if width >= 256 else warps, min(max(8192 // width, 1), 16))


def plan_scores(n_atoms: int) -> GramPlan:
    """One program per row: up to 32 scores per thread in registers, passes over memory beyond `SCORES_IN_REGISTERS`.

    With `REGISTERS_PER_THREAD` a multiprocessor of 65536 registers holds 16 warps: one row of 16384 scores, four of 4096.
    """
    width = max(round_up(n_atoms), 32)
    if width <= SCORES_IN_REGISTERS:
        return GramPlan(width, min(max(width // 1024, 4), 16), in_registers=True)
    return GramPlan(SCORES_BLOCK, 16, in_registers=False)


def rows_at_once(n_rows: int, numbers_per_row: int, limit: int) -> int:
    """Rows of a chunk that holds at most `limit` numbers, at least one."""
    return max(min(n_rows, limit // max(numbers_per_row, 1)), 1)
