"""A store as files that other tools read: HDF5, safetensors, npy, Parquet. Block by block, in bounded memory."""

# pyright: reportUnknownParameterType=none
# pyarrow and h5py are not typed

import contextlib
import json
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import quote

import h5py
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from thresher.data.store.hdf5 import open_hdf5
from thresher.data.store.layout import MODALITIES
from thresher.data.store.reader import Store, open_store
from thresher.data.store.schema import HookPointInfo
from thresher.data.store.tables import SCHEMA
from thresher.data.store.view import link_activations
from thresher.errors import StoreError
from thresher.progress import progress

Form = Literal["hdf5", "hdf5-view", "safetensors", "npy", "parquet"]
"""What to write."""
BLOCK_BYTES = 16 << 20
"""Activations that are in memory at once, and about the size of a chunk of HDF5 and of a row group of Parquet times 4."""

Block = dict[str, npt.NDArray[Any]]


class _Source(NamedTuple):
    """One hook point on its way out."""

    store: Store
    info: HookPointInfo
    block_rows: int

    def blocks(self) -> Iterator[tuple[int, Block]]:
        """(first row, arrays) of block after block."""
        for start in range(0, self.info.rows, self.block_rows):
            stop = min(start + self.block_rows, self.info.rows)
            x = self.store.read(self.info.name, start, stop)
            described = self.store.read_described(self.info.name, start, stop)
            item = self.store.read_items_of(self.info.name, start, stop)
            yield start, {"activations": _as_numpy(x), "item": item, **described}

    def describe(self) -> dict[str, str]:
        """What the hook point is."""
        info = self.info
        return {"hook_point": info.name, "modality": info.modality, "space": info.space, "stored_as": info.dtype}

    def shapes(self) -> dict[str, tuple[tuple[int, ...], "np.dtype[Any]"]]:
        """Array -> (shape, type)."""
        described = self.store.read_described(self.info.name, 0, 0)
        dtype = np.dtype(np.float16 if self.info.dtype == "float16" else np.float32)
        columns = {"item": np.dtype(np.int64)} | {name: values.dtype for name, values in described.items()}
        shapes = {name: ((self.info.rows,), found) for name, found in columns.items()}
        return {"activations": ((self.info.rows, self.info.width), dtype), **shapes}


