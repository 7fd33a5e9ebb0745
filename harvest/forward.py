"""Prepared batches through the model to rows on the CPU, those of one batch put in order beside the pass of the next."""

from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from thresher.data.records import Modality
from thresher.data.store import Batch, Item, Rows
from thresher.errors import ModelError
from thresher.harvest.adapters import Adapter
from thresher.harvest.adapters.base import HookPoint
from thresher.harvest.adapters.weights import torch_dtype
from thresher.harvest.outliers import clip_rows, find_outliers
from thresher.harvest.prepare import Chunk, Prepared
from thresher.harvest.pump import pump
from thresher.harvest.rows import RowIndex, average, describe_rows, find_nonfinite, find_order, gather, name_space
from thresher.harvest.settings import HarvestConfig
from thresher.harvest.transfers import Transfers

SEVERITY = {"clipped": 0, "outlier": 1, "nonfinite": 2}
"""What can be wrong with single rows of an item, the worst last."""


class _Launched(NamedTuple):
    """A batch whose values are on their way to the CPU."""

    prepared: Prepared
    values: dict[str, list[Tensor]]
    """Hook point -> one tensor [row, d] per chunk of its modality."""
    done: torch.cuda.Event | None


class Reader:
    """Reads the hook points of one model for batch after batch."""

    def __init__(
        self, settings: HarvestConfig, adapter: Adapter, hook_points: Sequence[HookPoint], bounds: Mapping[str, float]
    ) -> None:
        self._settings = settings
        self._bounds = bounds
        self._adapter = adapter
        self._hook_points = hook_points
        self._transfers = Transfers(adapter.device)
        if settings.compile:
            adapter.compile(hook_points)
        texts = [point for point in hook_points if point.modality == "text"]
        if settings.text_passes == "packed" and texts:
            with self._autocast():
                adapter.check_packing(settings.packed_length, texts)

    def read(self, batches: Iterable[Prepared]) -> Generator[Batch, None, None]:
        """Batches of rows in order, as `pump` does it. Raises ModelError on values that are not finite when the policy is
        to stop."""
        return pump(batches, self._launch, self._finish)

    def _autocast(self) -> torch.autocast:
        autocast = self._settings.autocast
        mixed = torch.bfloat16 if autocast == "off" else torch_dtype(autocast)
        return torch.autocast(self._adapter.device.type, mixed, enabled=autocast != "off")

    def _launch(self, prepared: Prepared) -> _Launched:
        """Ask the device for all rows of a batch, without waiting for them where it is a GPU."""
        values: dict[str, list[Tensor]] = {point.name: [] for point in self._hook_points}
        device = self._adapter.device
        with torch.inference_mode(), self._autocast():
            for chunk in prepared.chunks:
                points = [point for point in self._hook_points if point.modality == chunk.inputs.modality]
                sent = self._transfers.send(chunk)
                captured = self._adapter.capture(sent.inputs, points)
                for point in points:
                    # A model that is spread over several devices gives each activation where it was computed.
                    rows = gather(captured.pop(point.name).to(device), sent.rows[point.level], point.level)
                    if point.level == "tokens" and self._settings.pool == "mean":
                        rows = average(rows, sent.lengths)
                    values[point.name].append(self._transfers.fetch(rows.to(torch_dtype(self._settings.dtype))))
        return _Launched(prepared, values, self._transfers.mark())

    def _finish(self, launched: _Launched) -> Batch:
        if launched.done is not None:
            launched.done.synchronize()
        items: dict[Modality, list[Item]] = {modality: list(found) for modality, found in launched.prepared.items.items()}
        spaces = dict.fromkeys(name_space(point, self._settings.pool) for point in self._hook_points)
        rows = {space: self._collect(launched, space, items) for space in spaces}
        return Batch(launched.prepared.number, items, launched.prepared.pairs, rows)

    def _collect(self, launched: _Launched, space: str, items: dict[Modality, list[Item]]) -> Rows:
        """The rows of one space; items some of whose rows are left out or changed are marked in `items`."""
        points = [point for point in self._hook_points if name_space(point, self._settings.pool) == space]
        modality = points[0].modality
        index = [(chunk, _rows_of(chunk, space)) for chunk in launched.prepared.chunks if chunk.inputs.modality == modality]
        item = _join([chunk.item[rows.item] for chunk, rows in index], torch.int64)
        position = _join([rows.position for _, rows in index], torch.int32)
        token_id = None
        if space == "text.tokens":
            ids = [chunk.inputs.layout.token_id for chunk, _ in index]
            found = [known[rows.item, rows.position] for known, (_, rows) in zip(ids, index, strict=True) if known is not None]
            token_id = _join(found, torch.int32)
        values = {point.name: _join_values(launched.values[point.name], point, self._settings) for point in points}
        rows = Rows(item, position, token_id, values, self._describe(index, space, modality))
        order = find_order(item)
        rows = rows if order is None else _pick(rows, order)
        bad = self._check(rows.activations, rows.item, rows.position, items[modality])
        rows = rows if bad is None else _pick(rows, ~bad)
        return self._treat_outliers(rows, items[modality])

    def _describe(self, index: Sequence[tuple[Chunk, RowIndex]], space: str, modality: Modality) -> dict[str, Tensor]:
        """The columns of token rows: their kind, and where an image can be in the sequence the place of the patch."""
        if not space.endswith(".tokens"):
            return {}
        has_patches = modality == "image" or self._adapter.reads_pairs
        names = {"kind": torch.int8} | ({"patch_row": torch.int16, "patch_column": torch.int16} if has_patches else {})
        parts = [describe_rows(chunk.inputs.layout, rows, has_patches=has_patches) for chunk, rows in index]
        return {name: _join([part[name] for part in parts], dtype) for name, dtype in names.items()}

    def _treat_outliers(self, rows: Rows, items: list[Item]) -> Rows:
        """Leave out or scale down rows above the bound of a hook point, as the policy says, and mark their items."""
        policy = self._settings.outliers
        found = {
            name: find_outliers(rows.activations[name], self._bounds[name]) for name in rows.activations if name in self._bounds
        }
        found = {name: above for name, above in found.items() if above.any()}
        if policy is None or not found:
            return rows
        above = torch.stack(list(found.values())).any(dim=0)
        _mark(items, rows.item[above], "outlier" if policy.action == "drop" else "clipped")
        if policy.action == "drop":
            return _pick(rows, ~above)
        clipped = {name: clip_rows(rows.activations[name], self._bounds[name], mask) for name, mask in found.items()}
        return rows._replace(activations={**rows.activations, **clipped})

    def _check(self, values: Mapping[str, Tensor], item: Tensor, position: Tensor, items: list[Item]) -> Tensor | None:
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
            _mark(items, item[bad], "nonfinite")
        return bad

    def _explain(self, name: str, value: Tensor, key: str, position: int) -> str:
        where = f"hook point {name}, item {key!r}" + (f", position {position}" if position >= 0 else "")
        if self._settings.dtype == "float16" and not value.isnan().any():
            return f"{where}: infinite as float16, which ends at 65504; store it with dtype=float32 or dtype=bfloat16"
        what = "NaN" if value.isnan().any() else "infinity"
        autocast = self._settings.autocast
        precision = self._adapter.identity.get("precision", "float32") if autocast == "off" else autocast
        # In full precision the weights or the input are at fault, and nothing here can mend them.
        advice = "" if precision == "float32" else "compute in float32 (model.precision=float32, autocast=off), or "
        return f"{where}: the model gives {what} in {precision}; {advice}leave such rows out with on_nonfinite=drop"


