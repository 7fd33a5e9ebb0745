"""What a batch must be like to be stored; anything else is the harvest's mistake and is refused before it touches the disk."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from thresher.data.store.layout import MODALITIES, TEXT_TOKENS, has_token_ids
from thresher.data.store.schema import ROW_COLUMNS, TORCH_DTYPE, Batch, HookPointSpec, Rows
from thresher.errors import StoreError


def check_batch(batch: Batch, specs: Sequence[HookPointSpec]) -> None:
    """Raise StoreError that lists what is wrong with a batch."""
    wrong = [*_wrong_items(batch), *_wrong_pairs(batch), *_wrong_spaces(batch, specs)]
    if wrong:
        raise StoreError(f"batch {batch.index} cannot be stored\n" + "\n".join(f"  {line}" for line in wrong))


def _wrong_items(batch: Batch) -> Iterator[str]:
    for modality, items in batch.items.items():
        if modality not in MODALITIES:
            yield f"items of modality {modality!r}: expected image or text"
        if len({item.key for item in items}) < len(items):
            yield f"{modality} items: two have the same key"


def _wrong_pairs(batch: Batch) -> Iterator[str]:
    n_images, n_texts = (len(batch.items.get(modality, ())) for modality in MODALITIES)
    for image, text in batch.pairs:
        if not (0 <= image < n_images and 0 <= text < n_texts):
            yield f"pair ({image}, {text}): the batch has {n_images} images and {n_texts} texts"


def _wrong_spaces(batch: Batch, specs: Sequence[HookPointSpec]) -> Iterator[str]:
    known = {spec.space for spec in specs}
    for space, rows in batch.rows.items():
        hook_points = [spec for spec in specs if spec.space == space]
        if not hook_points:
            yield f"row space {space!r}: the store has {', '.join(sorted(known))}"
            continue
        n_items = len(batch.items.get(hook_points[0].modality, ()))
        yield from (f"row space {space}: {line}" for line in _wrong_rows(rows, n_items, has_token_ids(space)))
        yield from (f"row space {space}: {line}" for line in _wrong_activations(rows, hook_points))


def _wrong_rows(rows: Rows, n_items: int, has_ids: bool) -> Iterator[str]:
    n = len(rows.item)
    yield from _wrong_tensor("item", rows.item, (n,), torch.int64)
    yield from _wrong_tensor("position", rows.position, (n,), torch.int32)
    if n and not (int(rows.item.min()) >= 0 and int(rows.item.max()) < n_items):
        yield f"item {int(rows.item.min())} to {int(rows.item.max())}: the batch has {n_items} items of this modality"
    for name, column in rows.columns.items():
        if name not in ROW_COLUMNS:
            yield f"column {name!r}: expected {', '.join(ROW_COLUMNS)}"
        else:
            yield from _wrong_tensor(name, column, (n,), ROW_COLUMNS[name])
    if rows.token_id is not None:
        yield from _wrong_tensor("token_id", rows.token_id, (n,), torch.int32)
    if (rows.token_id is not None) != has_ids:
        yield f"token ids {'missing' if has_ids else 'given'}; rows of {TEXT_TOKENS} have them, no others"


def check_columns(batch: Batch, stored: Mapping[str, Sequence[str]]) -> None:
    """Raise StoreError unless a batch describes its rows by the columns that the store has."""
    for space, rows in batch.rows.items():
        expected = list(stored.get(space, ()))
        if sorted(rows.columns) != expected:
            raise StoreError(f"batch {batch.index}: row space {space} has columns {sorted(rows.columns)}, expected {expected}")


def _wrong_activations(rows: Rows, hook_points: Sequence[HookPointSpec]) -> Iterator[str]:
    names = [spec.name for spec in hook_points]
    if set(rows.activations) != set(names):
        yield f"hook points {sorted(rows.activations)}, expected {sorted(names)}"
        return
    for spec in hook_points:
        yield from _wrong_tensor(spec.name, rows.activations[spec.name], (len(rows.item), spec.width), TORCH_DTYPE[spec.dtype])


def _wrong_tensor(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Iterator[str]:
    if tuple(tensor.shape) != shape or tensor.dtype != dtype or tensor.device.type != "cpu":
        yield f"{name}: {tensor.dtype} {list(tensor.shape)} on {tensor.device}, expected {dtype} {list(shape)} on cpu"
