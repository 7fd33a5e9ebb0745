"""Records to model inputs, ahead of the forward pass: read in order by one thread, decoded and prepared by several."""

import dataclasses
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor

from thresher.data.records import Encoded, EncodedRecord, EncodedSource, Modality, Record, Source
from thresher.data.sources.decoding import DecodedImage
from thresher.data.store import Item
from thresher.errors import SourceError
from thresher.harvest.adapters import Adapter
from thresher.harvest.adapters.base import Inputs
from thresher.harvest.decoding import Decoded, Decoder, Transform, decode_images
from thresher.harvest.passes import plan_passes, plan_passes_by_length
from thresher.harvest.rows import Means, RowIndex, Subset, draw_subset, locate, select_items, select_means, select_tokens
from thresher.harvest.settings import HarvestConfig


class Chunk(NamedTuple):
    """Inputs of one forward pass."""

    inputs: Inputs
    item: Int[Tensor, " item"]
    """For each item of the inputs, its index within the batch's items of this modality."""
    tokens: RowIndex
    """Rows of hook points with one row per token."""
    places: RowIndex
    """Where those are in the activations: the same, unless the inputs are packed."""
    means: Means
    """Rows of such hook points when tokens are averaged."""
    items: RowIndex
    """Rows of hook points with one row per item."""

    def pin(self) -> "Chunk":
        """The same chunk in page-locked memory, from where a copy to the GPU is asynchronous."""
        places = self.places.pin()
        tokens = places if self.places is self.tokens else self.tokens
        return Chunk(self.inputs.pin(), self.item, tokens, places, self.means.pin(), self.items.pin())


class Prepared(NamedTuple):
    """One batch of records, ready for the model."""

    number: int
    items: dict[Modality, list[Item]]
    pairs: list[tuple[int, int]]
    chunks: list[Chunk]


NumberedRecords = list[tuple[int, EncodedRecord]]