def count_rows(prepared: Prepared, space: str) -> int:
    """The rows that a batch will have in a row space, when no policy leaves some out for their values."""
    modality = space.partition(".")[0]
    chunks = [chunk for chunk in prepared.chunks if chunk.inputs.modality == modality]
    return sum(len(_rows_of(chunk, space).item) for chunk in chunks)


def _rows_of(chunk: Chunk, space: str) -> RowIndex:
    return {"tokens": chunk.tokens, "means": chunk.means.rows, "items": chunk.items}[space.partition(".")[2]]


def _pick(rows: Rows, which: Tensor) -> Rows:
    """Some of the rows, by mask or by index."""
    token_id = None if rows.token_id is None else rows.token_id[which]
    activations = {name: values[which] for name, values in rows.activations.items()}
    columns = {name: values[which] for name, values in rows.columns.items()}
    return Rows(rows.item[which], rows.position[which], token_id, activations, columns)


def _mark(items: list[Item], item: Tensor, status: str) -> None:
    """Give the items of rows a status with the number of rows it concerns in all row spaces together.

    Where an item has rows of several sorts, it keeps the worst: nonfinite, then outlier, then clipped.
    """
    for place, n in zip(*(found.tolist() for found in item.unique(return_counts=True)), strict=True):
        before, n_before = split_status(items[place].status)
        if SEVERITY.get(before, -1) <= SEVERITY[status]:
            n_rows = n + (n_before if before == status else 0)
            items[place] = items[place]._replace(status=f"{status}: {n_rows} rows")


def split_status(status: str) -> tuple[str, int]:
    """The first word of an item's status and the number of rows that it concerns, 0 where it names none."""
    word, _, rest = status.partition(": ")
    return word, int(rest.removesuffix(" rows")) if word in SEVERITY else 0


def _join(parts: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    return torch.cat([part.to(dtype) for part in parts]) if parts else torch.empty(0, dtype=dtype)


def _join_values(parts: Sequence[Tensor], point: HookPoint, settings: HarvestConfig) -> Tensor:
    if not parts:
        return torch.empty(0, point.width, dtype=torch_dtype(settings.dtype))
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
