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


def name_nonfinite(store: Readable, hook_point: str) -> str:
    """The first row that is not finite and its item, and how many there are; reads all rows."""
    first, n_bad = -1, 0
    for start in range(0, store.rows(hook_point), READ_ROWS):
        rows = store.read(hook_point, start, min(start + READ_ROWS, store.rows(hook_point)))
        bad = (~rows.isfinite().all(1)).nonzero()[:, 0]
        first = start + int(bad[0]) if first < 0 and len(bad) else first
        n_bad += len(bad)
    if first < 0:
        return "no single row"
    item = int(store.read_items_of(hook_point, first, first + 1)[0])
    key = store.items(store.hook_points[hook_point].modality, ["key"])["key"][item].as_py()
    return f"row {first} (item {key!r})" + (f" and {n_bad - 1} more" if n_bad > 1 else "")
