"""What a source yields: records of one image, one text, or an image with its captions."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol, runtime_checkable

from PIL import Image

Modality = Literal["image", "text"]
"""The two kinds of item."""

Visibility = Literal["shared", "image", "text"]
"""Where a concept can be present: in images and captions, in images only, in captions only."""


class Concept(NamedTuple):
    """One entry of a source's ground truth."""

    name: str
    """Path in the concept tree, e.g. `shape/polygon/triangle`; unique in the source."""
    parent: str | None
    """Name of the parent concept, if it has one."""
    visibility: Visibility
    """Which modality can show it."""


class Unreadable(NamedTuple):
    """Stands where an image is missing or could not be decoded."""

    reason: str
    """What went wrong, with the file's name."""


@dataclass(frozen=True, slots=True)
class Text:
    """One caption or document of a record."""

    text: str
    concepts: tuple[int, ...] = ()
    """Indices into the source's concepts that this text states; empty when unknown."""
    unreadable: str | None = None
    """Why its bytes are no text; `text` is then what can be shown of them."""


@dataclass(frozen=True, slots=True)
class Record:
    """One entry of a source. Its image and each of its texts become items; image and text of one record are pairs."""

    key: str
    """Identity that is stable across runs and unique in the source; text items are called `key#0`, `key#1`, ..."""
    image: Image.Image | Unreadable | None = None
    """Decoded RGB image; None in a source of texts."""
    image_concepts: tuple[int, ...] = ()
    """Indices into the source's concepts that the image shows; empty when unknown."""
    texts: tuple[Text, ...] = field(default=())
    """Captions or documents; empty in a source of images."""


@runtime_checkable
class Encoded(Protocol):
    """An image that is not decoded yet: small, and picklable, so that another process can do it."""

    def decode(self) -> Image.Image | Unreadable:
        """The RGB image, or why there is none."""
        ...


@dataclass(frozen=True, slots=True)
class EncodedRecord:
    """A record whose image is not decoded yet."""

    key: str
    image: Encoded | None = None
    image_concepts: tuple[int, ...] = ()
    texts: tuple[Text, ...] = ()

    def decode(self) -> Record:
        """The record itself."""
        return Record(self.key, self.image.decode() if self.image else None, self.image_concepts, self.texts)


@runtime_checkable
class Source(Protocol):
    """Something that yields records in a fixed order, from any position, the same on every call."""

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """What its records hold."""
        ...

    @property
    def concepts(self) -> tuple[Concept, ...]:
        """Ground truth vocabulary; empty when the source has none."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hex digest of everything that decides what the records are (settings, file list with sizes)."""
        ...

    def __len__(self) -> int:
        """Number of records."""
        ...

    def records(self, start: int = 0, stop: int | None = None) -> Iterator[Record]:
        """Records `start` to `stop` (exclusive; the end when None), in order."""
        ...


@runtime_checkable
class EncodedSource(Source, Protocol):
    """A source that also gives its images undecoded, so that several processes can decode them."""

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[EncodedRecord]:
        """Like `records`, which is `decode()` of each of these."""
        ...
