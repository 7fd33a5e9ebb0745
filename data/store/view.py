"""Activations of a store as an HDF5 dataset that has no bytes of its own: it reads the shards where they lie."""

# pyright: reportUnknownParameterType=none
# h5py is not typed

from pathlib import Path
from typing import Any

import h5py

from thresher.data.store.reader import Store
from thresher.data.store.schema import TORCH_DTYPE, HookPointInfo
from thresher.errors import StoreError


def link_activations(group: Any, store: Store, info: HookPointInfo) -> None:
    """Make the dataset `activations` [row, width] of a group out of the store's own files (external storage of HDF5).

    Their paths are written in full: where the store moves to, `HDF5_EXTFILE_PREFIX` or another view is needed. bfloat16 is
    a floating-point type of 16 bits in HDF5 too, and is read as float32. Raises StoreError for a store that is no
    folder or whose profile is not raw.
    """
    folder = Path(store.path)
    if not folder.is_dir():
        raise StoreError(f"{store.path}: a view needs the files of a folder; fetch the store, or export a copy (hdf5)")
    row_bytes = info.width * TORCH_DTYPE[info.dtype].itemsize
    created = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    created.set_layout(h5py.h5d.CONTIGUOUS)
    for path, rows in store.list_shards(info.name):
        created.set_external(bytes((folder / path).resolve()), 0, rows * row_bytes)
    shape = h5py.h5s.create_simple((info.rows, info.width))
    h5py.h5d.create(group.id, b"activations", _find_type(info.dtype), shape, created)


def _find_type(dtype: str) -> Any:
    if dtype == "float16":
        return h5py.h5t.IEEE_F16LE
    if dtype == "float32":
        return h5py.h5t.IEEE_F32LE
    found = h5py.h5t.IEEE_F32LE.copy()
    # Sign, 8 bits of exponent with the bias of float32, 7 of mantissa.
    found.set_fields(15, 7, 8, 0, 7)
    found.set_precision(16)
    found.set_size(2)
    return found
