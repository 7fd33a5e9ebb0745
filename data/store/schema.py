"""What goes into an activation store: hook points, rows, items, batches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from types import MappingProxyType
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from thresher.data.records import Modality

Dtype = Literal["float32", "float16", "bfloat16"]
"""How a store keeps activations."""


class TokenKind(IntEnum):
    """What a position of a sequence holds; the values of the row column `kind`."""

    PADDING = 0
    """Nothing of the item."""
    TEXT = 1
    """A token of the text itself."""
    SPECIAL = 2
    """A token that the tokenizer, a template or the model adds to a text: BOS, EOS, CLS, SEP, what marks an image."""
    PATCH = 3
    """A patch of the image in a vision tower."""
    CLS = 4
    """The token of a vision tower that stands for the image."""
    REGISTER = 5
    """A token of a vision tower without meaning of its own: registers, the distillation token."""
    IMAGE = 6
    """A token that stands for a part of the image in a language model."""


class HookPointSpec(NamedTuple):
    """A hook point that a harvest writes."""

    name: str
    """For instance `vision.3`."""
    modality: Modality
    """Of the items its rows belong to."""
    space: str
    """Its row space; hook points of one space have the same rows, of the same items and positions."""
    width: int
    """Length of one activation."""
    dtype: Dtype


class HookPointInfo(NamedTuple):
    """A hook point of a store."""

    name: str
    modality: Modality
    space: str
    width: int
    dtype: Dtype
    rows: int
    """Number of activations."""


class Rows(NamedTuple):
    """The rows that one batch adds to one row space."""

    item: Tensor
    """int64 [row]: index of the item within the batch's items of this modality."""
    position: Tensor
    """int32 [row]: token or patch position; -1 where a row stands for the whole item."""
    token_id: Tensor | None
    """int32 [row] where rows are text tokens, else None; the same choice in every batch."""
    activations: Mapping[str, Tensor]
    """Hook point -> [row, width] on the CPU in the store's dtype."""
    columns: Mapping[str, Tensor] = MappingProxyType({})
    """More about the rows: name in `ROW_COLUMNS` -> [row]; the same names in every batch."""


class Item(NamedTuple):
    """One input: an image, a caption, a document."""

    key: str
    """Unique among the items of its modality."""
    record: int
    """Index of the source record; image and texts of one record are pairs, and held out together."""
    status: str
    """`ok`, `truncated`, `clipped: <n> rows`, `outlier: <n> rows`, `nonfinite: <n> rows` or `unreadable: <reason>`; an
    unreadable item has no rows."""
    text: str | None
    """The caption or document; None for an image."""
    thumbnail: bytes | None
    """PNG, WebP or JPEG, for reports; None for a text, or when none was asked for."""
    concepts: tuple[int, ...]
    """Ground truth: indices into the store's concepts."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What a harvest hands over at once. Batch `index` must hold the same records in every run of the harvest."""

    index: int
    items: Mapping[Modality, Sequence[Item]]
    pairs: Sequence[tuple[int, int]]
    """(image item, text item), both counted within the batch."""
    rows: Mapping[str, Rows]
    """Row space -> rows; a space that is missing gets none."""


TORCH_DTYPE: Mapping[str, torch.dtype] = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
"""Of the names in `Dtype`."""
ROW_COLUMNS: Mapping[str, torch.dtype] = {"kind": torch.int8, "patch_row": torch.int16, "patch_column": torch.int16}
"""What a row can be described by beside item, position and token id: its `TokenKind`, and where its patch is in the image
(-1: it is no patch)."""
