"""Pairs of a source, decoded once and kept in memory as bytes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from thresher.data.records import Source, Unreadable
from thresher.errors import SourceError
from thresher.harvest.pretrain.model import make_transform
from thresher.progress import progress


@dataclass(frozen=True)
class Pairs:
    """Pictures and captions of consecutive records."""

    images: UInt8[Tensor, "record 3 height width"]
    texts: tuple[tuple[str, ...], ...]
    """The captions of each record, at least one."""
    concepts: tuple[frozenset[int], ...]
    """What each picture shows; empty sets where the source does not know."""

    def __len__(self) -> int:
        """Number of records."""
        return len(self.texts)

    def first_texts(self) -> tuple[str, ...]:
        """The first caption of each record."""
        return tuple(texts[0] for texts in self.texts)


@dataclass(frozen=True)
class Captions:
    """Token ids of the captions of all records, one row per caption."""

    ids: Int[Tensor, "caption context"]
    first: Int[Tensor, "record"]
    """Row of each record's first caption."""
    count: Int[Tensor, "record"]

    def choose(self, records: Int[Tensor, "row"], generator: torch.Generator) -> Int[Tensor, "row context"]:
        """For each record, the ids of one of its captions, all equally likely."""
        uniform = torch.rand(len(records), generator=generator)
        return self.ids[self.first[records] + (uniform * self.count[records]).long()].long()


def read_pairs(source: Source, start: int, stop: int, image_size: int) -> Pairs:
    """Records `start` to `stop`, pictures resized as open_clip does it, records without picture or caption left out.

    Holds 3 * image_size ** 2 bytes per record. Raises SourceError: no pair is left.
    """
    transform = make_transform(image_size)
    images = torch.empty((stop - start, 3, image_size, image_size), dtype=torch.uint8)
    texts: list[tuple[str, ...]] = []
    concepts: list[frozenset[int]] = []
    with progress("reading pairs", total=stop - start, unit="records") as advance:
        for record in source.records(start, stop):
            advance(1)
            captions = tuple(text.text for text in record.texts if text.unreadable is None)
            if record.image is None or isinstance(record.image, Unreadable) or not captions:
                continue
            images[len(texts)] = quantize(transform(record.image))
            texts.append(captions)
            concepts.append(frozenset(record.image_concepts))
    if not texts:
        raise SourceError(f"records {start} to {stop}: no readable picture with a caption; CLIP is trained on pairs")
    return Pairs(images[: len(texts)], tuple(texts), tuple(concepts))


def quantize(image: Float[Tensor, "3 height width"]) -> UInt8[Tensor, "3 height width"]:
    """Values of [0, 1] as bytes; exact for a picture that was bytes before."""
    # torch.round wakes its threads even for one small picture: 23 ms instead of 0.02 on two busy cores.
    return torch.from_numpy(np.rint(image.numpy() * 255).astype(np.uint8))


def tokenize_captions(texts: Sequence[Sequence[str]], tokenizer: Callable[[list[str]], Tensor]) -> Captions:
    """Token ids of every caption."""
    count = np.array([len(captions) for captions in texts])
    ids = tokenizer([caption for captions in texts for caption in captions]).to(torch.int32)
    return Captions(ids, torch.from_numpy(np.cumsum(count) - count), torch.from_numpy(count))