def export_store(path: str | Path, out: Path, form: Form, *, hook_points: Sequence[str] | None = None) -> Path:
    """Write all hook points (or some) of a complete store to `out` and return it: a file for HDF5, a folder for the others.

    Each hook point has its `activations` [row, width], `item`, `position` and what else describes its rows; items and pairs
    come along as Parquet, in HDF5 as datasets. bfloat16 becomes float32, which holds it exactly. `hdf5-view` copies no
    activations: its datasets read the files of the store, which has to stay where it is. `out` appears when it is
    whole. Raises StoreError: `out` exists, no such hook point, a view of a store in a bucket, whatever reading raises.
    """
    if out.exists():
        raise StoreError(f"{out}: exists already; choose another folder or file to export to, or delete it")
    store = open_store(path)
    names = list(hook_points) if hook_points is not None else list(store.hook_points)
    for name in names:
        store.rows(name)
    sources = [_Source(store, info, _block_rows(info)) for info in store.hook_points.values() if info.name in names]
    partial = out.with_name(f".{out.name}.partial")
    writers: Mapping[Form, Callable[[_Source, Path], Iterator[int]]] = {
        "hdf5": _to_hdf5,
        "hdf5-view": _to_hdf5_view,
        "safetensors": _to_safetensors,
        "npy": _to_npy,
        "parquet": _to_parquet,
    }
    is_hdf5 = form in ("hdf5", "hdf5-view")
    try:
        _remove(partial)
        out.parent.mkdir(parents=True, exist_ok=True)
        if not is_hdf5:
            partial.mkdir()
        with progress(f"export {out.name}", sum(source.info.rows for source in sources), "rows") as advance:
            for source in sources:
                for n in writers[form](source, partial):
                    advance(n)
        (_tables_to_hdf5 if is_hdf5 else _tables_to_parquet)(store, partial)
        partial.replace(out)
    except OSError as error:
        reason = error.strerror or error
        raise StoreError(
            f"{out}: cannot be written ({reason}); nothing is left of it; mend that, or export elsewhere"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            _remove(partial)
    return out


def _remove(partial: Path) -> None:
    shutil.rmtree(partial) if partial.is_dir() else partial.unlink(missing_ok=True)


def _block_rows(info: HookPointInfo) -> int:
    return max(1, BLOCK_BYTES // (4 * info.width))


def _as_numpy(x: torch.Tensor) -> npt.NDArray[Any]:
    return (x.float() if x.dtype == torch.bfloat16 else x).numpy()


def _file_name(hook_point: str) -> str:
    return quote(hook_point, safe="")


def _to_hdf5(source: _Source, out: Path) -> Iterator[int]:
    with open_hdf5(out) as (file, raise_error):
        group: Any = file.create_group(f"layers/{_file_name(source.info.name)}")
        group.attrs.update(source.describe())
        for name, (shape, dtype) in source.shapes().items():
            chunks = (max(1, min(source.block_rows // 4, shape[0] or 1)), *shape[1:])
            group.create_dataset(name, shape, dtype, chunks=chunks)
        for start, block in source.blocks():
            for name, values in block.items():
                group[name][start : start + len(values)] = values
            raise_error()
            yield len(block["item"])


def _to_hdf5_view(source: _Source, out: Path) -> Iterator[int]:
    info = source.info
    described = source.store.read_described(info.name, 0, info.rows)
    with open_hdf5(out) as (file, _):
        group: Any = file.create_group(f"layers/{_file_name(info.name)}")
        group.attrs.update(source.describe())
        for name, values in {"item": source.store.item_of(info.name), **described}.items():
            group[name] = values
        link_activations(group, source.store, info)
    yield info.rows


def _to_npy(source: _Source, out: Path) -> Iterator[int]:
    folder = out / _file_name(source.info.name)
    folder.mkdir()
    # Not mapped into memory: a full disk would kill the process.
    with contextlib.ExitStack() as stack:
        files = {name: stack.enter_context((folder / f"{name}.npy").open("wb")) for name in source.shapes()}
        for name, (shape, dtype) in source.shapes().items():
            header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(files[name], header)
        for _, block in source.blocks():
            for name, values in block.items():
                files[name].write(np.ascontiguousarray(values).data)
            yield len(block["item"])


SAFETENSORS: Mapping[str, str] = {
    "float32": "F32",
    "float16": "F16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
}
"""numpy type -> name in a safetensors file."""


def _to_safetensors(source: _Source, out: Path) -> Iterator[int]:
    header: dict[str, Any] = {"__metadata__": source.describe()}
    end, starts = 0, dict[str, int]()
    for name, (shape, dtype) in source.shapes().items():
        starts[name], end = end, end + int(np.prod(shape)) * dtype.itemsize
        header[name] = {"dtype": SAFETENSORS[dtype.name], "shape": list(shape), "data_offsets": [starts[name], end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (out / f"{_file_name(source.info.name)}.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
        for start, block in source.blocks():
            for name, values in block.items():
                file.seek(8 + len(text) + starts[name] + start * values[:1].nbytes)
                file.write(np.ascontiguousarray(values).data)
            yield len(block["item"])


def _to_parquet(source: _Source, out: Path) -> Iterator[int]:
    shapes = source.shapes()
    vector = pa.list_(pa.from_numpy_dtype(shapes["activations"][1]), source.info.width)
    described = [(name, pa.from_numpy_dtype(dtype)) for name, (_, dtype) in shapes.items() if name != "activations"]
    schema = pa.schema([*described, ("activations", vector)], metadata=source.describe())
    folder = out / _file_name(source.info.name)
    folder.mkdir()
    with pq.ParquetWriter(folder / "rows.parquet", schema, compression="none") as writer:
        for _, block in source.blocks():
            flat = pa.array(block.pop("activations").reshape(-1))
            columns = [pa.array(block[name]) for name, _ in described]
            writer.write_table(
                pa.Table.from_arrays([*columns, pa.FixedSizeListArray.from_arrays(flat, source.info.width)], schema=schema)
            )
            yield len(columns[0])


def _tables_to_parquet(store: Store, out: Path) -> None:
    writers = {name: pq.ParquetWriter(out / f"{name.replace('/', '-')}.parquet", schema) for name, schema in SCHEMA.items()}
    for before, items, pairs in store.parts():
        for modality in MODALITIES:
            writers[f"items/{modality}"].write_table(items[modality])
        del before
        writers["pairs"].write_table(pa.table({"image": pairs[:, 0], "text": pairs[:, 1]}))
    for writer in writers.values():
        writer.close()


def _tables_to_hdf5(store: Store, out: Path) -> None:
    with open_hdf5(out) as (file, _):
        file.attrs["identity"] = json.dumps(dict(store.identity))
        text = h5py.string_dtype()
        for modality in MODALITIES:
            columns = {"key": text, "record": np.int64, "status": text, **({"text": text} if modality == "text" else {})}
            for name, dtype in columns.items():
                file.create_dataset(f"items/{modality}/{name}", (0,), dtype, maxshape=(None,), chunks=True)
        file.create_dataset("pairs", (0, 2), np.int64, maxshape=(None, 2), chunks=True)
        for _, items, pairs in store.parts():
            for modality in MODALITIES:
                group: Any = file[f"items/{modality}"]
                for name in group:
                    _append(group[name], items[modality][name].to_pylist())
            _append(file["pairs"], pairs)


def _append(dataset: Any, values: Any) -> None:
    before = len(dataset)
    dataset.resize(before + len(values), axis=0)
    if len(values):
        dataset[before:] = values
