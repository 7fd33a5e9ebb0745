"""Datasets of the Hugging Face library: from the hub, saved to disk, or local Parquet, JSON, CSV and image folders."""

import sys
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pyarrow import ArrowException

from thresher.config import config
from thresher.data.records import Concept, Modality, Record, Text
from thresher.data.sources.decoding import check_colour, decode_image
from thresher.data.sources.captions import split_cell
from thresher.errors import ConfigError, SourceError
from thresher.hub import local_copy
from thresher.runs import fingerprint

BUILDERS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv", ".arrow": "arrow"}
"""What reads a single local file."""


@config
class HuggingFaceDataset:
    """A dataset of Hugging Face `datasets`: images with captions, images, or texts."""

    kind: Literal["huggingface"] = "huggingface"
    """Which source this is."""
    dataset: str
    """Hub id (<owner>/<name>), or a local path: a folder from `save_to_disk`, a folder of Parquet, JSON, CSV or image
    files, or one such file."""
    name: str | None = None
    """Configuration of the dataset, where it has several."""
    split: str = "train"
    """Split, for instance validation or train[:1000]."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    image_column: str | None = None
    """Column with images; none when not given."""
    caption_columns: tuple[str, ...] = ()
    """Columns with captions or texts; a cell is a text, a list of texts, or a class label, which becomes its name."""
    separator: str | None = None
    """Cuts a caption cell into several captions."""
    key_column: str | None = None
    """Column with the record's unique key; the row number when not given."""
    background: str = "white"
    """Colour behind transparent images."""

    def __post_init__(self) -> None:
        check_colour(self.background)
        if self.image_column is None and not self.caption_columns:
            raise ConfigError("image_column, caption_columns: name at least one column")
        if self.separator == "":
            raise ConfigError("separator='': give a character, or leave it out")


class HuggingFaceSource:
    """Records in the order of the dataset."""

    def __init__(self, settings: HuggingFaceDataset) -> None:
        self._settings = settings
        loaded = _load(settings)
        self._content = _identify(settings, loaded)
        self._rows = _select(settings, loaded)
        self._keys = _read_keys(settings, self._rows)
        self._labels = {name: self._rows.features[name] for name in settings.caption_columns}

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """By the columns that are named."""
        image: tuple[Modality, ...] = ("image",) if self._settings.image_column else ()
        return (*image, "text") if self._settings.caption_columns else image

    @property
    def concepts(self) -> tuple[Concept, ...]:
        """None: nothing is known of what the records show."""
        return ()

    @property
    def fingerprint(self) -> str:
        """Hex digest of the dataset's content as the library or the file system knows it, and of the columns taken."""
        settings = self._settings
        columns = [settings.image_column, settings.caption_columns, settings.separator, settings.key_column]
        return fingerprint({"content": self._content, "columns": columns, "background": settings.background})

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._rows)

    def records(self, start: int = 0, stop: int | None = None) -> Iterator[Record]:
        """Rows `start` to `stop`, decoded as they are asked for; broken images are `Unreadable`."""
        for number in range(start, len(self) if stop is None else min(stop, len(self))):
            row: dict[str, Any] = self._rows[number]
            texts = tuple(Text(text) for name in self._settings.caption_columns for text in self._read_texts(name, row[name]))
            key = self._keys[number] if self._keys is not None else f"{number:09d}"
            yield Record(key, self._read_image(key, row), texts=texts)

    def _read_image(self, key: str, row: dict[str, Any]) -> Any:
        if self._settings.image_column is None:
            return None
        cell: dict[str, Any] = row[self._settings.image_column] or {}
        content = cell.get("bytes") or Path(cell.get("path") or "")
        return decode_image(content, key, self._settings.background)

    def _read_texts(self, name: str, cell: Any) -> Iterator[str]:
        label = self._labels[name]
        if hasattr(label, "int2str"):
            return iter(() if cell is None else (label.int2str(cell),))
        return split_cell(cell, self._settings.separator)


@contextmanager
def _plain_log() -> Generator[None, None, None]:
    """Keep the progress bars of datasets off a standard error that is no terminal."""
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if sys.stderr.isatty() or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


@_plain_log()
def _load(settings: HuggingFaceDataset) -> Any:
    """The split as a dataset. Raises SourceError when it cannot be had."""
    # Takes a second, and the configuration of this source is needed without it.
    import datasets
    from datasets.exceptions import DatasetsError

    place = local_copy(settings.dataset)
    path = Path(place)
    try:
        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            return _pick_split(settings, datasets.load_from_disk(place))
        if path.is_file():
            if path.suffix not in BUILDERS:
                raise SourceError(f"{path}: expected a file ending in {', '.join(BUILDERS)}")
            return datasets.load_dataset(BUILDERS[path.suffix], data_files=place, split=settings.split)
        return datasets.load_dataset(place, settings.name, split=settings.split, revision=settings.revision)
    except (OSError, ValueError, LookupError, RuntimeError, DatasetsError) as error:
        raise SourceError(f"{settings.dataset}: cannot load split {settings.split!r}: {error}") from error


def _pick_split(settings: HuggingFaceDataset, loaded: Any) -> Any:
    if not isinstance(loaded, dict):
        return loaded
    if settings.split not in loaded:
        raise SourceError(f"{settings.dataset}: no split {settings.split!r}; it has {', '.join(loaded)}")
    return loaded[settings.split]


def _identify(settings: HuggingFaceDataset, loaded: Any) -> list[Any]:
    """Names and sizes of local files, so that a moved copy is the same; otherwise the library's own fingerprint."""
    path = Path(local_copy(settings.dataset))
    if not path.exists():
        return [settings.name, settings.split, loaded._fingerprint]
    files = [path] if path.is_file() else sorted(found for found in path.rglob("*") if found.is_file())
    names = [(file.name if path.is_file() else file.relative_to(path).as_posix(), file.stat().st_size) for file in files]
    return [settings.name, settings.split, len(loaded), names]


def _select(settings: HuggingFaceDataset, loaded: Any) -> Any:
    """Only the columns that are needed, images undecoded. Raises SourceError: a column that is not there, no rows."""
    import datasets

    wanted = [settings.image_column, *settings.caption_columns, settings.key_column]
    columns = list(dict.fromkeys(name for name in wanted if name is not None))
    for name in columns:
        if name not in loaded.column_names:
            raise SourceError(f"{settings.dataset}: no column {name!r}; it has {', '.join(loaded.column_names)}")
    if len(loaded) == 0:
        raise SourceError(f"{settings.dataset}: split {settings.split!r} has no rows; the source is empty")
    rows = loaded.select_columns(columns)
    if settings.image_column is None:
        return rows
    try:
        return rows.cast_column(settings.image_column, datasets.Image(decode=False))
    except (TypeError, ValueError, ArrowException) as error:
        raise SourceError(f"{settings.dataset}: column {settings.image_column!r} holds no images: {error}") from error


def _read_keys(settings: HuggingFaceDataset, rows: Any) -> list[str] | None:
    if settings.key_column is None:
        return None
    keys = [str(key) for key in rows[settings.key_column]]
    repeated = [key for key, n in Counter(keys).items() if n > 1]
    if repeated:
        raise SourceError(f"{settings.dataset}: key {repeated[0]!r} occurs more than once in {settings.key_column!r}")
    return keys
