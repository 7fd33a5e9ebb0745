"""Which positions of a batch become rows, what is recorded of them, and how rows are gathered or averaged."""

import hashlib
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from thresher.errors import ModelError
from thresher.harvest.adapters.base import HookPoint, Layout, Level, Packing, TokenKind

ImageRows = Literal["all", "attended", "cls", "registers", "patches"]
TextRows = Literal["all", "attended", "last", "eot", "content", "text", "image"]
Pool = Literal["none", "mean"]

KINDS = {
    "cls": TokenKind.CLS,
    "registers": TokenKind.REGISTER,
    "patches": TokenKind.PATCH,
    "text": TokenKind.TEXT,
    "image": TokenKind.IMAGE,
}
"""Policies that keep positions of one kind."""
STRUCTURAL = {"cls": "CLS token", "registers": "register token", "patches": "patch"}
"""What an image tower has in every image or in none."""


class Subset(NamedTuple):
    """A random choice of positions within each item."""

    n: int
    """Positions that are kept of an item that has more."""
    seed: int


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
    """The positions that become rows.

    Padding never does, but for `attended` where the model attends to it, and for `eot` where the model itself pools there
    (SigLIP). Raises ModelError when the tower has no position of the kind asked for.
    """
    if policy == "eot":
        if layout.summary is None:
            raise ModelError(
                "text_rows=eot: this model has no position that stands for a text; use all, last or a pooled hook point"
            )
        item = _present(layout)
        return RowIndex(item, layout.summary[item], is_everything=False)
    mask = _mask(layout, policy)
    if policy in STRUCTURAL and not mask.any():
        found = set(layout.kind.unique().tolist())
        known = ", ".join(["all", *(policy for policy in STRUCTURAL if KINDS[policy] in found)])
        raise ModelError(f"image_rows={policy}: this model has no {STRUCTURAL[policy]} in its images; use one of {known}")
    item, position = mask.nonzero(as_tuple=True)
    return RowIndex(item, position, is_everything=len(item) == mask.numel())


def _mask(layout: Layout, policy: ImageRows | TextRows) -> Bool[Tensor, "item position"]:
    match policy:
        case "all":
            return layout.valid
        case "content":
            return layout.valid & ~layout.special
        case "attended":
            present = layout.valid.any(dim=1, keepdim=True).expand_as(layout.valid)
            return present if layout.unattended is None else present & ~layout.unattended
        case "last":
            places = torch.arange(layout.valid.shape[1]) * layout.valid
            return layout.valid & (places == places.amax(dim=1, keepdim=True))
        case _:
            return layout.kind == KINDS[policy]


def draw_subset(rows: RowIndex, keys: Sequence[str], subset: Subset) -> RowIndex:
    """At most `n` rows of each item, in order; which ones follows from the seed, the item's key and the position alone."""
    item, position = rows.item.numpy(), rows.position.numpy().astype(np.uint64)
    rank = _rank_in_item(item, _mix(_hash_keys(keys, subset.seed)[item] + position * GOLDEN))
    kept = torch.from_numpy(rank < subset.n)
    return RowIndex(rows.item[kept], rows.position[kept], is_everything=rows.is_everything and bool(kept.all()))


GOLDEN = np.uint64(0x9E3779B97F4A7C15)
"""2^64 over the golden ratio: the increment of SplitMix64 (Steele, Lea and Flood 2014)."""


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The output function of SplitMix64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _hash_keys(keys: Sequence[str], seed: int) -> npt.NDArray[np.uint64]:
    digests = [hashlib.blake2b(f"{seed}:{key}".encode(), digest_size=8).digest() for key in keys]
    return np.frombuffer(b"".join(digests), "<u8").astype(np.uint64)


