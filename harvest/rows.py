"""Which positions of a batch become rows, and whether their values are fit to be stored."""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from thresher.errors import ModelError
from thresher.harvest.adapters.base import Layout, Level

ImageRows = Literal["all", "cls", "patches"]
TextRows = Literal["all", "eot", "content"]


class RowIndex(NamedTuple):
    """Rows as places in a batch of inputs, ordered by item, then position."""

    item: Int[Tensor, " row"]
    """Index within the inputs."""
    position: Int[Tensor, " row"]
    """Position in the tower's sequence; -1 where a row is a whole item."""
    is_everything: bool
    """Every position of every item is a row, in order."""

    def send(self, device: torch.device) -> "RowIndex":
        """The same rows on a device; the copy to a GPU does not wait when the tensors are pinned."""
        item, position = self.item.to(device, non_blocking=True), self.position.to(device, non_blocking=True)
        return RowIndex(item, position, self.is_everything)

    def pin(self) -> "RowIndex":
        """The same rows in page-locked memory."""
        return RowIndex(self.item.pin_memory(), self.position.pin_memory(), self.is_everything)


def select_tokens(layout: Layout, policy: ImageRows | TextRows) -> RowIndex:
    """The positions that become rows. Padding never does, but where the model itself pools at padding (SigLIP) and `eot`
    is asked for. Raises ModelError when the tower has no position of the kind asked for."""
    if policy in ("cls", "eot"):
        if layout.summary is None:
            name = "CLS token in its images" if policy == "cls" else "position that stands for a text"
            raise ModelError(f"rows {policy!r}: this model has no {name}; use all, patches, content or a pooled hook point")
        item = _present(layout)
        return RowIndex(item, layout.summary[item], is_everything=False)
    mask = layout.valid if policy == "all" else layout.valid & ~layout.special
    item, position = mask.nonzero(as_tuple=True)
    return RowIndex(item, position, is_everything=len(item) == mask.numel())


def select_items(layout: Layout) -> RowIndex:
    """One row per item that has any position at all."""
    item = _present(layout)
    return RowIndex(item, torch.full_like(item, -1), is_everything=len(item) == len(layout.valid))


def gather(activations: Float[Tensor, "item *position d"], rows: RowIndex, level: Level) -> Float[Tensor, "row d"]:
    """The rows of captured activations, in order, contiguous; no copy when they are everything. All on one device."""
    if rows.is_everything:
        return activations.flatten(0, -2).contiguous()
    return activations[rows.item] if level == "items" else activations[rows.item, rows.position]


def find_nonfinite(activations: Float[Tensor, "row d"]) -> Bool[Tensor, " row"] | None:
    """Marks the rows with NaN or infinity; None when there are none."""
    # The sum is one pass without temporaries, and finite unless it overflows or something in it is not.
    if torch.isfinite(activations.sum(dtype=torch.float32)):
        return None
    bad = ~torch.isfinite(activations).all(dim=1)
    return bad if bad.any() else None


def _present(layout: Layout) -> Int[Tensor, " row"]:
    return layout.valid.any(dim=1).nonzero().flatten()
