"""A store in memory: what a harvest would write, read like a store."""

# pyright: reportUnknownParameterType=none
# pyarrow is not typed

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from thresher.data.records import Modality
from thresher.data.store import Batch, HookPointInfo, HookPointSpec
from thresher.data.store.schema import TORCH_DTYPE
from thresher.errors import StoreError
from thresher.runs import fingerprint


class MemoryStore:
    """The rows of some batches of a harvest (`Readable`), in the order in which a store has them."""

    def __init__(
        self, name: str, identity: Mapping[str, Any], specs: Sequence[HookPointSpec], batches: Iterable[Batch]
    ) -> None:
        """`identity` is what decides the rows, and `name` what messages call them."""
        self.path, self.identity = name, identity
        self.fingerprint = fingerprint({"in memory": dict(identity)})
        rows: dict[str, list[Tensor]] = {spec.name: [] for spec in specs}
        items: dict[str, list[Tensor]] = {spec.space: [] for spec in specs}
        self._items: dict[Modality, list[tuple[str, int]]] = {"image": [], "text": []}
        modality: dict[str, Modality] = {spec.space: spec.modality for spec in specs}
        for batch in batches:
            for space, found in batch.rows.items():
                items[space].append(found.item + len(self._items[modality[space]]))
                for name_of, values in found.activations.items():
                    rows[name_of].append(values)
            for each, listed in batch.items.items():
                self._items[each] += [(item.key, item.record) for item in listed]
        self._item_of = {space: _join(found, torch.int64).numpy() for space, found in items.items()}
        self._rows: dict[str, Tensor] = {}
        for spec in specs:
            # Freed one after the other: two copies of one hook point at most.
            found = rows.pop(spec.name)
            self._rows[spec.name] = torch.cat(found) if found else torch.empty(0, spec.width, dtype=TORCH_DTYPE[spec.dtype])
        self.hook_points = {spec.name: HookPointInfo(*spec, rows=len(self._rows[spec.name])) for spec in specs}

    def rows(self, hook_point: str) -> int:
        """Number of activations of a hook point."""
        return self._info(hook_point).rows

    def item_of(self, hook_point: str) -> Int64[np.ndarray, "row"]:
        """For each row the index of its item in `items(modality)`."""
        return self._item_of[self._info(hook_point).space]

    def read_items_of(self, hook_point: str, start: int, stop: int) -> Int64[np.ndarray, "row"]:
        """For rows `start` to `stop` (exclusive) the index of their item in `items(modality)`."""
        return self.item_of(hook_point)[start:stop]

    def read(self, hook_point: str, start: int, stop: int) -> Float[Tensor, "row width"]:
        """Rows `start` to `stop` (exclusive); they share memory with the store."""
        self._info(hook_point)
        return self._rows[hook_point][start:stop]

    def read_into(self, hook_point: str, start: int, out: Float[Tensor, "row width"]) -> None:
        """Fill a tensor with the rows from `start` on."""
        out.copy_(self.read(hook_point, start, start + len(out)))

    def read_rows(self, hook_point: str, rows: npt.NDArray[np.int64]) -> Float[Tensor, "row width"]:
        """Any rows in any order, repeats allowed."""
        self._info(hook_point)
        return self._rows[hook_point].index_select(0, torch.from_numpy(rows))

    def items(self, modality: Modality, columns: Sequence[str] | None = None) -> Any:
        """The items of a modality: `key` and `record`, or only some of these `columns`."""
        keys, records = zip(*self._items[modality], strict=True) if self._items[modality] else ((), ())
        table = pa.table({"key": pa.array(keys, pa.string()), "record": pa.array(records, pa.int64())})
        return table if columns is None else table.select(list(columns))

    def _info(self, hook_point: str) -> HookPointInfo:
        if hook_point not in self.hook_points:
            raise StoreError(f"{self.path}: no hook point {hook_point!r}; there are {', '.join(self.hook_points)}")
        return self.hook_points[hook_point]


def _join(parts: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    return torch.cat(list(parts)) if parts else torch.empty(0, dtype=dtype)
