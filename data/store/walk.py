"""Going through a store in batches like those it was written in, in bounded memory."""

# pyright: reportUnknownParameterType=none
# pyarrow is not typed

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from thresher.data.records import Modality
from thresher.data.store.layout import MODALITIES, has_token_ids
from thresher.data.store.reader import Store
from thresher.data.store.schema import Batch, Item, Rows

ITEMS_PER_BATCH = 256
"""Items of a modality that a batch holds at most, where pairs and rows let it end there."""
SCAN_ROWS = 1 << 16
"""Rows whose items are read at once."""

Span = tuple[int, int]


class _Part(NamedTuple):
    """What one part of the tables covers."""

    items: Mapping[Modality, pa.Table]
    pairs: npt.NDArray[np.int64]
    first: Mapping[Modality, int]
    """Items before it."""
    rows: Mapping[str, npt.NDArray[np.int64]]
    """Row space -> item of each of its rows."""
    first_row: Mapping[str, int]


def iterate_batches(store: Store) -> Iterator[Batch]:
    """All of a complete store in order: items with their pairs and rows. A batch ends where no pair and no item is cut."""
    index = 0
    for part in _iterate_parts(store):
        start = dict.fromkeys(MODALITIES, 0)
        for stop in _find_cuts(part, store):
            yield _cut(store, part, start, stop, index)
            start, index = stop, index + 1


def _iterate_parts(store: Store) -> Iterator[_Part]:
    spaces: dict[str, tuple[str, Modality]] = {info.space: (info.name, info.modality) for info in store.hook_points.values()}
    first_row = dict.fromkeys(spaces, 0)
    for first, items, pairs in store.parts():
        ends: dict[Modality, int] = {modality: first[modality] + items[modality].num_rows for modality in MODALITIES}
        rows = {
            space: _rows_before(store, name, first_row[space], ends[modality]) for space, (name, modality) in spaces.items()
        }
        yield _Part(items, pairs, first, rows, dict(first_row))
        first_row = {space: first_row[space] + len(found) for space, found in rows.items()}


def _rows_before(store: Store, hook_point: str, start: int, end: int) -> npt.NDArray[np.int64]:
    """Items of the rows from `start` on, up to the first of item `end`."""
    found: list[npt.NDArray[np.int64]] = []
    while start < store.rows(hook_point):
        items = store.read_items_of(hook_point, start, min(start + SCAN_ROWS, store.rows(hook_point)))
        beyond = np.flatnonzero(items >= end)
        if len(beyond):
            return np.concatenate([*found, items[: beyond[0]]])
        found.append(items)
        start += len(items)
    return np.concatenate([np.empty(0, np.int64), *found])


def _find_cuts(part: _Part, store: Store) -> Iterator[dict[Modality, int]]:
    """Where batches can end, counted in items of the part; the last is its end."""
    n_images, n_texts = (part.items[modality].num_rows for modality in MODALITIES)
    free: dict[Modality, npt.NDArray[np.bool_]] = {
        modality: np.ones(part.items[modality].num_rows + 1, np.bool_) for modality in MODALITIES
    }
    modality_of: dict[str, Modality] = {info.space: info.modality for info in store.hook_points.values()}
    for space, item in part.rows.items():
        modality = modality_of[space]
        free[modality] &= _separable(item - part.first[modality], part.items[modality].num_rows)
    pairs = part.pairs - np.array([part.first["image"], part.first["text"]])
    least, most = _paired_texts(pairs, n_images, n_texts)
    image = text = 0
    while (image, text) != (n_images, n_texts):
        image, text = _next_cut(image, text, free, least, most)
        yield {"image": image, "text": text}


