"""Where things lie in a store, and how large its shards and chunks are (docs/store-format.md)."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple
from urllib.parse import quote

from thresher.data.records import Modality
from thresher.data.store.codecs import Profile
from thresher.data.store.schema import ROW_COLUMNS, TORCH_DTYPE, Batch, HookPointSpec
from thresher.errors import StoreError

FORMAT = "thresher.store"
VERSION = 1
"""Of the format; another number means another reader."""

RUN, MANIFEST, MOMENTS, LOCK = "run.json", "manifest.json", "moments.safetensors", ".lock"
ZARR = "acts.zarr"
COUNTS = "counts"
"""Folder of what several writers know about batches that nobody has written yet; gone when the store is complete."""
TEXT_TOKENS = "text.tokens"
"""The row space whose rows have token ids."""
TABLES = "items"
"""The commit sequence that the tables of items and pairs share."""
MODALITIES: tuple[Modality, ...] = ("image", "text")

CHUNK_BYTES = 4 << 20
"""A chunk is the largest power of two of rows within this: large enough for any disk, small enough to shuffle by."""
COMPACT_BYTES = 1 << 20
"""The same of profile compact: one chunk has to be decoded as a whole, and rows are shuffled in runs of this size."""
SHARD_BYTES = 256 << 20
"""Aim for the largest shard: few files, and seconds of work to lose."""
RECORDS_PER_SHARD = 8192
"""Upper bound on the records of a shard, so that a slow harvest of small rows also commits every few minutes."""
SMALL_CHUNK_ROWS = 65536
"""Rows of a chunk of the small integer arrays."""
ITEM_SIZE: Mapping[str, int] = {
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "uint16": 2,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
}
SPACE_NAME = re.compile(r"[a-z][a-z0-9_]*(\.[a-z0-9_]+)*")


class ArraySpec(NamedTuple):
    """One zarr array of a row space."""

    path: str
    """Of its folder, relative to the store."""
    data_type: str
    width: int | None
    """Length of a row; None for one value per row."""
    shard_rows: int
    chunk_rows: int
    hook_point: str | None
    """The hook point it holds; None for an array that describes rows."""
    profile: Profile = "raw"
    """How its chunks are encoded."""

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return ITEM_SIZE[self.data_type] * (1 if self.width is None else self.width)

    def shard_path(self, block: int) -> str:
        """Of shard `block`, relative to the store."""
        return f"{self.path}/c/{block}" if self.width is None else f"{self.path}/c/{block}/0"


class Layout(NamedTuple):
    """Sizes that are fixed when the first batch is known, and kept from then on."""

    shard_rows: Mapping[str, int]
    """Row space -> rows of a shard, a power of two."""
    batches_per_part: int
    """Batches whose items and pairs make one part of the tables."""
    columns: Mapping[str, Sequence[str]] = MappingProxyType({})
    """Row space -> its optional columns; a space that is missing has none."""
    profile: Profile = "raw"
    """How chunks are encoded."""
    portable_dtype: bool = False
    """Whether bfloat16 is called uint16 in `zarr.json`."""


def plan_layout(hook_points: Sequence[HookPointSpec], first: Batch | None, items_per_shard: int | None) -> Layout:
    """Sizes such that the shards of all row spaces hold about equally many records, judged by the first batch.

    Then the spaces commit about equally often, and a crash costs about one shard of each. Without `items_per_shard`, the
    largest shard is about 256 MiB and none holds more than 8192 records.
    """
    n_records = _count_records(first)
    rows_per_record = {spec.space: 1.0 for spec in hook_points}
    for space, rows in (first.rows if first else {}).items():
        rows_per_record[space] = max(len(rows.item), 1) / n_records
    row_bytes = {space: max(_row_bytes(spec) for spec in hook_points if spec.space == space) for space in rows_per_record}
    affordable = min((SHARD_BYTES / (row_bytes[space] * rows) for space, rows in rows_per_record.items()), default=math.inf)
    records = items_per_shard or max(1.0, min(float(RECORDS_PER_SHARD), affordable))
    return Layout(
        shard_rows={space: _power_of_two(records * rows) for space, rows in sorted(rows_per_record.items())},
        batches_per_part=max(1, round(records / n_records)),
        columns={space: sorted(rows.columns) for space, rows in sorted(first.rows.items()) if rows.columns} if first else {},
    )


def arrays_of(space: str, hook_points: Sequence[HookPointSpec], layout: Layout) -> list[ArraySpec]:
    """The arrays of a row space: what describes its rows, then its hook points. Raises KeyError for a column of a later
    version."""
    shard = layout.shard_rows[space]
    small, profile = min(shard, SMALL_CHUNK_ROWS), layout.profile
    describing = {"item": "int64", "position": "int32"} | ({"token_id": "int32"} if has_token_ids(space) else {})
    describing |= {name: str(ROW_COLUMNS[name]).removeprefix("torch.") for name in layout.columns.get(space, ())}
    arrays = [
        ArraySpec(f"{rows_path(space)}/{name}", kind, None, shard, small, None, profile) for name, kind in describing.items()
    ]
    chunk_bytes = COMPACT_BYTES if profile == "compact" else CHUNK_BYTES
    for spec in hook_points:
        if spec.space == space:
            chunk = min(shard, chunk_rows(_row_bytes(spec), chunk_bytes))
            kind = "uint16" if layout.portable_dtype and spec.dtype == "bfloat16" else spec.dtype
            arrays.append(ArraySpec(activations_path(spec.name), kind, spec.width, shard, chunk, spec.name, profile))
    return arrays


def has_token_ids(space: str) -> bool:
    """Whether the rows of a space are text tokens, each with the id that the tokenizer gave it."""
    return space == TEXT_TOKENS


def chunk_rows(row_bytes: int, chunk_bytes: int = CHUNK_BYTES) -> int:
    """Rows of a chunk: the largest power of two whose bytes fit."""
    return 1 << max(0, int(math.log2(chunk_bytes / row_bytes)))


def rows_path(space: str) -> str:
    """Folder of the arrays that describe the rows of a space, relative to the store."""
    return f"{ZARR}/rows/{space}"


def layer_path(hook_point: str) -> str:
    """Folder of a hook point, relative to the store. Unusual characters of its name are percent-encoded."""
    name = quote(hook_point, safe="")
    if name.startswith("__") or not name.strip("."):
        name = f"%{ord(name[0]):02X}{name[1:]}"
    return f"{ZARR}/layers/{name}"


def activations_path(hook_point: str) -> str:
    """Folder of the array of a hook point, relative to the store."""
    return f"{layer_path(hook_point)}/activations"


def commit_path(space: str, block: int) -> str:
    """Of a commit record, relative to the store."""
    return f"commits/{space}/{block:08d}.json"


def redo_path(space: str, block: int) -> str:
    """Of the record of a block that must be made again, relative to the store."""
    return f"commits/{space}/{block:08d}.redo.json"


def table_path(table: str, block: int) -> str:
    """Of a part of a table (`items/image`, `items/text`, `pairs`), relative to the store."""
    return f"{table}/{block:08d}.parquet"


def moments_path(space: str, block: int) -> str:
    """Of the moments of one block of a row space, relative to the store."""
    return f"moments/{space}/{block:08d}.safetensors"


def check_hook_points(path: str | Path, hook_points: Sequence[HookPointSpec]) -> None:
    """Raise StoreError for hook points that one store cannot hold."""
    names = [spec.name for spec in hook_points]
    modality = {spec.space: spec.modality for spec in hook_points}
    if not names or len(set(names)) < len(names):
        raise StoreError(f"{path}: hook points {names}: give at least one, each once")
    for spec in hook_points:
        if not spec.name or spec.width < 1 or spec.dtype not in TORCH_DTYPE:
            raise StoreError(f"{path}: {spec}: a hook point needs a name, a width >= 1 and float32, float16 or bfloat16")
        if not SPACE_NAME.fullmatch(spec.space) or spec.space == TABLES:
            raise StoreError(f"{path}: {spec.name}: {spec.space!r} is no name of a row space; use one like 'image.tokens'")
        if spec.modality != modality[spec.space]:
            raise StoreError(f"{path}: row space {spec.space} has hook points of two modalities; give each its own space")


def _count_records(first: Batch | None) -> int:
    return max(1, len({item.record for items in first.items.values() for item in items})) if first else 1


def _row_bytes(spec: HookPointSpec) -> int:
    return ITEM_SIZE[spec.dtype] * spec.width


def _power_of_two(value: float) -> int:
    return 1 << max(0, round(math.log2(value)))