class Preparer:
    """Turns batch numbers into inputs; batch b is the records [b * batch_size, (b + 1) * batch_size) of the order."""

    def __init__(
        self,
        settings: HarvestConfig,
        source: Source,
        adapter: Adapter,
        modalities: Sequence[Modality],
        decode: Decoder = decode_images,
        transform: Transform | None = None,
    ) -> None:
        self._settings = settings
        self._source = source
        # Asked once: Python 3.11 reads every property for the answer, and a fingerprint looks at every file.
        self._encoded = source if isinstance(source, EncodedSource) else None
        self._adapter = adapter
        self._modalities = modalities
        # A text that is read behind its image is told with it: the image is an item, without rows.
        self._listed: Sequence[Modality] = modalities
        if adapter.reads_pairs and "image" not in modalities:
            self._listed = ("image", *modalities)
        self._decode = decode
        self._transform = transform
        self.n_records = min(len(source), settings.limit or len(source))
        shuffled = np.random.default_rng(settings.seed).permutation(len(source)) if settings.order == "shuffled" else None
        self._order = None if shuffled is None else shuffled[: self.n_records]
        self.n_batches = -(-self.n_records // settings.batch_size)
        self._subset = None if settings.positions_per_item is None else Subset(settings.positions_per_item, settings.seed)

    def decode_in(self, decode: Decoder, transform: Transform | None) -> "Preparer":
        """The same preparer that decodes and transforms images elsewhere."""
        return Preparer(self._settings, self._source, self._adapter, self._modalities, decode, transform)

    def skip_thumbnails(self) -> "Preparer":
        """The same preparer that makes no thumbnails."""
        settings = dataclasses.replace(self._settings, thumbnail=0)
        return Preparer(settings, self._source, self._adapter, self._modalities, self._decode, self._transform)

    def read(self, batch: int) -> NumberedRecords:
        """The records of a batch, images undecoded, with their numbers in the source."""
        start = batch * self._settings.batch_size
        stop = min(start + self._settings.batch_size, self.n_records)
        if self._order is None:
            return list(enumerate(self._read_source(start, stop), start))
        return [(number, next(self._read_source(number, number + 1))) for number in self._order[start:stop].tolist()]

    def prepare(self, batch: int, records: NumberedRecords) -> Prepared:
        """Decode and preprocess one batch. Raises SourceError for an unreadable image or text when the policy is to stop."""
        decoded = self._decode_images([record.image for _, record in records])
        items, pairs, owners = self._list_items(records, decoded)
        self._check(items)
        images = items["image"] if "image" in self._modalities else []
        chunks = [*self._prepare_images(images, decoded), *self._prepare_texts(items.get("text", []), decoded, owners)]
        return Prepared(batch, items, pairs, chunks)

    def _read_source(self, start: int, stop: int) -> Iterator[EncodedRecord]:
        if self._encoded is not None:
            return iter(self._encoded.read(start, stop))
        return map(_encode, self._source.records(start, stop))

    def _decode_images(self, images: Sequence[Encoded | None]) -> "_Pictures":
        """The images of a batch by record; nothing is decoded that no tower reads."""
        if "image" not in self._modalities and not self._adapter.reads_pairs:
            return _Pictures({}, {}, {}, None)
        numbers = [number for number, image in enumerate(images) if image is not None]
        encoded = [image for image in images if image is not None]
        if not encoded:
            return _Pictures({}, {}, {}, None)
        if self._adapter.reads_pairs:
            found = self._decode(encoded, self._settings.thumbnail, list)
            pictures = _index_pictures(numbers, found, is_list=True)
            if "image" not in self._modalities or not pictures.images:
                return pictures
            # Its vision encoder is read too.
            return pictures._replace(inputs=self._adapter.prepare_images(list(pictures.images.values())))
        if self._transform is None:
            found = self._decode(encoded, self._settings.thumbnail, list)
            found = found._replace(transformed=found.transformed and self._adapter.prepare_images(found.transformed))
        else:
            found = self._decode(encoded, self._settings.thumbnail, self._transform)
        return _index_pictures(numbers, found, is_list=False)

    def _list_items(
        self, records: NumberedRecords, decoded: "_Pictures"
    ) -> tuple[dict[Modality, list[Item]], list[tuple[int, int]], list[int]]:
        """The items of a batch, the pairs among them, and for each text item the place of its record in the batch."""
        items: dict[Modality, list[Item]] = {modality: [] for modality in self._listed}
        pairs: list[tuple[int, int]] = []
        owners: list[int] = []
        for owner, (number, record) in enumerate(records):
            first, reason = len(items.get("image", ())), decoded.reasons.get(owner)
            if "image" in items and record.image is not None:
                status = f"unreadable: {reason}" if reason else "ok"
                thumbnail = decoded.thumbnails.get(owner)
                items["image"].append(Item(record.key, number, status, None, thumbnail, record.image_concepts))
            if "text" in items:
                start, n_texts = len(items["text"]), len(record.texts)
                missing = reason if self._adapter.reads_pairs else None
                items["text"] += [_describe_text(number, record, place, missing) for place in range(n_texts)]
                owners += [owner] * n_texts
                if len(items.get("image", ())) > first:
                    pairs += [(first, start + place) for place in range(n_texts)]
        return items, pairs, owners

    def _check(self, items: dict[Modality, list[Item]]) -> None:
        if self._settings.on_unreadable == "skip":
            return
        for item in (item for found in items.values() for item in found):
            if item.status.startswith(UNREADABLE):
                reason = item.status.removeprefix(UNREADABLE)
                raise SourceError(f"{reason}; mend it, or set on_unreadable=skip to go on without it")

    def _prepare_images(self, items: Sequence[Item], decoded: "_Pictures") -> Iterator[Chunk]:
        places = [place for place, item in enumerate(items) if item.status == "ok"]
        if places:
            yield self._chunk(decoded.inputs, items, places, self._settings.image_rows)

    def _prepare_texts(self, items: list[Item], decoded: "_Pictures", owners: Sequence[int]) -> Iterator[Chunk]:
        readable = [place for place, item in enumerate(items) if item.status == "ok"]
        for group, inputs in self._plan_texts([items[place].text or "" for place in readable], decoded, owners, readable):
            places = [readable[number] for number in group]
            for number, place in enumerate(places):
                items[place] = _judge(items[place], inputs, number)
            yield self._chunk(inputs, items, places, self._settings.text_rows)

    def _plan_texts(
        self, texts: Sequence[str], decoded: "_Pictures", owners: Sequence[int], places: Sequence[int]
    ) -> Iterator[tuple[Sequence[int], Inputs]]:
        """The forward passes of texts: the numbers of those that share one, and its inputs."""
        rest: Sequence[int] = range(len(texts))
        if self._settings.text_passes == "packed":
            packed, rest, inputs = self._pack(texts)
            if inputs is not None:
                yield packed, inputs
        plan = plan_passes if self._settings.text_passes == "source" else plan_passes_by_length
        for group in plan([texts[number] for number in rest], self._settings.batch_size):
            numbers = [rest[number] for number in group]
            chosen = [texts[number] for number in numbers]
            if self._adapter.reads_pairs:
                images = [decoded.images.get(owners[places[number]]) for number in numbers]
                yield numbers, self._adapter.prepare_pairs(images, chosen)
            else:
                yield numbers, self._adapter.prepare_texts(chosen)

    def _pack(self, texts: Sequence[str]) -> tuple[list[int], list[int], Inputs | None]:
        """The texts that share sequences, those that are too long for it, and the inputs of the former if there are any."""
        if not texts:
            return [], [], None
        length = self._settings.packed_length
        inputs = self._adapter.prepare_texts(texts)
        is_long = (inputs.layout.valid.sum(dim=1) > length).tolist()
        short, long = ([number for number in range(len(texts)) if is_long[number] == wanted] for wanted in (False, True))
        if long and short:
            inputs = self._adapter.prepare_texts([texts[number] for number in short])
        return short, long, self._adapter.pack_texts(inputs, length) if short else None

    def _chunk(self, inputs: Inputs, items: Sequence[Item], places: Sequence[int], policy: Any) -> Chunk:
        tokens = select_tokens(inputs.layout, policy)
        if self._subset is not None:
            tokens = draw_subset(tokens, [items[place].key for place in places], self._subset)
        where, means = locate(tokens, inputs.packing), select_means(tokens)
        chunk = Chunk(inputs, torch.tensor(places), tokens, where, means, select_items(inputs.layout))
        return chunk.pin() if self._adapter.device.type == "cuda" else chunk


UNREADABLE = "unreadable: "


class _Pictures(NamedTuple):
    """The decoded images of a batch, by the place of their record in it."""

    reasons: dict[int, str]
    """Of those that are unreadable."""
    thumbnails: dict[int, bytes]
    images: dict[int, Image.Image]
    """The pictures themselves, where the model reads them together with a text."""
    inputs: Any
    """What an image tower takes: the readable ones in order; None without any."""


def prepare_ahead(prepare: Preparer, indices: Sequence[int], workers: int) -> Generator[Prepared, None, None]:
    """Prepared batches in order, `workers` + 1 of them in the making; an error of one surfaces in its turn.

    One thread reads, so that a source that is a stream is read forwards; `workers` threads decode and prepare.
    """
    waiting: deque[Future[Prepared]] = deque()
    reader = ThreadPoolExecutor(1, thread_name_prefix="read")
    pool = ThreadPoolExecutor(workers, thread_name_prefix="prepare")

    def run(index: int, records: Future[NumberedRecords]) -> Prepared:
        return prepare.prepare(index, records.result())

    with reader, pool:
        try:
            for index in indices:
                waiting.append(pool.submit(run, index, reader.submit(prepare.read, index)))
                if len(waiting) > workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _encode(record: Record) -> EncodedRecord:
    image = None if record.image is None else DecodedImage(record.image)
    return EncodedRecord(record.key, image, record.image_concepts, record.texts)


def _index_pictures(numbers: Sequence[int], found: Decoded, *, is_list: bool) -> _Pictures:
    reasons = {number: reason for number, reason in zip(numbers, found.reasons, strict=True) if reason is not None}
    thumbnails = {number: png for number, png in zip(numbers, found.thumbnails, strict=True) if png is not None}
    readable = [number for number in numbers if number not in reasons]
    images: dict[int, Image.Image] = dict(zip(readable, found.transformed or (), strict=True)) if is_list else {}
    return _Pictures(reasons, thumbnails, images, None if is_list else found.transformed)


def _describe_text(number: int, record: EncodedRecord, place: int, missing: str | None) -> Item:
    """A text item; `missing` says why there is no image where the model reads both together."""
    text = record.texts[place]
    reason = text.unreadable or missing
    return Item(f"{record.key}#{place}", number, f"{UNREADABLE}{reason}" if reason else "ok", text.text, None, text.concepts)


def _judge(item: Item, inputs: Inputs, place: int) -> Item:
    """The item with what the tokenizer found out about it."""
    if inputs.layout.is_truncated[place]:
        return item._replace(status="truncated")
    if not inputs.layout.valid[place].any():
        return item._replace(status=f"{UNREADABLE}the tokenizer makes no token of it")
    return item
