"""Images and texts of the site: each once, in the order in which the dashboards come to them."""

import base64
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int
from PIL import Image

from thresher.analyze.site.choose import number_first
from thresher.analyze.site.places import NO_TOKEN, Places
from thresher.analyze.site.shards import IMAGES_PER_SHARD, PER_SHARD, write_shard

LONGEST_TEXT = 1000
"""Characters of a text that are shown."""
BYTES_PER_TOKEN = 6
"""Of a token id with its comma."""


class Thumbnails(NamedTuple):
    """Pictures of the items of a catalogue that are read when they are shown."""

    sizes: Int[np.ndarray, " item"]
    """Bytes of each; 0 where there is none."""
    read: Callable[[Int[np.ndarray, " row"]], Sequence[bytes | None]]
    """Gives those of rows of the table."""


class Catalogue(NamedTuple):
    """The held-out items of one modality."""

    table: Any
    """The store's table of items (pyarrow): key, and text, or thumbnail where those are not in `thumbnails`."""
    items: Int[np.ndarray, " item"]
    """Which of its rows are held out, in the order of the codes."""
    places: Places | None = None
    """Where their rows are, where items have many."""
    picture: Int[np.ndarray, " item"] | None = None
    """Of texts that a model reads behind an image: position of that image among the images, -1 where there is none."""
    thumbnails: Thumbnails | None = None

    def same(self) -> Int[np.ndarray, " item"]:
        """One number per different text and image it was read behind; images and texts not stored are all different."""
        if "text" not in self.table.column_names:
            return np.arange(len(self.items))
        texts = self.table["text"].take(pa.array(self.items)).fill_null("").combine_chunks()
        number = np.asarray(texts.dictionary_encode().indices.to_numpy(zero_copy_only=False), dtype=np.int64)
        empty = np.flatnonzero(np.asarray(pc.call_function("equal", [texts, ""]).to_numpy(zero_copy_only=False)))
        number[empty] = len(number) + np.arange(len(empty))
        return number_first(
            number if self.picture is None else number * (int(self.picture.max(initial=0)) + 2) + self.picture + 1
        )


class Book:
    """Gives items numbers when they are first shown, so that a feature's items lie in few files; equal texts have one."""

    def __init__(self, catalogue: Catalogue, same: Int[np.ndarray, " item"]) -> None:
        self._catalogue = catalogue
        self._same = same
        self._numbers: dict[int, int] = {}
        self._positions: list[int] = []

    @property
    def positions(self) -> list[int]:
        """Position in the codes of the item of each number."""
        return list(self._positions)

    def number(self, positions: Int[np.ndarray, " item"]) -> list[int]:
        """Numbers on the site of items at positions in the codes."""
        found: list[int] = []
        for position, one in zip(positions.tolist(), self._same[positions].tolist(), strict=True):
            if one not in self._numbers:
                self._numbers[one] = len(self._positions)
                self._positions.append(position)
            found.append(self._numbers[one])
        return found

    def write_items(self, folder: Path, modality: str, side: int) -> int:
        """Write the items that have a number; return how many."""
        return self.write_images(folder, side) if modality == "image" else self.write_texts(folder)

    def write_images(self, folder: Path, side: int) -> int:
        """Write the images that have a number, their keys and thumbnails of at most `side` pixels; return how many."""
        table, rows, thumbnails = self._catalogue.table, self._rows(), self._catalogue.thumbnails
        stored = table["thumbnail"].take(pa.array(rows)).to_pylist() if thumbnails is None else thumbnails.read(rows)
        pictures: Sequence[bytes | None] = stored
        for number, part in enumerate(_split(rows, IMAGES_PER_SHARD)):
            keys = table["key"].take(pa.array(part)).to_pylist()
            data = pictures[number * IMAGES_PER_SHARD :]
            entries = [[str(key), encode_picture(one, side)] for key, one in zip(keys, data, strict=False)]
            write_shard(folder, f"images/{number:05d}", entries)
        return len(rows)

    def write_texts(self, folder: Path) -> int:
        """Write the texts that have a number; return how many."""
        table, rows = self._catalogue.table, self._rows()
        for number, part in enumerate(_split(rows, PER_SHARD)):
            found = table.select(["key", "text"]).take(pa.array(part)).to_pylist()
            write_shard(folder, f"texts/{number:05d}", [str(one["text"] or one["key"])[:LONGEST_TEXT] for one in found])
        return len(rows)

    def number_pictures(self, images: "Book") -> list[int | None] | None:
        """Number of the image that each numbered text was read behind; None where no text has an image."""
        picture = self._catalogue.picture
        if picture is None:
            return None
        found = picture[np.array(self._positions, dtype=np.int64)]
        return [images.number(found[[place]])[0] if found[place] >= 0 else None for place in range(len(found))]

    def write_rows(self, folder: Path, modality: str, pictures: Sequence[int | None] | None = None) -> bool:
        """Write what the rows of the items stand for that have a number, and `pictures`; whether there is anything to say."""
        places = self._catalogue.places
        if places is None:
            return False
        beside = [[]] * len(self._positions) if pictures is None else [[one] for one in pictures]
        told = [(position, more) for position, more in zip(self._positions, beside, strict=True)]
        for number, start in enumerate(range(0, len(told), IMAGES_PER_SHARD)):
            part = told[start : start + IMAGES_PER_SHARD]
            write_shard(folder, f"rows-{modality}/{number:05d}", [places.describe(item) + more for item, more in part])
        if places.token_id is not None:
            starts, ids = places.starts, places.token_id
            parts = [ids[starts[item] : starts[item + 1]] for item in self._positions]
            used = [one for one in np.unique(np.concatenate([ids[:0], *parts])).tolist() if one != NO_TOKEN]
            write_shard(folder, "tokens", {"ids": used, "pieces": [places.pieces.get(one) for one in used]})
        return True

    def _rows(self) -> Int[np.ndarray, " item"]:
        return self._catalogue.items[np.array(self._positions, dtype=np.int64)]


