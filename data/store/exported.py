"""Rows that `store export` has written, with what describes each of them, made into a store again."""

# pyright: reportUnknownParameterType=none
# pyarrow is not typed

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from thresher.data.records import Modality
from thresher.data.store.beside import is_finished
from thresher.data.store.codecs import Profile
from thresher.data.store.layout import TEXT_TOKENS
from thresher.data.store.schema import ROW_COLUMNS, TORCH_DTYPE, Batch, HookPointSpec, Item, Rows
from thresher.data.store.writer import StoreWriter
from thresher.errors import StoreError
from thresher.progress import progress

DESCRIBING = ("item", "position", "token_id", *ROW_COLUMNS)
"""What lies beside the activations of a hook point, one entry a row: `item` always, the others where the store has them."""


class ExportedRows(NamedTuple):
    """One hook point of an export."""

    activations: Any
    """[row, width]"""
    described: Mapping[str, npt.NDArray[np.integer[Any]]]
    """Of `DESCRIBING` -> [row]."""
    attributes: Mapping[str, str]
    """`modality`, `space` and `stored_as`, as far as the export tells them."""


ItemTable = Mapping[str, Sequence[Any]]
"""key, record, status and for texts text -> one entry an item."""


def import_exported(
    source: Path,
    out: str | Path,
    found: Mapping[str, ExportedRows],
    items: ItemTable | None,
    origin: Mapping[str, Any],
    modality: Modality,
    batch_bytes: int,
    profile: Profile,
) -> None:
    """Write a store of the hook points of one modality: the same rows, items, positions, token ids and other columns.

    Without a table of items their keys are their numbers. Can be stopped and run again. Raises StoreError: rows of an item
    stand apart, or hook points whose rows are not the same have the same row space.
    """
    found = {name: rows for name, rows in found.items() if rows.attributes.get("modality", modality) == modality}
    spaces = {name: _find_space(source, name, rows, modality) for name, rows in found.items()}
    firsts = _check_spaces(source, found, spaces)
    specs = [HookPointSpec(name, modality, spaces[name], _width(rows), _dtype(rows)) for name, rows in found.items()]
    ends = [int(rows.described["item"][-1]) + 1 for rows in firsts.values() if len(rows.described["item"])]
    n_items = len(items["key"]) if items is not None else max(ends, default=0)
    if max(ends, default=0) > n_items:
        raise StoreError(f"{source}: rows of item {max(ends) - 1}, but there are {n_items} items; the export is not whole")
    size = max(1, batch_bytes // max(1, _bytes_per_item(found)))
    identity = {"imported": dict(origin), "model": "unknown", "items_per_batch": size}
    if is_finished(out, identity, profile):
        return
    with StoreWriter(out, identity, specs, (), profile=profile) as writer, progress("import", n_items, "items") as advance:
        advance(min(n_items, size * writer.next_batch))
        for index in writer.missing(-(-n_items // size)):
            start, stop = index * size, min(n_items, (index + 1) * size)
            made = {space: _read_rows(found, specs, space, first, start, stop) for space, first in firsts.items()}
            writer.write(Batch(index, {modality: list(_read_items(items, modality, start, stop))}, [], made))
            advance(stop - start)
        writer.finish()


def _find_space(source: Path, name: str, rows: ExportedRows, modality: Modality) -> str:
    item = rows.described["item"]
    if (np.diff(item) < 0).any():
        raise StoreError(f"{source}: {name}: the rows of an item do not stand together, which a store needs")
    if "space" in rows.attributes:
        return rows.attributes["space"]
    if "position" not in rows.described and (np.diff(item) == 0).any():
        raise StoreError(f"{source}: {name}: several rows are of one item, and no position beside them tells which is which")
    if (rows.described.get("position", np.array(-1)) == -1).all():
        return f"{modality}.items"
    return f"{modality}.tokens" if modality == "image" or "token_id" in rows.described else "text.positions"


def _check_spaces(source: Path, found: Mapping[str, ExportedRows], spaces: Mapping[str, str]) -> dict[str, ExportedRows]:
    """A hook point of each row space; all others of the space have the same rows."""
    firsts: dict[str, ExportedRows] = {}
    for name, rows in found.items():
        first = firsts.setdefault(spaces[name], rows)
        is_same = rows.described.keys() == first.described.keys()
        if not is_same or not all(np.array_equal(rows.described[key], first.described[key]) for key in first.described):
            raise StoreError(
                f"{source}: {name}: its rows differ from those of other hook points of {spaces[name]}; choose one by "
                "hook_point (--hook-point)"
            )
    return firsts


def _bytes_per_item(found: Mapping[str, ExportedRows]) -> int:
    """At most."""
    return sum(int(np.bincount(rows.described["item"]).max(initial=0)) * 4 * _width(rows) for rows in found.values())


def _read_rows(
    found: Mapping[str, ExportedRows], specs: Sequence[HookPointSpec], space: str, first: ExportedRows, start: int, stop: int
) -> Rows:
    begin, end = (int(place) for place in np.searchsorted(first.described["item"], [start, stop]))
    described = {name: np.array(values[begin:end]) for name, values in first.described.items()}
    item = torch.from_numpy(described["item"].astype(np.int64) - start)
    position = described.get("position", np.full(end - begin, -1))
    columns = {name: torch.from_numpy(described[name]).to(dtype) for name, dtype in ROW_COLUMNS.items() if name in described}
    token_id = torch.from_numpy(described["token_id"]).int() if space == TEXT_TOKENS else None
    activations = {
        spec.name: torch.from_numpy(np.array(found[spec.name].activations[begin:end])).to(TORCH_DTYPE[spec.dtype])
        for spec in specs
        if spec.space == space
    }
    return Rows(item, torch.from_numpy(position).int(), token_id, activations, columns)


def _read_items(items: ItemTable | None, modality: Modality, start: int, stop: int) -> Iterator[Item]:
    for number in range(start, stop):
        known = {name: values[number] for name, values in (items or {}).items()}
        text = str(known.get("text") or "") if modality == "text" else None
        yield Item(
            str(known.get("key", number)), int(known.get("record", number)), str(known.get("status", "ok")), text, None, ()
        )


def _width(rows: ExportedRows) -> int:
    return int(rows.activations.shape[1])


def _dtype(rows: ExportedRows) -> Any:
    return rows.attributes.get("stored_as", "float16" if rows.activations.dtype == np.float16 else "float32")
