"""Layouts of the sequences that models make of images and texts."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from thresher.harvest.adapters.base import Layout, TokenKind
from thresher.harvest.adapters.tokens import Encoded


def label_texts(found: Encoded, summary: Int[Tensor, " item"] | None, unattended: Tensor | None = None) -> Layout:
    """The layout of encoded texts; `unattended` marks the positions that the model's mask hides, none when not given."""
    kind = torch.full_like(found.ids, TokenKind.PADDING, dtype=torch.int8)
    kind[found.valid] = TokenKind.TEXT
    kind[found.special] = TokenKind.SPECIAL
    return Layout(kind, summary, found.ids, found.is_truncated, None, unattended)


def label_patches(
    shapes: Sequence[tuple[int, int]], *, n_cls: int = 0, n_registers: int = 0, n_positions: int | None = None
) -> Layout:
    """The layout of images as CLS tokens, registers, then patches row by row, one shape (rows, columns) per image.

    Padded to `n_positions`, or to the longest; padding is hidden by the mask. The first CLS token is the summary.
    """
    n_prefix = n_cls + n_registers
    longest = n_prefix + max((rows * columns for rows, columns in shapes), default=0)
    n_positions = n_positions or longest
    kind = torch.full((len(shapes), n_positions), TokenKind.PADDING, dtype=torch.int8)
    grid = torch.full((len(shapes), n_positions, 2), -1, dtype=torch.int16)
    kind[:, :n_cls], kind[:, n_cls:n_prefix] = TokenKind.CLS, TokenKind.REGISTER
    for item, (rows, columns) in enumerate(shapes):
        stop = n_prefix + rows * columns
        kind[item, n_prefix:stop] = TokenKind.PATCH
        grid[item, n_prefix:stop] = count_cells(rows, columns)
    summary = torch.zeros(len(shapes), dtype=torch.int64) if n_cls else None
    padding = kind == TokenKind.PADDING
    return Layout(kind, summary, None, (False,) * len(shapes), grid, padding if padding.any() else None)


def count_cells(rows: int, columns: int) -> Int[Tensor, "cell 2"]:
    """Row and column of the cells of a grid, row by row, int16."""
    return torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).reshape(-1, 2).to(torch.int16)


def find_last(valid: Bool[Tensor, "item position"]) -> Int[Tensor, " item"]:
    """The last position of each item that is not padding; 0 when there is none."""
    places = torch.arange(valid.shape[1]) * valid
    return places.amax(dim=1) if valid.shape[1] else places.new_zeros(len(valid))
