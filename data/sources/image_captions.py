"""Images in a folder with a table of captions."""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import pyarrow.parquet as pq
from pyarrow import ArrowException

from thresher.config import config
from thresher.data.records import Concept, Modality, Record, Text
from thresher.data.sources.decoding import check_colour, decode_image
from thresher.errors import ConfigError, SourceError
from thresher.runs import fingerprint


@config
class ImageCaptions:
    """Images in a folder, their captions in a CSV, JSONL or Parquet table."""

    kind: Literal["image-captions"] = "image-captions"
    """Which source this is."""
    folder: Path
    """Where the images are."""
    table: Path
    """The table (.csv, .tsv, .jsonl or .parquet); a relative path counts from `folder`."""
    image_column: str = "image"
    """Column with the image's path, relative to `folder`; rows with the same image are one record."""
    caption_columns: tuple[str, ...] = ("caption",)
    """Columns with captions; a cell may hold a list. Empty cells give no caption."""
    separator: str | None = None
    """Cuts a caption cell into several captions, for instance ; or |."""
    key_column: str | None = None
    """Column with the record's unique key; the image's path when not given."""
    where: dict[str, str] = field(default_factory=dict[str, str])
    """Keep only rows whose columns have these values, for instance {split: train}."""
    background: str = "white"
    """Colour behind transparent images."""

    def __post_init__(self) -> None:
        check_colour(self.background)
        if self.separator == "":
            raise ConfigError("separator='': give a character, or leave it out")


class _Entry(NamedTuple):
    key: str
    image: str
    captions: tuple[str, ...]


class ImageCaptionsSource:
    """Records in the order of the table."""

    def __init__(self, settings: ImageCaptions) -> None:
        self._settings = settings
        table = settings.folder / settings.table
        rows = read_table(table)
        self._entries = _group(settings, table, _filter(settings, table, rows))

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """Images, and texts when there are caption columns."""
        return ("image", "text") if self._settings.caption_columns else ("image",)

    @property
    def concepts(self) -> tuple[Concept, ...]:
        """None: nothing is known of what the images show."""
        return ()

    @property
    def fingerprint(self) -> str:
        """Hex digest of keys, captions, the background and the images' paths and sizes."""
        sizes = [_size_of(self._settings.folder / entry.image) for entry in self._entries]
        return fingerprint({"background": self._settings.background, "entries": self._entries, "sizes": sizes})

    def __len__(self) -> int:
        """Number of records."""
        return len(self._entries)

    def records(self, start: int = 0, stop: int | None = None) -> Iterator[Record]:
        """Records `start` to `stop`, decoded as they are asked for; missing and broken images are `Unreadable`."""
        for entry in self._entries[start:stop]:
            image = decode_image(self._settings.folder / entry.image, entry.image, self._settings.background)
            yield Record(entry.key, image, texts=tuple(Text(caption) for caption in entry.captions))


def read_table(path: Path) -> list[dict[str, Any]]:
    """The rows of a CSV, TSV, JSONL or Parquet file. Raises SourceError naming the file and, for JSONL, the line."""
    try:
        match path.suffix.lower():
            case ".csv" | ".tsv" as suffix:
                with path.open(encoding="utf-8-sig", newline="") as file:
                    return list(csv.DictReader(file, delimiter="," if suffix == ".csv" else "\t", strict=True))
            case ".jsonl":
                lines = path.read_bytes().splitlines()
                return [_parse_line(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
            case ".parquet":
                return cast(list[dict[str, Any]], pq.read_table(path).to_pylist())
            case _:
                raise SourceError(f"{path}: expected a table ending in .csv, .tsv, .jsonl or .parquet")
    except (OSError, csv.Error, UnicodeDecodeError, ArrowException) as error:
        raise SourceError(f"{path}: cannot read the table: {error}") from error


def _parse_line(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise SourceError(f"{path}:{number}: not a line of JSON: {error}") from error
    if not isinstance(row, dict):
        raise SourceError(f"{path}:{number}: expected an object, found {type(row).__name__}")
    return cast(dict[str, Any], row)


def _filter(settings: ImageCaptions, table: Path, rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows that `where` keeps. Raises SourceError: a column that is not there, nothing left."""
    columns = dict.fromkeys(name for row in rows[:1000] for name in row)
    needed = [settings.image_column, *settings.caption_columns, *settings.where]
    needed += [settings.key_column] if settings.key_column else []
    missing = [name for name in needed if name not in columns]
    if rows and missing:
        raise SourceError(f"{table}: no column {missing[0]!r}; it has {', '.join(columns)}")
    kept = [row for row in rows if all(str(row.get(name)) == value for name, value in settings.where.items())]
    if not kept:
        filters = f" with {', '.join(f'{name}={value}' for name, value in settings.where.items())}" if settings.where else ""
        raise SourceError(f"{table}: no rows{filters}; the source is empty")
    return kept


def _group(settings: ImageCaptions, table: Path, rows: Sequence[Mapping[str, Any]]) -> list[_Entry]:
    """One entry per image, in the order of first appearance."""
    entries: dict[str, _Entry] = {}
    keys: dict[str, str] = {}
    for row in rows:
        image = row[settings.image_column]
        if not isinstance(image, str) or not image:
            raise SourceError(f"{table}: column {settings.image_column!r} holds {image!r}; expected the path of an image")
        cells = [row.get(name) for name in settings.caption_columns]
        captions = tuple(caption for cell in cells for caption in split_cell(cell, settings.separator))
        if image in entries:
            entries[image] = entries[image]._replace(captions=entries[image].captions + captions)
            continue
        key = str(row[settings.key_column]) if settings.key_column else image
        if key in keys:
            raise SourceError(f"{table}: key {key!r} stands for both {keys[key]} and {image}; keys must be unique")
        keys[key] = image
        entries[image] = _Entry(key, image, captions)
    return list(entries.values())


def split_cell(cell: Any, separator: str | None) -> Iterator[str]:
    """The captions in one cell: a string, a list of strings, or nothing; blanks are left out."""
    texts = cell if isinstance(cell, list) else [cell]
    for text in cast(list[Any], texts):
        if text is None:
            continue
        parts = str(text).split(separator) if separator else [str(text)]
        yield from (part.strip() for part in parts if part.strip())


def _size_of(path: Path) -> int:
    """Bytes of a file; -1 when it is missing."""
    try:
        return path.stat().st_size
    except OSError:
        return -1
