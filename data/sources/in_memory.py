"""Records that a Python program holds in memory."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

from PIL import Image

from thresher.config import config
from thresher.data.records import Concept, EncodedRecord, Modality, Record, Text, Unreadable
from thresher.data.sources.decoding import DecodedImage, flatten_image
from thresher.errors import SourceError
from thresher.runs import fingerprint

Example = Record | Image.Image | str | tuple[Image.Image, str | Sequence[str]]
"""What a program can give: a record, an image, a text, or an image with its caption or captions."""


@config
class InMemory:
    """Records that a Python program gives: `harvest.run(config, source=MemorySource(examples))`."""

    kind: Literal["in-memory"] = "in-memory"
    """Which source this is; it stands in the configuration of such a harvest, and cannot be opened from a file."""


class MemorySource:
    """The given examples, in order; keys are their numbers, or those of the records."""

    def __init__(self, examples: Iterable[Example], *, concepts: Sequence[Concept] = ()) -> None:
        self._records = [_make_record(number, example) for number, example in enumerate(examples)]
        self._concepts = tuple(concepts)
        if not self._records:
            raise SourceError("no examples given; the source is empty")
        for number, record in enumerate(self._records):
            if isinstance(record.image, Image.Image) and not all(record.image.size):
                raise SourceError(
                    f"example {number}: an image of {record.image.width} x {record.image.height} pixels; leave it out"
                )
        keys = [record.key for record in self._records]
        if len(set(keys)) < len(keys):
            repeated = next(key for key in keys if keys.count(key) > 1)
            raise SourceError(f"key {repeated!r} occurs more than once; keys must be unique")

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """What any of the records holds."""
        has_image = any(record.image is not None for record in self._records)
        has_text = any(record.texts for record in self._records)
        found: list[Modality] = ["image"] if has_image else []
        return (*found, "text") if has_text else tuple(found)

    @property
    def concepts(self) -> tuple[Concept, ...]:
        """As given."""
        return self._concepts

    @property
    def fingerprint(self) -> str:
        """Hex digest of keys, pixels and texts."""
        return fingerprint([self._concepts, [_describe(record) for record in self._records]])

    def __len__(self) -> int:
        """Number of records."""
        return len(self._records)

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[EncodedRecord]:
        """Records `start` to `stop`."""
        for record in self._records[start:stop]:
            image = None if record.image is None else DecodedImage(record.image)
            yield EncodedRecord(record.key, image, record.image_concepts, record.texts)

    def records(self, start: int = 0, stop: int | None = None) -> Iterator[Record]:
        """Records `start` to `stop`."""
        return iter(self._records[start:stop])


def _make_record(number: int, example: Any) -> Record:
    match example:
        case Record():
            return example
        case Image.Image():
            return Record(f"{number:09d}", flatten_image(example, "white"))
        case str():
            return Record(f"{number:09d}", texts=(Text(example),))
        case (Image.Image() as image, str(caption)):
            return Record(f"{number:09d}", flatten_image(image, "white"), texts=(Text(caption),))
        case (Image.Image() as image, [*captions]) if all(isinstance(caption, str) for caption in captions):
            return Record(f"{number:09d}", flatten_image(image, "white"), texts=tuple(Text(caption) for caption in captions))
        case _:
            held = f" of {', '.join(type(part).__name__ for part in example)}" if isinstance(example, tuple) else ""
            raise SourceError(
                f"example {number} is {type(example).__name__}{held}; expected a Record, a PIL image (PIL.Image.open), a text, "
                "or (image, captions), captions being texts"
            )


def _describe(record: Record) -> list[Any]:
    image = record.image
    if isinstance(image, Image.Image):
        image = [image.size, hashlib.sha256(image.tobytes()).hexdigest()]
    elif isinstance(image, Unreadable):
        image = image.reason
    texts = [[text.text, text.concepts, text.unreadable] for text in record.texts]
    return [record.key, image, record.image_concepts, texts]
