"""Which iteration spoilt a training, and which rows it was given."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from thresher.data.stream import Drawn
from thresher.train.learner import Iteration
from thresher.train.protocol import Stream

EXTREME = 100.0
"""A row is extreme when its norm is so many times the median of its batch."""
N_NAMED = 5
"""So many rows are named, and the rest counted."""


class FiniteWatch:
    """Remembers the first iteration whose loss or gradient is not finite, without waiting for the device.

    Keeps the stream's position before each iteration since the last look: a few numbers each.
    """

    def __init__(self, device: torch.device) -> None:
        self._first = torch.zeros((), dtype=torch.int64, device=device)
        self._positions: dict[int, Mapping[str, Any]] = {}

    def note(self, step: Iteration, position: Mapping[str, Any]) -> None:
        """Take an iteration into account; `position` is where the stream was before its batch."""
        is_good = step.parts["reconstruction"].isfinite() & step.parts["gradient_norm"].isfinite()
        self._first = torch.where(is_good | (self._first > 0), self._first, step.number)
        self._positions[step.number] = position

    def look(self) -> tuple[int, Mapping[str, Any]] | None:
        """The first bad iteration and the position before its batch; None when all were good. The host waits here."""
        number = int(self._first)
        if number:
            return number, self._positions[number]
        self._positions.clear()
        return None


def describe_batch(stream: Stream, position: Mapping[str, Any]) -> str:
    """The rows of a batch that are not finite or extreme, by hook point, row and item; else how large its rows are.

    Reads the batch again; nobody may be iterating over the stream.
    """
    batch, drawn = stream.trace(position)
    norms = torch.linalg.vector_norm(batch.x.double(), dim=1).cpu()
    finite = norms[norms.isfinite()]
    median = float(finite.median()) if len(finite) else 0.0
    origins = f" ({_list_origins(drawn)})" if drawn else ""
    what = f"Its batch of {len(norms)} rows{origins}"
    for word, mask in (
        ("not finite", ~norms.isfinite()),
        (f"over {EXTREME:g} times the median norm", norms > EXTREME * median),
    ):
        if mask.any():
            named = f": {_name_rows(drawn, mask)}" if drawn else ""
            return f"{what} has {int(mask.sum())} that are {word}{named}"
    return f"{what} is finite, with norms from {float(norms.min()):.3g} to {float(norms.max()):.3g}"


def _list_origins(drawn: list[Drawn]) -> str:
    return "; ".join(f"{each.hook_point} of {each.store.path}" for each in drawn if len(each.rows))


def _name_rows(drawn: list[Drawn], mask: Tensor) -> str:
    named: list[str] = []
    start = 0
    for each in drawn:
        wanted = np.flatnonzero(mask[start : start + len(each.rows)].numpy())
        start += len(each.rows)
        for row in each.rows[wanted[: N_NAMED - len(named)]].tolist():
            item = int(each.store.read_items_of(each.hook_point, row, row + 1)[0])
            key = each.store.items(each.store.hook_points[each.hook_point].modality, ["key"])["key"][item].as_py()
            named.append(f"{each.hook_point} row {row} (item {key!r})")
    more = int(mask.sum()) - len(named)
    return ", ".join(named) + (f" and {more} more" if more else "")
