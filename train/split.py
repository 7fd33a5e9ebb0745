"""The two sides of a store, in chunks: rows to train on and rows held out."""

from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from thresher.data.readable import Readable
from thresher.data.stream import held_out

READ_ROWS = 1 << 16


def read_side(
    store: Readable,
    hook_point: str,
    side: Literal["training", "held_out"],
    *,
    holdout: float,
    seed: int,
    at_most: int | None = None,
) -> Iterator[Float32[Tensor, "_ d_in"]]:
    """The rows of one side in the order of the store; with `at_most` about so many of both sides, spread evenly."""
    mask = held_out(store, store.hook_points[hook_point].modality, holdout, seed)
    if side == "training":
        mask = ~mask
    n_rows = store.rows(hook_point)
    n_chunks = -(-n_rows // READ_ROWS)
    length = READ_ROWS if at_most is None or at_most >= n_rows else max(at_most // n_chunks, 1)
    for start in range(0, n_rows, READ_ROWS):
        stop = min(start + length, n_rows)
        wanted = np.flatnonzero(mask[store.read_items_of(hook_point, start, stop)])
        if len(wanted):
            yield store.read(hook_point, start, stop)[torch.from_numpy(wanted)].float()
