"""Activations that other tools have stored, made into a store: npy, HDF5, the cached activations of SAELens."""

# pyright: reportUnknownParameterType=none
# h5py and datasets are not typed

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import torch

from thresher.data.records import Modality
from thresher.data.store.arrays import SUFFIXES, read_arrays
from thresher.data.store.beside import is_finished
from thresher.data.store.codecs import Profile
from thresher.data.store.exported import DESCRIBING, ExportedRows, ItemTable, import_exported
from thresher.data.store.schema import Batch, Dtype, HookPointSpec, Item, Rows
from thresher.data.store.writer import StoreWriter
from thresher.errors import StoreError
from thresher.progress import progress

BATCH_BYTES = 64 << 20
"""Activations that are in memory at once."""
TOKEN_IDS = "token_ids"
"""Column of SAELens, and dataset of HDF5 or file beside an npy, that holds the tokens' ids [item, position]."""


class _Foreign(NamedTuple):
    """Arrays whose first axis is the item; all of them cover the same items and positions."""

    arrays: Mapping[str, Any]
    """Hook point -> [item, width] or [item, position, width], sliced along the first axis."""
    token_ids: Any
    """[item, position], or None."""
    origin: Mapping[str, Any]
    """What is known about them, in plain values."""
    exported: Mapping[str, ExportedRows]
    """Hook point -> the same array as this package has exported it, with what describes its rows."""
    items: ItemTable | None
    """The items of an export."""


