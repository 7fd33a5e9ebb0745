"""The held-out rows that everything is measured on."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from thresher.data.records import Modality
from thresher.data.store import Store
from thresher.data.stream import held_out
from thresher.errors import AnalysisError


class Panel(NamedTuple):
    """Held-out rows of one hook point, sorted by record, then item."""

    hook_point: str
    modality: Modality
    rows: Int[np.ndarray, " row"]
    """Row numbers in the store."""
    item: Int[np.ndarray, " row"]
    """Position of the row's item in `items`."""
    items: Int[np.ndarray, " item"]
    """Indices into the store's table of items of this modality."""
    record: Int[np.ndarray, " item"]
    """Position of the item's record among the held-out records of all panels."""
    n_records: int
    """Held-out records of all panels."""


def open_panels(store: Store, hook_points: Sequence[str], holdout: float, seed: int, limit: int | None) -> dict[str, Panel]:
    """The held-out rows of one hook point per modality; `limit` records at most, drawn at random by `seed`.

    Raises AnalysisError when a hook point has no held-out rows.
    """
    chosen = {name: _held_out_rows(store, name, holdout, seed) for name in hook_points}
    records = {name: _record_of(store, name)[store.item_of(name)[rows]] for name, rows in chosen.items()}
    kept = np.unique(np.concatenate(list(records.values())))
    if limit is not None and len(kept) > limit:
        kept = np.sort(np.random.default_rng(seed).choice(kept, limit, replace=False))
    panels = [_build(store, name, rows[np.isin(records[name], kept)], kept) for name, rows in chosen.items()]
    return {panel.modality: panel for panel in panels}


def split_rows(panel: Panel, chunk_rows: int) -> Iterator[slice]:
    """Slices of the panel's rows of about `chunk_rows`, never through a record."""
    record = panel.record[panel.item]
    starts = np.concatenate([[0], 1 + np.flatnonzero(np.diff(record)), [len(record)]])
    start = 0
    while start < len(record):
        last = int(np.searchsorted(starts, start + chunk_rows, side="right")) - 1
        stop = int(starts[last]) if starts[last] > start else int(starts[last + 1])
        yield slice(start, stop)
        start = stop


def _held_out_rows(store: Store, hook_point: str, holdout: float, seed: int) -> Int[np.ndarray, " row"]:
    is_held_out = held_out(store, store.hook_points[hook_point].modality, holdout, seed)
    rows = np.flatnonzero(is_held_out[store.item_of(hook_point)])
    if len(rows) == 0:
        raise AnalysisError(
            f"{store.path}: no held-out rows at {hook_point} (holdout={holdout:g}, {store.rows(hook_point)} rows); "
            "harvest more items, or train with a larger holdout"
        )
    return rows


def _record_of(store: Store, hook_point: str) -> Int[np.ndarray, " item"]:
    items = store.items(store.hook_points[hook_point].modality, columns=["record"])
    return np.asarray(items.column("record").to_numpy(), dtype=np.int64)


def _build(store: Store, hook_point: str, rows: Int[np.ndarray, " row"], kept: Int[np.ndarray, " record"]) -> Panel:
    item = store.item_of(hook_point)[rows]
    record = _record_of(store, hook_point)[item]
    order = np.lexsort((rows, item, record))
    rows, item = rows[order], item[order]
    is_first = np.ones(len(item), dtype=bool)
    is_first[1:] = item[1:] != item[:-1]
    items = item[is_first]
    return Panel(
        hook_point=hook_point,
        modality=store.hook_points[hook_point].modality,
        rows=rows,
        item=np.cumsum(is_first) - 1,
        items=items,
        record=np.searchsorted(kept, _record_of(store, hook_point)[items]).astype(np.int64),
        n_records=len(kept),
    )
