"""The `zarr.json` documents of a store (zarr v3 core specification, codec `sharding_indexed`)."""

from collections.abc import Mapping
from typing import Any

from thresher.data.store.codecs import LITTLE, describe_codecs
from thresher.data.store.layout import FORMAT, ITEM_SIZE, VERSION, ArraySpec
from thresher.runs import canonical_json


def group_document(attributes: Mapping[str, Any]) -> bytes:
    """`zarr.json` of a group."""
    return canonical_json({"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)})


def root_document() -> bytes:
    """`zarr.json` of the root group."""
    return group_document({"thresher": {"format": FORMAT, "version": VERSION}})


def array_document(spec: ArraySpec, rows: int) -> bytes:
    """`zarr.json` of an array that holds `rows` rows."""
    width = [] if spec.width is None else [spec.width]
    sharding = {
        "chunk_shape": [spec.chunk_rows, *width],
        "codecs": describe_codecs(spec.profile, ITEM_SIZE[spec.data_type], is_matrix=spec.width is not None),
        "index_codecs": [LITTLE, {"name": "crc32c"}],
        "index_location": "end",
    }
    return canonical_json(
        {
            "zarr_format": 3,
            "node_type": "array",
            "shape": [rows, *width],
            "data_type": spec.data_type,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [spec.shard_rows, *width]}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
            "fill_value": 0 if spec.hook_point is None or spec.data_type == "uint16" else 0.0,
            "dimension_names": ["row", "feature"][: 1 + len(width)],
            "attributes": _attributes(spec),
        }
    )


def _attributes(spec: ArraySpec) -> dict[str, str]:
    if spec.hook_point is None:
        return {}
    return {"hook_point": spec.hook_point} | ({"dtype": "bfloat16"} if spec.data_type == "uint16" else {})
