"""Images in a folder, with a table of captions or without."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import field
from pathlib import Path
from typing import Literal, NamedTuple

from PIL import Image

from thresher.config import config
from thresher.data.records import Concept, EncodedRecord, Modality, Record, Text
from thresher.data.sources.captions import EmptyCaptions, EncodingErrors, check_separator, make_name, make_text, split_cell
from thresher.data.sources.decoding import EncodedImage, check_colour
from thresher.data.sources.tables import TableRow, read_table
from thresher.errors import ConfigError, SourceError
from thresher.runs import fingerprint


@config
class ImageCaptions:
    """Images in a folder, their captions in a CSV, JSONL or Parquet table."""

    kind: Literal["image-captions"] = "image-captions"
    """Which source this is."""
    folder: Path
    """Where the images are."""
    table: Path | None = None
    """The table (.csv, .tsv, .jsonl or .parquet); a relative path counts from `folder`. Without one, the records are the
    images in the folder and the folders in it, in the order of their paths, without captions."""
    image_column: str = "image"
    """Column with the image's path, relative to `folder`; rows with the same image are one record."""
    caption_columns: tuple[str, ...] = ("caption",)
    """Columns with captions; a cell may hold a list."""
    separator: str | None = None
    """Cuts a caption cell into several captions, for instance ; or |."""
    empty_captions: EmptyCaptions = "drop"
    """An empty cell (or part of one) gives no caption, or with `keep` an empty one: an item of special tokens only."""
    encoding_errors: EncodingErrors = "unreadable"
    """A caption that is not UTF-8: an item without rows whose status names the line, or U+FFFD for the bad bytes."""
    key_column: str | None = None
    """Column with the record's unique key; the image's path when not given."""
    where: dict[str, str] = field(default_factory=dict[str, str])
    """Keep only rows whose columns have these values, for instance {split: train}."""
    background: str = "white"
    """Colour behind transparent images."""

    def __post_init__(self) -> None:
        check_colour(self.background)
        check_separator(self.separator)
        if self.table is None and (self.where or self.key_column):
            raise ConfigError("where, key_column: these are columns of a table; name the table")


class _Entry(NamedTuple):
    key: str
    image: str
    captions: tuple[Text, ...]


class ImageCaptionsSource:
    """Records in the order of the table, or of the images' paths."""

    def __init__(self, settings: ImageCaptions) -> None:
        self._settings = settings
        if settings.table is None:
            self._entries = _list_images(settings.folder)
            return
        table = settings.folder / settings.table
        self._entries = _group(settings, table, _filter(settings, table, read_table(table)))

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """Images, and texts when there are caption columns."""
        return ("image", "text") if self._settings.table and self._settings.caption_columns else ("image",)

    @property
    def concepts(self) -> tuple[Concept, ...]:
        """None: nothing is known of what the images show."""
        return ()

    @property
    def fingerprint(self) -> str:
        """Hex digest of keys, captions, the background and the images' paths and sizes."""
        sizes = [_size_of(self._settings.folder / entry.image) for entry in self._entries]
        entries = [(entry.key, make_name(entry.image), [_describe(text) for text in entry.captions]) for entry in self._entries]
        return fingerprint({"background": self._settings.background, "entries": entries, "sizes": sizes})

    def __len__(self) -> int:
        """Number of records."""
        return len(self._entries)

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[EncodedRecord]:
        """Records `start` to `stop`; missing and broken images turn out to be `Unreadable` when they are decoded."""
        for entry in self._entries[start:stop]:
            path = self._settings.folder / entry.image
            image = EncodedImage(path, make_name(entry.image), self._settings.background)
            yield EncodedRecord(entry.key, image, texts=entry.captions)

    def records(self, start: int = 0, stop: int | None = None) -> Iterator[Record]:
        """Records `start` to `stop`, decoded as they are asked for; missing and broken images are `Unreadable`."""
        return (record.decode() for record in self.read(start, stop))


def _list_images(folder: Path) -> list[_Entry]:
    """The files below a folder that have a suffix of an image, by path."""
    if not folder.is_dir():
        raise SourceError(f"{folder}: no such folder; give the one with the images")
    suffixes = Image.registered_extensions()
    found = [Path(top) / name for top, _, names in os.walk(folder) for name in names if Path(name).suffix.lower() in suffixes]
    if not found:
        raise SourceError(f"{folder}: no images in it (by their suffix); the source is empty")
    names = sorted(path.relative_to(folder).as_posix() for path in found)
    return [_Entry(make_name(name), name, ()) for name in names]


def _filter(settings: ImageCaptions, table: Path, rows: Sequence[TableRow]) -> list[TableRow]:
    """The rows that `where` keeps. Raises SourceError: a column that is not there, nothing left."""
    columns = dict.fromkeys(name for row in rows[:1000] for name in row.cells)
    needed = [settings.image_column, *settings.caption_columns, *settings.where]
    needed += [settings.key_column] if settings.key_column else []
    missing = [name for name in needed if name not in columns]
    if rows and missing:
        raise SourceError(
            f"{table}: no column {missing[0]!r}; it has {', '.join(map(str, columns))}: name those to read by image_column, "
            "caption_columns, key_column or where"
        )
    kept = [row for row in rows if all(str(row.cells.get(name)) == value for name, value in settings.where.items())]
    if not kept:
        filters = f" with {', '.join(f'{name}={value}' for name, value in settings.where.items())}" if settings.where else ""
        raise SourceError(f"{table}: no rows{filters}; the source is empty")
    return kept


def _group(settings: ImageCaptions, table: Path, rows: Sequence[TableRow]) -> list[_Entry]:
    """One entry per image, in the order of first appearance."""
    entries: dict[str, _Entry] = {}
    keys: dict[str, str] = {}
    for row in rows:
        image = row.cells.get(settings.image_column)
        if not isinstance(image, str) or not image:
            column = settings.image_column
            raise SourceError(f"{table.parent}/{row.place}: column {column!r} holds {image!r}; expected the path of an image")
        captions = tuple(_read_captions(settings, table, row))
        if image in entries:
            entries[image] = entries[image]._replace(captions=entries[image].captions + captions)
            continue
        key = make_name(str(row.cells.get(settings.key_column)) if settings.key_column else image)
        if key in keys:
            raise SourceError(f"{table}: key {key!r} stands for both {keys[key]} and {image}; keys must be unique")
        keys[key] = image
        entries[image] = _Entry(key, image, captions)
    return list(entries.values())


def _read_captions(settings: ImageCaptions, table: Path, row: TableRow) -> Iterator[Text]:
    for name in settings.caption_columns:
        try:
            for caption in split_cell(row.cells.get(name), settings.separator, settings.empty_captions):
                yield make_text(caption, f"{row.place}, {name}", settings.encoding_errors)
        except ValueError as error:
            raise SourceError(
                f"{table.parent}/{row.place}: column {name!r}: {error}; name another by caption_columns"
            ) from error


def _describe(text: Text) -> str | list[str]:
    return text.text if text.unreadable is None else [text.text, text.unreadable]


def _size_of(path: Path) -> int:
    """Bytes of a file; -1 when it is missing."""
    try:
        return path.stat().st_size
    except OSError:
        return -1
