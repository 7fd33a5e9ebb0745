"""Several stores as one: a hook point has the rows of every store that has it, one store after the other."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pydantic
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from thresher.data.records import Modality
from thresher.data.store import CacheConfig, HookPointInfo, Store, open_store, parse_location
from thresher.data.store.schema import TORCH_DTYPE
from thresher.errors import ConfigError, StoreError
from thresher.runs import fingerprint


def parse_locations(where: str | Path | Sequence[str | Path]) -> str | Path | tuple[str | Path, ...]:
    """One location, or those of a list. Raises ConfigError as `parse_location` does."""
    if isinstance(where, (str, Path)):
        return parse_location(where)
    return tuple(parse_location(each) for each in where)


StoreLocations = Annotated[str | Path | tuple[str | Path, ...], pydantic.BeforeValidator(parse_locations)]
"""Where one store is, or several."""


class _Part(NamedTuple):
    """The rows that one store has of a hook point."""

    store: Store
    first: int
    """Its first row, in the numbering of the mixture."""
    stop: int
    items_before: int
    """Items of the modality in the stores before it."""


class Mixture:
    """Several stores, read like one (`Readable`). Holds no rows, and of items only how many there are.

    Raises ConfigError: fewer than two stores, or one of them twice. Raises StoreError: a hook point that differs in width or
    modality between them.
    """

    def __init__(self, stores: Sequence[Store]) -> None:
        self.stores = tuple(stores)
        self.path = " + ".join(str(store.path) for store in stores)
        """The paths of all, for messages."""
        self.fingerprint = fingerprint([store.fingerprint for store in stores])
        self.identity: Mapping[str, Any] = {"stores": [dict(store.identity) for store in stores]}
        if len({store.fingerprint for store in stores}) < max(len(stores), 2):
            raise ConfigError(f"store: {self.path}: give at least two different stores, or one that is not in a list")
        n_items: dict[Modality, list[int]] = {
            "image": [store.items("image", ["record"]).num_rows for store in stores],
            "text": [store.items("text", ["record"]).num_rows for store in stores],
        }
        self._items_before = {modality: np.cumsum([0, *counts]).tolist() for modality, counts in n_items.items()}
        names = list(dict.fromkeys(name for store in stores for name in store.hook_points))
        self._parts = {name: self._place(name) for name in names}
        self.hook_points: Mapping[str, HookPointInfo] = {name: self._describe(name) for name in names}

    def rows(self, hook_point: str) -> int:
        """Number of activations of a hook point."""
        return self._info(hook_point).rows

    def find_stores(self, hook_point: str) -> list[int]:
        """Which of `stores` have a hook point."""
        self._info(hook_point)
        return [index for index, store in enumerate(self.stores) if hook_point in store.hook_points]

    def items_of(self, index: int, modality: Modality) -> slice:
        """Where the items of a store are among those of all."""
        before = self._items_before[modality]
        return slice(before[index], before[index + 1])

    def item_of(self, hook_point: str) -> Int64[np.ndarray, "row"]:
        """For each row the index of its item in `items(modality)`."""
        return self.read_items_of(hook_point, 0, self.rows(hook_point))

    def read_items_of(self, hook_point: str, start: int, stop: int) -> Int64[np.ndarray, "row"]:
        """For rows `start` to `stop` (exclusive) the index of their item in `items(modality)`."""
        found = [
            part.store.read_items_of(hook_point, first - part.first, last - part.first) + part.items_before
            for part, first, last in self._cut(hook_point, start, stop)
        ]
        return np.concatenate([np.zeros(0, np.int64), *found])

    def read(self, hook_point: str, start: int, stop: int) -> Float[Tensor, "row width"]:
        """Rows `start` to `stop` (exclusive) in the dtype of `hook_points`: float32 where the stores' dtypes differ."""
        info = self._info(hook_point)
        out = torch.empty((max(0, stop - start), info.width), dtype=TORCH_DTYPE[info.dtype])
        self.read_into(hook_point, start, out)
        return out

    def read_into(self, hook_point: str, start: int, out: Float[Tensor, "row width"]) -> None:
        """Fill a contiguous CPU tensor with the rows from `start` on."""
        for part, first, last in self._cut(hook_point, start, start + len(out)):
            target = out[first - start : last - start]
            if TORCH_DTYPE[part.store.hook_points[hook_point].dtype] == out.dtype:
                part.store.read_into(hook_point, first - part.first, target)
            else:
                target.copy_(part.store.read(hook_point, first - part.first, last - part.first))

    def read_rows(self, hook_point: str, rows: npt.NDArray[np.int64]) -> Float[Tensor, "row width"]:
        """Any rows in any order, repeats allowed."""
        info = self._info(hook_point)
        if len(rows) and not (rows.min() >= 0 and rows.max() < info.rows):
            raise StoreError(f"{self.path}: {hook_point}: rows {rows.min()} to {rows.max()} asked for, it has {info.rows}")
        out = torch.empty((len(rows), info.width), dtype=TORCH_DTYPE[info.dtype])
        for part in self._parts[hook_point]:
            wanted = np.flatnonzero((rows >= part.first) & (rows < part.stop))
            if len(wanted):
                out[torch.from_numpy(wanted)] = part.store.read_rows(hook_point, rows[wanted] - part.first).to(out.dtype)
        return out

    def items(self, modality: Modality, columns: Sequence[str] | None = None) -> Any:
        """The items of a modality of all stores, or only some `columns` of them. Records count anew in each store."""
        return pa.concat_tables([store.items(modality, columns) for store in self.stores], promote_options="default")

    def _place(self, hook_point: str) -> list[_Part]:
        parts: list[_Part] = []
        for index, store in enumerate(self.stores):
            if hook_point in store.hook_points:
                first = parts[-1].stop if parts else 0
                before = self._items_before[store.hook_points[hook_point].modality][index]
                parts.append(_Part(store, first, first + store.rows(hook_point), before))
        return parts

    def _describe(self, hook_point: str) -> HookPointInfo:
        infos = {part.store.path: part.store.hook_points[hook_point] for part in self._parts[hook_point]}
        for what in ("width", "modality"):
            found = {path: getattr(info, what) for path, info in infos.items()}
            if len(set(found.values())) > 1:
                listed = ", ".join(f"{value} in {path}" for path, value in found.items())
                raise StoreError(f"{hook_point}: one dictionary needs one {what}, but found {listed}; train one for each store")
        first, dtypes = next(iter(infos.values())), {info.dtype for info in infos.values()}
        return first._replace(dtype=first.dtype if len(dtypes) == 1 else "float32", rows=self._parts[hook_point][-1].stop)

    def _cut(self, hook_point: str, start: int, stop: int) -> Iterator[tuple[_Part, int, int]]:
        """Each store's share of rows `start` to `stop`, in the numbering of the mixture."""
        n_rows = self.rows(hook_point)
        if not 0 <= start <= stop <= n_rows:
            raise StoreError(f"{self.path}: {hook_point}: rows {start} to {stop} asked for, it has {n_rows}")
        for part in self._parts[hook_point]:
            first, last = max(start, part.first), min(stop, part.stop)
            if first < last:
                yield part, first, last

    def _info(self, hook_point: str) -> HookPointInfo:
        if hook_point not in self.hook_points:
            raise StoreError(f"{self.path}: no hook point {hook_point!r}; the stores have {', '.join(self.hook_points)}")
        return self.hook_points[hook_point]


def open_stores(where: str | Path | Sequence[str | Path], *, cache: CacheConfig | None = None) -> Store | Mixture:
    """Open one store, or several as one. Raises StoreError and ConfigError as `open_store` and `Mixture` do."""
    if isinstance(where, (str, Path)):
        return open_store(where, cache=cache)
    return Mixture([open_store(each, cache=cache) for each in where])
