"""bfloat16 arrays under a type that every zarr reader knows, and back: only their `zarr.json` changes."""

import json
from pathlib import Path
from typing import Any, Literal, get_args

from thresher.data.store.header import read_header
from thresher.data.store.layout import arrays_of
from thresher.data.store.places import open_storage
from thresher.data.store.recovery import read_committed
from thresher.data.store.zarr_json import array_document
from thresher.runs import canonical_json

StoredType = Literal["bfloat16", "uint16"]
"""What `zarr.json` calls the two bytes of a bfloat16: itself, or the bare bits for readers that do not know it."""


def retype_store(path: str | Path, to: StoredType) -> list[str]:
    """Let the bfloat16 hook points of a store be `to` for other readers; gives their names.

    Costs the same for any size: no shard is touched, and this package reads the same values from both. The fingerprint stays.
    Raises StoreError: no store, or a harvest is writing it.
    """
    storage = open_storage(path)
    header = read_header(storage)
    names = [spec.name for spec in header.hook_points if spec.dtype == "bfloat16"]
    lock = storage.lock()
    try:
        committed = read_committed(storage, header.layout)
        for space, commits in committed.spaces.items():
            rows = commits[-1].rows_end if commits else 0
            for spec in arrays_of(space, header.hook_points, header.layout):
                if spec.hook_point in names:
                    storage.replace(f"{spec.path}/zarr.json", array_document(spec._replace(data_type=to), rows))
        return names
    finally:
        lock.release()


def name_types(document: bytes) -> list[bytes]:
    """The `zarr.json` of an array under each name that its type can have; as it is when it has another type."""
    try:
        values: dict[str, Any] = json.loads(document)
        attributes: dict[str, str] = dict(values["attributes"])
        if values["data_type"] not in get_args(StoredType):
            return [document]
    except (ValueError, KeyError, TypeError):
        return [document]
    attributes.pop("dtype", None)
    own: dict[str, Any] = {"data_type": "bfloat16", "fill_value": 0.0, "attributes": attributes}
    bare: dict[str, Any] = {"data_type": "uint16", "fill_value": 0, "attributes": attributes | {"dtype": "bfloat16"}}
    return [canonical_json(values | own), canonical_json(values | bare)]