def import_store(
    source: Path, out: str | Path, *, modality: Modality, hook_point: str | None = None, profile: Profile = "raw"
) -> str | Path:
    """Make a store of `source` at `out` and return it; can be stopped and run again like a harvest.

    `source` is an `.npy`, an HDF5 file (every floating-point dataset of two or three dimensions is a hook point) or a folder
    that `datasets` saved (SAELens: one column a hook point, `token_ids`). Arrays are [item, width] or [item, position, width].
    Items have no texts or images: their keys are their numbers. What `store export` has written (npy, HDF5) comes back with
    item, position, token id and the like of each row, and with keys and texts of its items. `hook_point` names an array that
    has no name (npy), or chooses one of several.
    float64 becomes float32. Raises StoreError: not of these kinds, arrays that do not fit together, whatever a writer raises.
    """
    try:
        foreign = _open(source, hook_point, modality)
    except (OSError, ValueError, EOFError) as error:
        raise StoreError(f"{source}: cannot be read ({error}); nothing was imported") from error
    if hook_point is not None and hook_point in foreign.arrays:
        exported = {name: rows for name, rows in foreign.exported.items() if name == hook_point}
        foreign = foreign._replace(arrays={hook_point: foreign.arrays[hook_point]}, exported=exported)
    if foreign.exported and foreign.exported.keys() == foreign.arrays.keys():
        import_exported(source, out, foreign.exported, foreign.items, foreign.origin, modality, BATCH_BYTES, profile)
        return out
    shapes = {name: tuple(int(n) for n in array.shape) for name, array in foreign.arrays.items()}
    if not shapes or len({shape[:-1] for shape in shapes.values()}) > 1:
        raise StoreError(
            f"{source}: arrays {shapes}: expected one [item, width] or [item, position, width], or more that are all alike; "
            "choose one by hook_point (--hook-point)"
        )
    if not all(all(shape) for shape in shapes.values()):
        raise StoreError(f"{source}: arrays {shapes}: nothing is in them; expected at least one item, position and feature")
    n_items, *positions, _ = next(iter(shapes.values()))
    space = _choose_space(modality, positions, foreign)
    specs = [HookPointSpec(name, modality, space, shapes[name][-1], _dtype(array)) for name, array in foreign.arrays.items()]
    row_bytes = sum(4 * shape[-1] for shape in shapes.values()) * (positions[0] if positions else 1)
    size = max(1, BATCH_BYTES // row_bytes)
    identity = {"imported": dict(foreign.origin), "model": "unknown", "items_per_batch": size}
    if is_finished(out, identity, profile):
        return out
    with StoreWriter(out, identity, specs, (), profile=profile) as writer, progress("import", n_items, "items") as advance:
        batches = range(-(-n_items // size))
        advance(min(n_items, size * writer.next_batch))
        for index in writer.missing(len(batches)):
            stop = min(n_items, (index + 1) * size)
            writer.write(_make_batch(foreign, specs, index, index * size, stop))
            advance(stop - index * size)
        writer.finish()
    return out


def _open(source: Path, hook_point: str | None, modality: Modality) -> _Foreign:
    if not source.exists():
        raise StoreError(f"{source}: no such file or folder; give an .npy, an HDF5 file, or a folder that `datasets` saved")
    if source.suffix == ".npy" and source.is_file():
        array = np.load(source, mmap_mode="r", allow_pickle=False)
        beside = source.with_name(f"{TOKEN_IDS}.npy")
        ids = np.load(beside, mmap_mode="r", allow_pickle=False) if array.ndim == 3 and beside.exists() else None
        origin = {"kind": "npy", "name": source.name, "shape": list(array.shape), "bytes": source.stat().st_size}
        name = hook_point or source.stem
        own = {known: source.with_name(f"{known}.npy") for known in DESCRIBING}
        described = {known: np.load(path, allow_pickle=False) for known, path in own.items() if path.exists()}
        is_export = array.ndim == 2 and "item" in described
        exported = {name: ExportedRows(_check(source, array), described, {})} if is_export else {}
        table = source.absolute().parent.parent / f"items-{modality}.parquet"
        items = _read_parquet(table) if is_export and table.exists() else None
        return _Foreign({name: _check(source, array)}, ids, origin, exported, items)
    if source.suffix in (".h5", ".hdf5", ".hdf") and source.is_file():
        return _open_hdf5(source, modality)
    if (source / "dataset_info.json").exists():
        return _open_arrow(source)
    if source.is_file() and source.suffix in SUFFIXES:
        origin = {"kind": source.suffix[1:], "name": source.name, "bytes": source.stat().st_size}
        arrays = read_arrays(source)
        named = {hook_point: next(iter(arrays.values()))} if hook_point and len(arrays) == 1 else arrays
        return _Foreign(named, None, origin, {}, None)
    raise StoreError(
        f"{source}: expected an array ({', '.join(SUFFIXES)}) or a folder that `datasets` saved (dataset_info.json)"
    )


def _open_hdf5(source: Path, modality: Modality) -> _Foreign:
    file = h5py.File(source, "r")
    arrays: dict[str, Any] = {}
    exported: dict[str, ExportedRows] = {}

    def visit(name: str, node: Any) -> None:
        if isinstance(node, h5py.Dataset) and node.ndim in (2, 3) and node.dtype.kind == "f":
            group: Any = node.parent
            name = str(group.attrs.get("hook_point", name))
            if "hook_point" not in group.attrs or "item" not in group:
                arrays[name] = node
            elif group.attrs.get("modality", modality) == modality:
                described = {known: np.asarray(group[known]) for known in DESCRIBING if known in group}
                arrays[name] = node
                exported[name] = ExportedRows(node, described, {key: str(value) for key, value in group.attrs.items()})

    file.visititems(visit)
    origin = {"kind": "hdf5", "name": source.name, "bytes": source.stat().st_size}
    table: Any = file.get(f"items/{modality}")
    items = {name: _read_column(column) for name, column in table.items()} if exported and table is not None else None
    return _Foreign(arrays, file.get(TOKEN_IDS), origin, exported, items)


def _read_column(column: Any) -> list[Any]:
    return (column.asstr() if h5py.check_string_dtype(column.dtype) else column)[:].tolist()


def _read_parquet(path: Path) -> dict[str, list[Any]]:
    table = pq.read_table(path, use_threads=False)
    return {name: table[name].to_pylist() for name in ("key", "record", "status", "text") if name in table.column_names}


def _open_arrow(source: Path) -> _Foreign:
    import datasets

    dataset: Any = datasets.load_from_disk(str(source)).with_format("numpy")
    arrays = {name: _Column(dataset, name) for name in dataset.column_names if name != TOKEN_IDS}
    arrays = {name: column for name, column in arrays.items() if column.dtype.kind == "f"}
    ids = _Column(dataset, TOKEN_IDS) if TOKEN_IDS in dataset.column_names else None
    config = source / "cache_activations_runner_cfg.json"
    settings = json.loads(config.read_text(encoding="utf-8")) if config.exists() else {}
    known = {key: settings[key] for key in ("model_name", "hook_name", "context_size", "dataset_path") if key in settings}
    return _Foreign(arrays, ids, {"kind": "datasets", "name": source.name, "n_items": len(dataset), **known}, {}, None)


class _Column:
    """One column of a dataset, read slice by slice like an array."""

    def __init__(self, dataset: Any, name: str) -> None:
        self._dataset, self._name = dataset, name
        first = np.asarray(dataset[0][name]) if len(dataset) else np.empty((0,), np.float32)
        self.shape, self.dtype = (len(dataset), *first.shape), first.dtype

    def __getitem__(self, rows: slice) -> npt.NDArray[Any]:
        """Rows of the column."""
        return np.asarray(self._dataset[rows][self._name])


def _check(source: Path, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if array.ndim in (2, 3) and array.dtype.kind == "f":
        return array
    raise StoreError(
        f"{source}: {array.dtype} {list(array.shape)}, expected floating point [item, width] or [item, position, width]"
    )


def _choose_space(modality: Modality, positions: list[int], foreign: _Foreign) -> str:
    """Rows of texts are tokens where their ids are known, else bare positions."""
    if not positions:
        return f"{modality}.items"
    return f"{modality}.tokens" if modality == "image" or foreign.token_ids is not None else "text.positions"


def _dtype(array: Any) -> Dtype:
    return "float16" if array.dtype == np.float16 else "float32"


def _make_batch(foreign: _Foreign, specs: list[HookPointSpec], index: int, start: int, stop: int) -> Batch:
    spec = specs[0]
    n_positions = int(foreign.arrays[spec.name].shape[1]) if len(foreign.arrays[spec.name].shape) == 3 else 1
    item = torch.arange(stop - start).repeat_interleave(n_positions)
    is_whole = spec.space.endswith(".items")
    position = torch.full((len(item),), -1) if is_whole else torch.arange(n_positions).repeat(stop - start)
    token_id = None
    if spec.space == "text.tokens":
        token_id = torch.from_numpy(np.asarray(foreign.token_ids[start:stop]).reshape(-1).astype(np.int32))
    activations = {spec.name: torch.from_numpy(_read(foreign.arrays[spec.name], spec, start, stop)) for spec in specs}
    rows = Rows(item, position.int(), token_id, activations)
    text = "" if spec.modality == "text" else None
    items = list[Item](Item(str(i), i, "ok", text, None, ()) for i in range(start, stop))
    return Batch(index, {spec.modality: items}, [], {spec.space: rows})


def _read(array: Any, spec: HookPointSpec, start: int, stop: int) -> npt.NDArray[Any]:
    values = np.asarray(array[start:stop]).reshape(-1, spec.width)
    return np.array(values, np.float16 if spec.dtype == "float16" else np.float32)
