"""Where in its item each row stands: which token of a text, which patch of an image."""

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import numpy as np
from jaxtyping import Int

from thresher.analyze.panels import Panel
from thresher.data.store import Store, TokenKind
from thresher.harvest.spelling import decode_tokens

PATCH = ("patch_row", "patch_column")
NO_TOKEN = -1


class Places(NamedTuple):
    """What describes the rows of a panel's items, in the panel's order."""

    starts: Int[np.ndarray, " item_and_end"]
    """First row of each item, and where the last one ends."""
    token_id: Int[np.ndarray, " row"] | None
    """None where rows are no tokens of texts; -1 where a row stands for a part of an image."""
    patch: Int[np.ndarray, "row 2"] | None
    """Row and column of the patch, -1 for what is no patch; None where the store does not say."""
    pieces: Mapping[int, str]
    """What each token id stands for; empty where there is no tokenizer to ask."""

    def count_rows(self) -> Int[np.ndarray, " item"]:
        """Rows of each item."""
        return np.diff(self.starts)

    def describe(self, item: int) -> list[Any]:
        """[token ids, shape of the grid of patches, cell of each row] of one item; null where it has none.

        A cell is a number in the grid, row by row, -1 for a row that is no patch. Where all cells follow each other after `n`
        rows that are none, `n` stands for the list.
        """
        rows = slice(int(self.starts[item]), int(self.starts[item + 1]))
        ids = None if self.token_id is None else self.token_id[rows]
        patch = None if self.patch is None else self.patch[rows].astype(np.int64)
        if patch is None or not len(patch) or patch.max() < 0:
            return [ids, None, None]
        shape = patch.max(axis=0) + 1
        cells = np.where((patch >= 0).all(axis=1), patch[:, 0] * shape[1] + patch[:, 1], -1)
        n_before = int((cells < 0).argmin())
        is_plain = np.array_equal(cells[n_before:], np.arange(len(cells) - n_before)) and len(cells) - n_before == shape.prod()
        return [ids, shape, n_before if is_plain else cells]


def read_places(store: Store, panel: Panel) -> Places | None:
    """Places of the rows of a panel; None where every item is one row."""
    if len(panel.rows) == len(panel.items):
        return None
    columns, name = store.columns_of(panel.hook_point), panel.hook_point
    patch = None
    if set(PATCH) <= set(columns):
        patch = np.stack([store.column_of(name, column)[panel.rows] for column in PATCH], axis=1)
    token_id = None
    if panel.modality == "text":
        token_id = store.token_id_of(name)[panel.rows].astype(np.int64)
        if "kind" in columns:
            token_id = np.where(store.column_of(name, "kind")[panel.rows] == TokenKind.IMAGE, NO_TOKEN, token_id)
    if token_id is None and (patch is None or patch.max(initial=-1) < 0):
        return None
    starts = np.searchsorted(panel.item, np.arange(len(panel.items) + 1))
    used = [] if token_id is None else [one for one in np.unique(token_id).tolist() if one != NO_TOKEN]
    return Places(starts, token_id, patch, decode_tokens(store.identity.get("model"), used))


def find_pictures(store: Store, panel: Panel, images: Int[np.ndarray, " image"]) -> Int[np.ndarray, " item"]:
    """Which of `images` (rows of the store's table) each text of a panel was read behind; -1 where it is none of them."""
    place = np.full(store.items("image", ["record"]).num_rows, -1)
    place[images] = np.arange(len(images))
    found = list_pictures(store, panel)
    return np.where(found >= 0, place[found], -1) if len(place) else found


def list_pictures(store: Store, panel: Panel) -> Int[np.ndarray, " item"]:
    """The image in the store's table that each item of a panel was read behind; -1 where it is alone in its sequence."""
    name = panel.hook_point
    alone = np.full(len(panel.items), -1)
    if panel.modality != "text" or "kind" not in store.columns_of(name):
        return alone
    is_behind = np.zeros(len(panel.items), dtype=bool)
    is_behind[panel.item[store.column_of(name, "kind")[panel.rows] == TokenKind.IMAGE]] = True
    owner = np.full(store.items("text", ["record"]).num_rows, -1)
    pairs = store.pairs()
    owner[pairs[:, 1]] = pairs[:, 0]
    return np.where(is_behind, owner[panel.items], -1)


def find_frame(model: Any) -> float | None:
    """What a model sees of an image: this share of its shorter side, a square from the middle; None where it sees all of it.

    `model` is the part `model` of a store's identity.
    """
    found = model.get("preprocessing") if isinstance(model, Mapping) else None
    if not isinstance(found, Mapping):
        return None
    steps = cast(Mapping[str, Any], found)
    if steps.get("resize_mode") == "shortest":
        return 1.0
    if not steps.get("do_center_crop"):
        return None
    crop, size = _side(steps.get("crop_size"), "height"), _side(steps.get("size"), "shortest_edge")
    return min(1.0, crop / size) if crop and size else 1.0


def _side(size: Any, name: str) -> float | None:
    found = cast(Mapping[str, Any], size).get(name) if isinstance(size, Mapping) else size
    return float(found) if isinstance(found, (int, float)) else None