def _next_cut(
    image: int,
    text: int,
    free: Mapping[Modality, npt.NDArray[np.bool_]],
    least: npt.NDArray[np.int64],
    most: npt.NDArray[np.int64],
) -> Span:
    """The end of the batch that begins at (image, text): as far as it may be, and at least one item further."""
    n_images, n_texts = len(free["image"]) - 1, len(free["text"]) - 1
    best: Span | None = None
    for stop in range(image + (n_images > 0), n_images + 1):
        if free["image"][stop]:
            low, high = max(int(least[stop]), text + (n_images == 0)), int(most[stop])
            texts = np.flatnonzero(free["text"][low : high + 1]) + low
            if len(texts):
                small = texts[texts <= text + ITEMS_PER_BATCH]
                cut = (stop, int(small[-1]) if len(small) else int(texts[0]))
                best = cut if best is None or cut[0] <= image + ITEMS_PER_BATCH else best
        if best is not None and stop >= image + ITEMS_PER_BATCH:
            break
    return best if best is not None else (n_images, n_texts)


def _separable(item: npt.NDArray[np.int64], n_items: int) -> npt.NDArray[np.bool_]:
    """For each cut 0..n_items whether the rows of the items before it come before all others."""
    ends = np.concatenate([[0], np.cumsum(np.bincount(item, minlength=n_items))])
    highest = np.maximum.accumulate(np.concatenate([[-1], item]))
    return highest[ends] < np.arange(n_items + 1)


def _paired_texts(
    pairs: npt.NDArray[np.int64], n_images: int, n_texts: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """For each cut of the images the least and the most texts before it that cut no pair; least > most where there are none."""
    least, most = np.zeros(n_images + 1, np.int64), np.full(n_images + 1, n_texts, np.int64)
    np.maximum.at(least, pairs[:, 0] + 1, pairs[:, 1] + 1)
    np.minimum.at(most, pairs[:, 0], pairs[:, 1])
    return np.maximum.accumulate(least), np.minimum.accumulate(most[::-1])[::-1]


def _cut(store: Store, part: _Part, start: Mapping[Modality, int], stop: Mapping[Modality, int], index: int) -> Batch:
    items: dict[Modality, list[Item]] = {
        modality: _items(part.items[modality].slice(start[modality], stop[modality] - start[modality]), modality)
        for modality in MODALITIES
        if part.items[modality].num_rows
    }
    first: dict[Modality, int] = {modality: part.first[modality] + start[modality] for modality in MODALITIES}
    image = part.pairs[:, 0]
    inside = (image >= first["image"]) & (image < part.first["image"] + stop["image"])
    pairs = [(int(a) - first["image"], int(b) - first["text"]) for a, b in part.pairs[inside]]
    rows: dict[str, Rows] = {}
    for space in part.rows:
        modality: Modality = next(info.modality for info in store.hook_points.values() if info.space == space)
        where = np.flatnonzero(
            (part.rows[space] >= first[modality]) & (part.rows[space] < part.first[modality] + stop[modality])
        )
        low = part.first_row[space] + (int(where[0]) if len(where) else 0)
        rows[space] = read_rows(store, space, low, low + len(where), first[modality])
    return Batch(index, items, pairs, rows)


def read_rows(store: Store, space: str, start: int, stop: int, first_item: int) -> Rows:
    """Rows of all hook points of a space with what describes them, items counted from `first_item`."""
    names = [info.name for info in store.hook_points.values() if info.space == space]
    item = torch.from_numpy(store.read_items_of(names[0], start, stop) - first_item)
    described = store.read_described(names[0], start, stop)
    token_id = torch.from_numpy(described["token_id"]) if has_token_ids(space) else None
    columns = {name: torch.from_numpy(described[name]) for name in store.columns_of(names[0])}
    activations = {name: store.read(name, start, stop) for name in names}
    return Rows(item, torch.from_numpy(described["position"]), token_id, activations, columns)


def _items(table: pa.Table, modality: Modality) -> list[Item]:
    rows: list[dict[str, Any]] = table.to_pylist()
    missing: dict[str, Any] = {"text" if modality == "image" else "thumbnail": None}
    found: list[Item] = []
    for row in rows:
        values: dict[str, Any] = row | missing | {"concepts": tuple(row["concepts"] or ())}
        found.append(Item(**values))
    return found