def measure_items(catalogue: Catalogue) -> Int[np.ndarray, " item"]:
    """Bytes that each item will take on the site, about: an image its thumbnail, a text its tokens where it has many rows."""
    if catalogue.thumbnails is not None:
        return -(-catalogue.thumbnails.sizes // 3) * 4
    if "thumbnail" not in catalogue.table.column_names:
        places = catalogue.places
        return np.zeros(len(catalogue.items), np.int64) if places is None else places.count_rows() * BYTES_PER_TOKEN
    lengths = pc.call_function("binary_length", [catalogue.table["thumbnail"].take(pa.array(catalogue.items))])
    return np.ceil(np.asarray(lengths.fill_null(0).to_numpy(zero_copy_only=False), dtype=np.float64) / 3).astype(np.int64) * 4


def shows_items(catalogue: Catalogue, modality: str) -> bool:
    """Whether there is a picture, or a text, of any of the items; without, they are named by their keys."""
    if catalogue.thumbnails is not None and modality == "image":
        return bool(catalogue.thumbnails.sizes.any())
    if modality == "text" and catalogue.places is not None and catalogue.places.token_id is not None:
        return True
    column = "thumbnail" if modality == "image" else "text"
    if column not in catalogue.table.column_names:
        return False
    lengths = pc.call_function("binary_length", [catalogue.table[column].take(pa.array(catalogue.items))])
    return bool(np.asarray(lengths.fill_null(0).to_numpy(zero_copy_only=False)).any())


def encode_picture(data: bytes | None, side: int) -> str:
    """A thumbnail as a data URI, made smaller when its longest side exceeds `side`; empty when there is none."""
    if not data:
        return ""
    with Image.open(io.BytesIO(data)) as image:
        kind = (image.format or "PNG").lower()
        if max(image.size) > side:
            small = image.convert("RGB")
            small.thumbnail((side, side))
            buffer = io.BytesIO()
            small.save(buffer, "WEBP", quality=80)
            kind, data = "webp", buffer.getvalue()
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _split(rows: Int[np.ndarray, " item"], size: int) -> Sequence[np.ndarray]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]
