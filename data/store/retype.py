"""bfloat16 arrays under a type that every zarr reader knows, and back: only their `zarr.json` changes."""

from pathlib import Path
from typing import Literal

from thresher.data.store.header import read_header
from thresher.data.store.layout import arrays_of
from thresher.data.store.places import open_storage
from thresher.data.store.recovery import read_committed
from thresher.data.store.zarr_json import array_document

StoredType = Literal["bfloat16", "uint16"]
"""What `zarr.json` calls the two bytes of a bfloat16: itself, or the bare bits for readers that do not know it."""


def retype_store(path: str | Path, to: StoredType) -> list[str]:
    """Let the bfloat16 hook points of a store be `to` for other readers; gives their names.

    Costs the same for any size: no shard is touched, and this package reads the same values from both. The fingerprint stays.
    Raises StoreError: no store, or a harvest is writing it.
    """
    storage = open_storage(path)
    header = read_header(storage)
    lock = storage.lock()
    try:
        committed = read_committed(storage, header.layout)
        changed: list[str] = []
        for space, commits in committed.spaces.items():
            rows = commits[-1].rows_end if commits else 0
            for spec in arrays_of(space, header.hook_points, header.layout):
                if spec.hook_point is not None and spec.data_type == "bfloat16":
                    storage.replace(f"{spec.path}/zarr.json", array_document(spec._replace(data_type=to), rows))
                    changed.append(spec.hook_point)
        return changed
    finally:
        lock.release()


def restore_document(document: bytes) -> bytes:
    """A `zarr.json` as it was before its array was called uint16."""
    called, own = b'"data_type": "uint16"', b'"data_type": "bfloat16"'
    if called not in document:
        return document
    return document.replace(called, own).replace(b'"fill_value": 0,', b'"fill_value": 0.0,')
