"""Prepared batches through the model to rows on the CPU, the copy of one batch beside the forward pass of the next."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from thresher.data.records import Modality
from thresher.data.store import Batch, Item, Rows
from thresher.errors import ModelError
from thresher.harvest.adapters import Adapter
from thresher.harvest.adapters.base import HookPoint
from thresher.harvest.adapters.weights import torch_dtype
from thresher.harvest.prepare import Chunk, Prepared
from thresher.harvest.rows import RowIndex, find_nonfinite, gather
from thresher.harvest.settings import HarvestConfig


class _Launched(NamedTuple):
    """A batch whose values are on their way to the CPU."""

    prepared: Prepared
    values: dict[str, list[Tensor]]
    """Hook point -> one tensor [row, d] per chunk of its modality."""
    done: torch.cuda.Event | None


class Reader:
    """Reads the hook points of one model for batch after batch."""

    def __init__(self, settings: HarvestConfig, adapter: Adapter, hook_points: Sequence[HookPoint]) -> None:
        self._settings = settings
        self._adapter = adapter
        self._hook_points = hook_points

    def read(self, batches: Iterable[Prepared]) -> Iterator[Batch]:
        """Batches of rows in order. Raises ModelError on values that are not finite when the policy is to stop."""
        launched: _Launched | None = None
        for prepared in batches:
            following = self._launch(prepared)
            if launched is not None:
                yield self._finish(launched)
            launched = following
        if launched is not None:
            yield self._finish(launched)

    def _launch(self, prepared: Prepared) -> _Launched:
        values: dict[str, list[Tensor]] = {point.name: [] for point in self._hook_points}
        device, autocast = self._adapter.device, self._settings.autocast
        mixed = torch.bfloat16 if autocast == "off" else torch_dtype(autocast)
        with torch.inference_mode(), torch.autocast(device.type, mixed, enabled=autocast != "off"):
            for chunk in prepared.chunks:
                points = [point for point in self._hook_points if point.modality == chunk.inputs.modality]
                # Before the forward pass: a copy to the device behind it would wait for it.
                index = {"tokens": chunk.tokens.send(device), "items": chunk.items.send(device)}
                captured = self._adapter.capture(chunk.inputs.send(device), points)
                for point in points:
                    rows = gather(captured[point.name], index[point.level], point.level)
                    kept = rows.to(torch_dtype(self._settings.dtype)).to("cpu", non_blocking=True)
                    values[point.name].append(kept)
        if device.type != "cuda":
            return _Launched(prepared, values, None)
        done = torch.cuda.Event()
        done.record(torch.cuda.current_stream(device))
        return _Launched(prepared, values, done)

    def _finish(self, launched: _Launched) -> Batch:
        if launched.done is not None:
            launched.done.synchronize()
        items: dict[Modality, list[Item]] = {modality: list(found) for modality, found in launched.prepared.items.items()}
        rows = {space: self._collect(launched, space, items) for space in {point.space: None for point in self._hook_points}}
        return Batch(launched.prepared.number, items, launched.prepared.pairs, rows)

    def _collect(self, launched: _Launched, space: str, items: dict[Modality, list[Item]]) -> Rows:
        """The rows of one space; items with values that are not finite are marked in `items`."""
        points = [point for point in self._hook_points if point.space == space]
        modality = points[0].modality
        chunks = [chunk for chunk in launched.prepared.chunks if chunk.inputs.modality == modality]
        index = [(chunk, _rows_of(chunk, points[0])) for chunk in chunks]
        item = _join([chunk.item[rows.item] for chunk, rows in index], torch.int64)
        position = _join([rows.position for _, rows in index], torch.int32)
        token_id = None
        if space == "text.tokens":
            ids = [chunk.inputs.layout.token_id for chunk, _ in index]
            found = [known[rows.item, rows.position] for known, (_, rows) in zip(ids, index, strict=True) if known is not None]
            token_id = _join(found, torch.int32)
        values = {point.name: _join_values(launched.values[point.name], point, self._settings) for point in points}
        bad = self._check(values, item, position, items[modality])
        if bad is None:
            return Rows(item, position, token_id, values)
        kept = {name: value[~bad] for name, value in values.items()}
        return Rows(item[~bad], position[~bad], token_id[~bad] if token_id is not None else None, kept)

    def _check(self, values: dict[str, Tensor], item: Tensor, position: Tensor, items: list[Item]) -> Tensor | None:
        """Marks the rows to drop, or None; the items they belong to get the status `nonfinite`."""
        bad: Tensor | None = None
        for name, value in values.items():
            found = find_nonfinite(value)
            if found is None:
                continue
            if self._settings.on_nonfinite == "stop":
                row = int(found.nonzero()[0])
                raise ModelError(self._explain(name, value[row], items[int(item[row])].key, int(position[row])))
            bad = found if bad is None else bad | found
        if bad is not None:
            for place in item[bad].unique().tolist():
                items[place] = items[place]._replace(status="nonfinite")
        return bad

    def _explain(self, name: str, value: Tensor, key: str, position: int) -> str:
        where = f"hook point {name}, item {key!r}" + (f", position {position}" if position >= 0 else "")
        if self._settings.dtype == "float16" and not value.isnan().any():
            return f"{where}: infinite as float16, which ends at 65504; store it with dtype=float32 or dtype=bfloat16"
        what = "NaN" if value.isnan().any() else "infinity"
        return (
            f"{where}: the model gives {what}; try model.precision=float32 and autocast=off, "
            "or leave such rows out with on_nonfinite=drop"
        )


def _rows_of(chunk: Chunk, point: HookPoint) -> RowIndex:
    return chunk.tokens if point.level == "tokens" else chunk.items


def _join(parts: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    return torch.cat([part.to(dtype) for part in parts]) if parts else torch.empty(0, dtype=dtype)


def _join_values(parts: Sequence[Tensor], point: HookPoint, settings: HarvestConfig) -> Tensor:
    if not parts:
        return torch.empty(0, point.width, dtype=torch_dtype(settings.dtype))
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