def _rank_in_item(item: npt.NDArray[np.int64], score: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """For each row the number of rows of its item with a smaller score; `item` is sorted."""
    order = np.lexsort((score, item))
    first = np.searchsorted(item, item, side="left")
    rank = np.empty(len(item), np.int64)
    rank[order] = np.arange(len(item)) - first
    return rank


def locate(rows: RowIndex, packing: Packing | None) -> RowIndex:
    """Where token rows are in the activations of a forward pass: sequence and place if it is packed, else item and position."""
    if packing is None:
        return rows
    sequence, place = packing.sequence[rows.item], packing.start[rows.item] + rows.position
    n_sequences, n_places = packing.shape
    is_full = len(place) == n_sequences * n_places
    flat = sequence * n_places + place
    return RowIndex(sequence, place, is_everything=is_full and torch.equal(flat, torch.arange(len(flat))))


def select_items(layout: Layout) -> RowIndex:
    """One row per item that has any position at all."""
    item = _present(layout)
    return RowIndex(item, torch.full_like(item, -1), is_everything=len(item) == len(layout.valid))


class Means(NamedTuple):
    """Rows that are averages of the token rows of their item."""

    rows: RowIndex
    """One per item that has any rows to be averaged."""
    lengths: Int[Tensor, " row"]
    """How many those are."""

    def pin(self) -> "Means":
        """The same in page-locked memory."""
        return Means(self.rows.pin(), self.lengths.pin_memory())


def select_means(tokens: RowIndex) -> Means:
    """The averages of token rows by item."""
    item, lengths = tokens.item.unique_consecutive(return_counts=True)
    return Means(RowIndex(item, torch.full_like(item, -1), is_everything=False), lengths)


def name_space(point: HookPoint, pool: Pool) -> str:
    """The row space of a hook point: averages over tokens have one of their own, for instance `image.means`."""
    return f"{point.modality}.means" if point.level == "tokens" and pool == "mean" else point.space


def describe_rows(layout: Layout, rows: RowIndex, *, has_patches: bool) -> dict[str, Int[Tensor, " row"]]:
    """What the store records of token rows: `kind`, and with `has_patches` also `patch_row` and `patch_column`."""
    columns = {"kind": layout.kind[rows.item, rows.position].to(torch.int8)}
    if not has_patches:
        return columns
    missing = torch.full((len(rows.item), 2), -1, dtype=torch.int16)
    place = missing if layout.grid is None else layout.grid[rows.item, rows.position].to(torch.int16)
    return columns | {"patch_row": place[:, 0].contiguous(), "patch_column": place[:, 1].contiguous()}


def gather(activations: Float[Tensor, "item *position d"], rows: RowIndex, level: Level) -> Float[Tensor, "row d"]:
    """The rows of captured activations, in order, contiguous; no copy when they are everything. All on one device."""
    if rows.is_everything:
        return activations.flatten(0, -2).contiguous()
    return activations[rows.item] if level == "items" else activations[rows.item, rows.position]


def average(values: Float[Tensor, "row d"], lengths: Int[Tensor, " item"]) -> Float[Tensor, "item d"]:
    """Means of the first `lengths[0]` rows, the next `lengths[1]`, ..., which add up to all rows; none may be 0.

    In float32, added up in the order of the rows, whatever stands beside them. All on one device, which is not waited for.
    """
    if not len(lengths):
        return values.float()
    # Not checked: that would wait for the device.
    return torch.segment_reduce(values.float(), "mean", lengths=lengths, axis=0, unsafe=True)


def find_order(item: Int[Tensor, " row"]) -> Int[Tensor, " row"] | None:
    """What brings rows into the order of their items, those of an item as they are; None when they are in it."""
    if len(item) < 2 or bool((item[1:] >= item[:-1]).all()):
        return None
    return item.argsort(stable=True)


def find_nonfinite(activations: Float[Tensor, "row d"]) -> Bool[Tensor, " row"] | None:
    """Marks the rows with NaN or infinity; None when there are none."""
    # The sum is one pass without temporaries, and finite unless it overflows or something in it is not.
    if torch.isfinite(activations.sum(dtype=torch.float32)):
        return None
    bad = ~torch.isfinite(activations).all(dim=1)
    return bad if bad.any() else None


def _present(layout: Layout) -> Int[Tensor, " row"]:
    return layout.valid.any(dim=1).nonzero().flatten()
