"""The tables of items and of pairs, stored as numbered Parquet parts."""

# pyright: reportUnknownParameterType=none
# pyarrow is not typed

import itertools
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq

from thresher.data.records import Modality
from thresher.data.store.layout import MODALITIES, table_path
from thresher.data.store.schema import Batch, Item
from thresher.data.store.storage import SYNCS, Storage, StoredFile, Stream, write_file

_CONCEPTS = ("concepts", pa.list_(pa.int32()))
SCHEMA: Mapping[str, pa.Schema] = {
    "items/image": pa.schema(
        [("key", pa.string()), ("record", pa.int64()), ("status", pa.string()), ("thumbnail", pa.binary()), _CONCEPTS]
    ),
    "items/text": pa.schema(
        [("key", pa.string()), ("record", pa.int64()), ("status", pa.string()), ("text", pa.string()), _CONCEPTS]
    ),
    "pairs": pa.schema([("image", pa.int64()), ("text", pa.int64())]),
}
"""Table -> its columns."""


class TablePart:
    """The items and pairs of the batches that make one part."""

    def __init__(self) -> None:
        self.batches = 0
        self._items: dict[Modality, list[Item]] = {modality: [] for modality in MODALITIES}
        self._pairs: list[tuple[int, int]] = []

    def append(self, batch: Batch, before: Mapping[str, int]) -> None:
        """Add a batch; `before` counts the items of each modality in all earlier batches."""
        self.batches += 1
        for modality, items in batch.items.items():
            self._items[modality] += items
        self._pairs += [(image + before["image"], text + before["text"]) for image, text in batch.pairs]

    @property
    def n_items(self) -> int:
        """Items of both modalities."""
        return sum(len(items) for items in self._items.values())

    def write(self, storage: Storage, block: int) -> dict[str, StoredFile]:
        """Write the tables that have rows; the files by their path."""
        tables = {f"items/{modality}": _items_table(modality, items) for modality, items in self._items.items()}
        tables["pairs"] = pa.Table.from_arrays(_columns(self._pairs, 2, SCHEMA["pairs"]), schema=SCHEMA["pairs"])
        parts = {table_path(name, block): [_serialize(table)] for name, table in tables.items() if table.num_rows}
        with ThreadPoolExecutor(SYNCS) as pool:
            stored = pool.map(write_file, itertools.repeat(storage), parts, parts.values())
            return dict(zip(parts, stored, strict=True))


def read_table(storage: Storage, name: str, paths: Sequence[str], columns: Sequence[str] | None) -> pa.Table:
    """The parts of one table, put together. OSError or pyarrow.ArrowException when a part is missing or damaged."""
    schema = SCHEMA[name]
    if columns is not None:
        schema = pa.schema([schema.field(column) for column in columns])
    parts = [_read_part(storage, path, schema) for path in paths if path.startswith(f"{name}/")]
    return pa.concat_tables([schema.empty_table(), *parts])


def _read_part(storage: Storage, path: str, schema: pa.Schema) -> pa.Table:
    with Stream(storage.open(path)) as stream, pq.ParquetFile(stream) as file:
        # pyarrow's own threads can abort the process at its end.
        return file.read(schema.names, use_threads=False).cast(schema)


def _items_table(modality: Modality, items: Sequence[Item]) -> pa.Table:
    schema = SCHEMA[f"items/{modality}"]
    return pa.Table.from_arrays([pa.array([getattr(item, f.name) for item in items], f.type) for f in schema], schema=schema)


def _columns(rows: Sequence[Sequence[int]], n: int, schema: pa.Schema) -> list[pa.Array]:
    return [pa.array([row[column] for row in rows], schema.field(column).type) for column in range(n)]


def _serialize(table: pa.Table) -> memoryview:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="none")
    return memoryview(sink.getvalue())
