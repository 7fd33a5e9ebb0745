"""Reading a store."""

# pyright: reportUnknownParameterType=none
# pyarrow is not typed

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from jaxtyping import Float, Int32, Int64
from safetensors import SafetensorError
from torch import Tensor

from thresher.data.records import Concept, Modality
from thresher.data.store.cache import CacheConfig
from thresher.data.store.codecs import Profile
from thresher.data.store.direct import DirectStorage
from thresher.data.store.header import Header, read_header
from thresher.data.store.layout import MODALITIES, MOMENTS, activations_path, arrays_of, has_token_ids, rows_path
from thresher.data.store.manifest import Manifest, combine_moments, count_rows, read_manifest
from thresher.data.store.moments import Moments, State, load_states, summarize
from thresher.data.store.places import open_cached, open_storage, parse_location
from thresher.data.store.recovery import Committed, read_committed
from thresher.data.store.schema import TORCH_DTYPE, HookPointInfo
from thresher.data.store.sharded import open_array
from thresher.data.store.storage import Storage
from thresher.data.store.tables import read_table
from thresher.errors import StoreError
from thresher.runs import fingerprint

MERGE_BYTES = 64 << 10
"""`read_rows` reads through gaps up to this size: shorter than what another system call costs."""


class Store:
    """An activation store, open for reading. Safe to use from several threads."""

    path: str | Path
    fingerprint: str
    """SHA-256 (hex) that changes whenever anything in the store would."""
    identity: Mapping[str, Any]
    """What was harvested."""
    concepts: tuple[Concept, ...]
    hook_points: Mapping[str, HookPointInfo]
    is_complete: bool
    """False for the committed prefix of an unfinished store."""
    profile: Profile
    """How its chunks are encoded."""
    portable_dtype: bool
    """Whether it was written with bfloat16 called uint16 for other readers."""

    def __init__(
        self, path: str | Path, storage: Storage, header: Header, committed: Committed, manifest: Manifest | None
    ) -> None:
        self.path = path
        self._storage = storage
        self.is_complete = manifest is not None
        self.fingerprint = manifest.sha256 if manifest else fingerprint(committed.files())
        self.identity = header.identity
        self.concepts = tuple(header.concepts)
        self.profile, self.portable_dtype = header.layout.profile, header.layout.portable_dtype
        self._header = header
        self._committed = committed
        self._manifest = manifest
        self._array = functools.lru_cache(maxsize=None)(functools.partial(open_array, storage))
        rows = {space: self._count_rows(space) for space in committed.spaces}
        self.hook_points = {spec.name: HookPointInfo(*spec, rows=rows[spec.space]) for spec in header.hook_points}

    def list_shards(self, hook_point: str) -> list[tuple[str, int]]:
        """(path in the store, rows) of each shard of a hook point; its rows are the first bytes of the file, without gaps.

        Raises StoreError for a store of another profile than raw, whose files hold no rows as they are.
        """
        info = self._info(hook_point)
        if self.profile != "raw":
            raise StoreError(
                f"{self.path}: {hook_point}: its rows are compressed (profile {self.profile}): no other program can read them "
                "where they lie; export a copy instead (`thresher store export --to hdf5`)"
            )
        arrays = arrays_of(info.space, self._header.hook_points, self._header.layout)
        (array,) = (array for array in arrays if array.hook_point == hook_point)
        starts = range(0, info.rows, array.shard_rows)
        return [(array.shard_path(block), min(array.shard_rows, info.rows - start)) for block, start in enumerate(starts)]

    def rows(self, hook_point: str) -> int:
        """Number of activations of a hook point."""
        return self._info(hook_point).rows

    def item_of(self, hook_point: str) -> Int64[np.ndarray, "row"]:
        """For each row the index of its item in `items(modality)`."""
        return self.read_items_of(hook_point, 0, self.rows(hook_point))

    def read_items_of(self, hook_point: str, start: int, stop: int) -> Int64[np.ndarray, "row"]:
        """For rows `start` to `stop` (exclusive) the index of their item in `items(modality)`."""
        info = self._info(hook_point)
        return self._read(f"{rows_path(info.space)}/item", info, start, stop)

    def position_of(self, hook_point: str) -> Int32[np.ndarray, "row"]:
        """For each row its token or patch position in the item; -1 where a row stands for the whole item."""
        info = self._info(hook_point)
        return self._read(f"{rows_path(info.space)}/position", info, 0, info.rows)

    def token_id_of(self, hook_point: str) -> Int32[np.ndarray, "row"]:
        """For each row the id of its token. Raises StoreError for a hook point whose rows are no text tokens."""
        info = self._info(hook_point)
        if not has_token_ids(info.space):
            raise StoreError(
                f"{self.path}: {hook_point}: rows of {info.space} have no token ids, only those of text tokens have"
            )
        return self._read(f"{rows_path(info.space)}/token_id", info, 0, info.rows)

    def read_described(self, hook_point: str, start: int, stop: int) -> dict[str, npt.NDArray[Any]]:
        """What describes rows `start` to `stop` (exclusive) beside their item: position, token id, optional columns."""
        info = self._info(hook_point)
        names = ["position", *(["token_id"] if has_token_ids(info.space) else []), *self.columns_of(hook_point)]
        return {name: self._read(f"{rows_path(info.space)}/{name}", info, start, stop) for name in names}

    def columns_of(self, hook_point: str) -> tuple[str, ...]:
        """The optional columns that describe the rows of a hook point: of `kind`, `patch_row`, `patch_column`."""
        return tuple(self._header.layout.columns.get(self._info(hook_point).space, ()))

    def column_of(self, hook_point: str, column: str) -> npt.NDArray[np.integer[Any]]:
        """For each row its `kind` (int8, see `TokenKind`), or the `patch_row` or `patch_column` (int16, -1: no patch).

        Raises StoreError when the rows are not described by it.
        """
        info = self._info(hook_point)
        if column not in self.columns_of(hook_point):
            known = ", ".join(self.columns_of(hook_point)) or "none"
            raise StoreError(f"{self.path}: {hook_point}: its rows have no column {column!r}; columns: {known}")
        return self._read(f"{rows_path(info.space)}/{column}", info, 0, info.rows)

    def read(self, hook_point: str, start: int, stop: int) -> Float[Tensor, "row width"]:
        """Rows `start` to `stop` (exclusive) in the store's dtype."""
        info = self._info(hook_point)
        out = torch.empty((max(0, stop - start), info.width), dtype=TORCH_DTYPE[info.dtype])
        self.read_into(hook_point, start, out)
        return out

    def read_into(self, hook_point: str, start: int, out: Float[Tensor, "row width"]) -> None:
        """Fill a contiguous CPU tensor of the store's dtype with the rows from `start` on; copies nothing else."""
        info = self._info(hook_point)
        if not 0 <= start <= start + len(out) <= info.rows:
            raise StoreError(f"{self.path}: {hook_point}: rows {start} to {start + len(out)} asked for, it has {info.rows}")
        if len(out):
            self._array(activations_path(hook_point)).read_into(start, _memory(out))

    def bypass_cache(self) -> "Store":
        """The same store, all of it read past the page cache of the system, for readers of more than that holds.

        Itself where it is not on a file system of this machine. Warns when the file system can only read through the cache.
        """
        if isinstance(self.path, str):
            return self
        return Store(self.path, DirectStorage(self.path), self._header, self._committed, self._manifest)

    def read_rows(self, hook_point: str, rows: npt.NDArray[np.int64]) -> Float[Tensor, "row width"]:
        """Any rows in any order, repeats allowed, in the store's dtype. Reads in the order of the file, near rows together."""
        info = self._info(hook_point)
        if len(rows) and not (rows.min() >= 0 and rows.max() < info.rows):
            raise StoreError(f"{self.path}: {hook_point}: rows {rows.min()} to {rows.max()} asked for, it has {info.rows}")
        wanted, where = np.unique(rows, return_inverse=True)
        found = torch.empty((len(wanted), info.width), dtype=TORCH_DTYPE[info.dtype])
        gap = max(1, MERGE_BYTES // (info.width * found.element_size()))
        cuts = np.flatnonzero(np.diff(wanted) > gap) + 1
        chunk_rows = self._array(activations_path(hook_point)).chunk_rows
        cuts = np.union1d(cuts, np.flatnonzero(np.diff(wanted // chunk_rows)) + 1)
        for group in np.split(np.arange(len(wanted)), cuts):
            if len(group):
                first, last = int(wanted[group[0]]), int(wanted[group[-1]])
                span = self.read(hook_point, first, last + 1)
                found[int(group[0]) : int(group[-1]) + 1] = span[torch.from_numpy(wanted[group] - first)]
        return found[torch.from_numpy(where.reshape(-1))]

    def items(self, modality: Modality, columns: Sequence[str] | None = None) -> pa.Table:
        """The items of a modality: key, record, status, text or thumbnail, concepts; or only some `columns` of them."""
        return self._table(f"items/{modality}", columns)

    def pairs(self) -> Int64[np.ndarray, "pair 2"]:
        """(image item, text item) of every pair."""
        table = self._table("pairs", None)
        return np.stack([table["image"].to_numpy(), table["text"].to_numpy()], axis=1)

    def parts(self) -> Iterator[tuple[dict[Modality, int], dict[Modality, pa.Table], Int64[np.ndarray, "pair 2"]]]:
        """Items and pairs part by part, as they were stored: (items of each modality before it, its items, its pairs)."""
        before: dict[Modality, int] = dict.fromkeys(MODALITIES, 0)
        for part in self._committed.tables:
            files = list(part.files)
            items: dict[Modality, pa.Table] = {name: self._read_tables(f"items/{name}", files, None) for name in MODALITIES}
            table = self._read_tables("pairs", files, None)
            yield before, items, np.stack([table["image"].to_numpy(), table["text"].to_numpy()], axis=1)
            before = {modality: before[modality] + items[modality].num_rows for modality in MODALITIES}

    def moments(self, hook_point: str) -> Moments:
        """Mean, second moment, norms of a hook point, computed while it was written."""
        self._info(hook_point)
        return summarize(self._moments[hook_point])

    @functools.cached_property
    def _moments(self) -> Mapping[str, State]:
        try:
            if not self.is_complete:
                return combine_moments(self._storage, self._header, self._committed)
            return load_states(self._storage.read(MOMENTS), self.hook_points)
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise StoreError(f"{self.path}: its moments cannot be read ({error}); run `thresher store repair` on it") from error

    @property
    def n_bytes(self) -> int:
        """Bytes of its shards, tables and moments."""
        return sum(stored.bytes for stored in self._committed.files().values())

    def _info(self, hook_point: str) -> HookPointInfo:
        if hook_point not in self.hook_points:
            raise StoreError(f"{self.path}: no hook point {hook_point!r}; the store has {', '.join(self.hook_points)}")
        return self.hook_points[hook_point]

    def _read(self, path: str, info: HookPointInfo, start: int, stop: int) -> npt.NDArray[Any]:
        if not 0 <= start <= stop <= info.rows:
            raise StoreError(f"{self.path}: {info.name}: rows {start} to {stop} asked for, it has {info.rows}")
        array = self._array(path)
        out = np.empty(stop - start, array.dtype)
        if len(out):
            array.read_into(start, out)
        return out

    def _count_rows(self, space: str) -> int:
        """Committed rows; of an unfinished store only those whose items are committed as well."""
        commits = self._committed.spaces[space]
        rows = commits[-1].rows_end if commits else 0
        if self.is_complete or not rows:
            return rows
        modality = next(spec.modality for spec in self._header.hook_points if spec.space == space)
        tables = self._committed.tables
        n_items = tables[-1].cursor.items[modality] if tables else 0
        items = np.empty(rows, np.int64)
        self._array(f"{rows_path(space)}/item").read_into(0, items)
        beyond = np.flatnonzero(items >= n_items)
        return int(beyond[0]) if len(beyond) else rows

    def _table(self, name: str, columns: Sequence[str] | None) -> pa.Table:
        return self._read_tables(name, [path for part in self._committed.tables for path in part.files], columns)

    def _read_tables(self, name: str, paths: Sequence[str], columns: Sequence[str] | None) -> pa.Table:
        try:
            return read_table(self._storage, name, paths, columns)
        except (OSError, pa.ArrowException) as error:
            raise StoreError(f"{self.path}: {name}: cannot be read ({error}); run `thresher store verify` on it") from error


def open_store(
    path: str | Path, *, incomplete: Literal["refuse", "prefix"] = "refuse", cache: CacheConfig | None = None
) -> Store:
    """Open a store for reading; a complete one in a bucket through a `cache` on this machine, when one is given.

    An unfinished store is refused, or with `incomplete="prefix"` opened as far as it is committed. Raises StoreError: no
    store, unfinished, damaged, or of another version of the format.
    """
    path, storage = parse_location(path), open_storage(path)
    header = read_header(storage)
    manifest = read_manifest(storage)
    committed = read_committed(storage, header.layout)
    if manifest is None and incomplete == "refuse":
        raise StoreError(f"{path}: {describe_unfinished(committed)}; rerun the same harvest command to resume")
    if manifest is not None:
        _check_records(storage, header, committed, manifest)
        if isinstance(path, str) and cache is not None and cache.gigabytes > 0:
            storage = open_cached(path, cache, manifest.sha256, manifest.files)
    return Store(path, storage, header, committed, manifest)


def _check_records(storage: Storage, header: Header, committed: Committed, manifest: Manifest) -> None:
    items = committed.tables[-1].cursor.items if committed.tables else {}
    if (count_rows(header, committed), items) != (manifest.rows, manifest.items):
        missing = [name for name in manifest.files if name.startswith("commits/") and storage.size(name) is None]
        named = f"{missing[0]} is missing" if missing else "they hold other rows or items"
        raise StoreError(
            f"{storage.locate()}: its commit records do not add up to its manifest: {named}; run `thresher store repair` on it"
        )


def describe_unfinished(committed: Committed) -> str:
    """How far an unfinished store is committed."""
    blocks = ", ".join(f"{len(commits)} shards of {space}" for space, commits in committed.spaces.items())
    return f"unfinished: the first {committed.start().batch} batches ({blocks}) are stored, the rest is missing"


def _memory(tensor: Tensor) -> npt.NDArray[Any]:
    """The memory of a contiguous CPU tensor, bfloat16 as its bits."""
    return tensor.view(torch.int16).numpy().view(np.uint16) if tensor.dtype == torch.bfloat16 else tensor.numpy()
