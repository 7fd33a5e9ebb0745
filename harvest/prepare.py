"""Records to model inputs, in threads ahead of the forward pass."""

import io
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor

from thresher.data.records import Modality, Record, Source, Unreadable
from thresher.data.store import Item
from thresher.errors import SourceError
from thresher.harvest.adapters import Adapter
from thresher.harvest.adapters.base import Inputs
from thresher.harvest.rows import RowIndex, select_items, select_tokens
from thresher.harvest.settings import HarvestConfig


class Chunk(NamedTuple):
    """Inputs of one forward pass."""

    inputs: Inputs
    item: Int[Tensor, " item"]
    """For each item of the inputs, its index within the batch's items of this modality."""
    tokens: RowIndex
    """Rows of hook points with one row per token."""
    items: RowIndex
    """Rows of hook points with one row per item."""

    def pin(self) -> "Chunk":
        """The same chunk in page-locked memory, from where a copy to the GPU is asynchronous."""
        return Chunk(self.inputs.pin(), self.item, self.tokens.pin(), self.items.pin())


class Prepared(NamedTuple):
    """One batch of records, ready for the model."""

    number: int
    items: dict[Modality, list[Item]]
    pairs: list[tuple[int, int]]
    chunks: list[Chunk]


class Preparer:
    """Turns batch numbers into inputs; batch b is the records [b * batch_size, (b + 1) * batch_size) of the order."""

    def __init__(self, settings: HarvestConfig, source: Source, adapter: Adapter, modalities: Sequence[Modality]) -> None:
        self._settings = settings
        self._source = source
        self._adapter = adapter
        self._modalities = modalities
        self.n_records = min(len(source), settings.limit or len(source))
        shuffled = np.random.default_rng(settings.seed).permutation(len(source)) if settings.order == "shuffled" else None
        self._order = None if shuffled is None else shuffled[: self.n_records]
        self.n_batches = -(-self.n_records // settings.batch_size)

    def __call__(self, batch: int) -> Prepared:
        """Read, decode and preprocess one batch. Raises SourceError for an unreadable image when the policy is to stop."""
        items: dict[Modality, list[Item]] = {modality: [] for modality in self._modalities}
        pairs: list[tuple[int, int]] = []
        images: list[tuple[int, Image.Image]] = []
        for number, record in self._read(batch):
            first = len(items.get("image", ()))
            if "image" in items and record.image is not None:
                items["image"].append(self._describe_image(number, record))
                if not isinstance(record.image, Unreadable):
                    images.append((first, record.image))
            if "text" in items:
                start = len(items["text"])
                items["text"] += [_describe_text(number, record, place) for place in range(len(record.texts))]
                if len(items.get("image", ())) > first:
                    pairs += [(first, start + place) for place in range(len(record.texts))]
        chunks = [*self._prepare_images(images), *self._prepare_texts(items.get("text", []))]
        return Prepared(batch, items, pairs, chunks)

    def _read(self, batch: int) -> Iterator[tuple[int, Record]]:
        start = batch * self._settings.batch_size
        stop = min(start + self._settings.batch_size, self.n_records)
        if self._order is None:
            yield from enumerate(self._source.records(start, stop), start)
            return
        for number in self._order[start:stop].tolist():
            yield number, next(iter(self._source.records(number, number + 1)))

    def _describe_image(self, number: int, record: Record) -> Item:
        if isinstance(record.image, Unreadable):
            if self._settings.on_unreadable == "stop":
                raise SourceError(f"{record.image.reason}; mend it, or set on_unreadable=skip to go on without it")
            return Item(record.key, number, f"unreadable: {record.image.reason}", None, None, record.image_concepts)
        assert record.image is not None
        thumbnail = encode_thumbnail(record.image, self._settings.thumbnail) if self._settings.thumbnail else None
        return Item(record.key, number, "ok", None, thumbnail, record.image_concepts)

    def _prepare_images(self, images: Sequence[tuple[int, Image.Image]]) -> Iterator[Chunk]:
        if images:
            inputs = self._adapter.prepare_images([image for _, image in images])
            yield self._chunk(inputs, torch.tensor([place for place, _ in images]), self._settings.image_rows)

    def _prepare_texts(self, items: list[Item]) -> Iterator[Chunk]:
        for start in range(0, len(items), self._settings.batch_size):
            part = items[start : start + self._settings.batch_size]
            inputs = self._adapter.prepare_texts([item.text or "" for item in part])
            items[start : start + len(part)] = [_judge(item, inputs, place) for place, item in enumerate(part)]
            yield self._chunk(inputs, torch.arange(start, start + len(part)), self._settings.text_rows)

    def _chunk(self, inputs: Inputs, item: Tensor, policy: Any) -> Chunk:
        chunk = Chunk(inputs, item, select_tokens(inputs.layout, policy), select_items(inputs.layout))
        return chunk.pin() if self._adapter.device.type == "cuda" else chunk


def prepare_ahead(prepare: Callable[[int], Prepared], indices: Sequence[int], workers: int) -> Iterator[Prepared]:
    """Prepared batches in order, `workers` + 1 of them in the making; an error of one surfaces in its turn."""
    waiting: deque[Future[Prepared]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="prepare") as pool:
        try:
            for index in indices:
                waiting.append(pool.submit(prepare, index))
                if len(waiting) > workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def encode_thumbnail(image: Image.Image, side: int) -> bytes:
    """PNG of an image, its longest side at most `side` pixels."""
    small = image.copy()
    small.thumbnail((side, side))
    buffer = io.BytesIO()
    small.save(buffer, format="PNG")
    return buffer.getvalue()


def _describe_text(number: int, record: Record, place: int) -> Item:
    text = record.texts[place]
    return Item(f"{record.key}#{place}", number, "ok", text.text, None, text.concepts)


def _judge(item: Item, inputs: Inputs, place: int) -> Item:
    """The item with what the tokenizer found out about it."""
    if inputs.layout.is_truncated[place]:
        return item._replace(status="truncated")
    if not inputs.layout.valid[place].any():
        return item._replace(status="unreadable: the tokenizer makes no token of it")
    return item
