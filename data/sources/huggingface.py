"""Datasets of the Hugging Face library: from the hub, streamed, saved to disk, or local Parquet, JSON, CSV, image folders."""

import re
import sys
import threading
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pyarrow import ArrowException

from thresher.config import config
from thresher.data.records import Concept, EncodedRecord, Modality, Record, Source, Text, Unreadable
from thresher.data.sources.captions import EmptyCaptions, check_separator, make_text, split_cell
from thresher.data.sources.decoding import DecodedImage, EncodedImage, check_colour
from thresher.errors import ConfigError, SourceError
from thresher.hub import find_copy, local_copy
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
    empty_captions: EmptyCaptions = "drop"
    """An empty text gives no caption, or with `keep` an empty one: an item of special tokens only."""
    streaming: bool = False
    """Read the rows as they come, without a copy of the dataset on this machine. The order is that of the dataset, and a
    harvest that is resumed skips the rows it has."""
    n_records: int | None = None
    """For streaming: how many rows to take; needed where the dataset does not say how many its split has."""
    key_column: str | None = None
    """Column with the record's unique key; the row number when not given."""
    background: str = "white"
    """Colour behind transparent images."""

    def __post_init__(self) -> None:
        check_colour(self.background)
        if self.image_column is None and not self.caption_columns:
            raise ConfigError("image_column, caption_columns: name at least one column")
        check_separator(self.separator)
        if self.n_records is not None and (self.n_records < 1 or not self.streaming):
            raise ConfigError(f"n_records={self.n_records}: at least 1, and only with streaming=true; for others use `limit`")
        if self.streaming and "[" in self.split:
            raise ConfigError(f"split={self.split!r}: a stream has no slices; use n_records")


def open_dataset(settings: HuggingFaceDataset) -> Source:
    """The source of a dataset. Raises SourceError: it cannot be had, has no such column, is empty."""
    return HuggingFaceStream(settings) if settings.streaming else HuggingFaceSource(settings)


class _Dataset:
    """What rows of a dataset become, wherever they come from."""

    def __init__(self, settings: HuggingFaceDataset, content: list[Any], rows: Any) -> None:
        self._settings = settings
        self._content = content
        self._rows = rows
        features = rows.features or {}
        self._labels = {name: features.get(name) for name in settings.caption_columns}

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
        columns: list[Any] = [settings.image_column, settings.caption_columns, settings.separator, settings.key_column]
        columns += [settings.empty_captions] if settings.empty_captions != "drop" else []
        return fingerprint({"content": self._content, "columns": columns, "background": settings.background})

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[EncodedRecord]:
        """Rows `start` to `stop`."""
        raise NotImplementedError

    def records(self, start: int = 0, stop: int | None = None) -> Iterator[Record]:
        """Rows `start` to `stop`, decoded as they are asked for; broken images are `Unreadable`."""
        return (record.decode() for record in self.read(start, stop))

    def _make_record(self, key: str, row: dict[str, Any]) -> EncodedRecord:
        texts = [text for name in self._settings.caption_columns for text in self._read_texts(key, name, row.get(name))]
        return EncodedRecord(key, self._read_image(key, row), texts=tuple(texts))

    def _read_image(self, key: str, row: dict[str, Any]) -> EncodedImage | DecodedImage | None:
        if self._settings.image_column is None:
            return None
        cell: dict[str, Any] = row.get(self._settings.image_column) or {}
        content: Any = cell.get("bytes") or cell.get("path")
        if not content:
            return DecodedImage(Unreadable(f"{key}: no image in column {self._settings.image_column!r}"))
        path = None if isinstance(content, bytes) else Path(content)
        return EncodedImage(path or content, f"{key} ({path.name})" if path else key, self._settings.background)

    def _read_texts(self, key: str, name: str, cell: Any) -> Iterator[Text]:
        label = self._labels[name]
        if label is not None and hasattr(label, "int2str"):
            cell = None if cell is None else label.int2str(cell)
        try:
            for text in split_cell(cell, self._settings.separator, self._settings.empty_captions):
                yield make_text(text, f"{key}, {name}", "unreadable")
        except ValueError as error:
            dataset = self._settings.dataset
            raise SourceError(f"{dataset}: row {key}, column {name!r}: {error}; name another by caption_columns") from error


class HuggingFaceSource(_Dataset):
    """Records in the order of a dataset that is on this machine."""

    def __init__(self, settings: HuggingFaceDataset) -> None:
        loaded = _load(settings)
        super().__init__(settings, _identify(settings, loaded), _select(settings, loaded))
        if len(loaded) == 0:
            raise SourceError(f"{settings.dataset}: split {settings.split!r} has no rows; the source is empty")
        self._keys = _read_keys(settings, self._rows)

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._rows)

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[EncodedRecord]:
        """Rows `start` to `stop`; broken images turn out to be `Unreadable` when they are decoded."""
        for number in range(start, len(self) if stop is None else min(stop, len(self))):
            key = self._keys[number] if self._keys is not None else f"{number:09d}"
            yield self._make_record(key, self._rows[number])


class HuggingFaceStream(_Dataset):
    """Records in the order of a dataset that comes over the network. Meant to be read forwards: going back starts it again."""

    def __init__(self, settings: HuggingFaceDataset) -> None:
        loaded = _load(settings)
        splits = loaded.info.splits or {}
        known: int | None = splits[settings.split].num_examples if settings.split in splits else None
        n_records = settings.n_records or known
        if not n_records:
            raise SourceError(f"{settings.dataset}: a stream that does not say how many rows it has; set source.n_records")
        content = [settings.name, settings.split, settings.dataset, loaded.info.version and str(loaded.info.version)]
        content += [settings.revision, getattr(loaded, "_commit_hash", None)]
        super().__init__(settings, [*content, "stream", n_records], _select(settings, loaded))
        self._n_records = min(n_records, known) if known else n_records
        self._open: tuple[int, Iterator[dict[str, Any]]] | None = None
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Number of rows taken."""
        return self._n_records

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[EncodedRecord]:
        """Rows `start` to `stop`. Raises SourceError when the stream ends before, or the network fails."""
        for number in range(start, len(self) if stop is None else min(stop, len(self))):
            row = self._take(number)
            key = f"{number:09d}" if self._settings.key_column is None else str(row[self._settings.key_column])
            yield self._make_record(key, row)

    def _take(self, number: int) -> dict[str, Any]:
        with self._lock:
            try:
                if self._open is None or self._open[0] > number:
                    self._open = (number, iter(self._rows.skip(number) if number else self._rows))
                position, rows = self._open
                self._open = None
                while position < number:
                    next(rows)
                    position += 1
                row = next(rows)
                self._open = (number + 1, rows)
            except StopIteration as end:
                raise SourceError(
                    f"{self._settings.dataset}: the stream ends before row {number}; set source.n_records"
                ) from end
            except (OSError, RuntimeError, ValueError) as error:
                raise SourceError(f"{self._settings.dataset}: row {number} of the stream cannot be read: {error}") from error
        return row


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

    options: dict[str, Any] = {"split": settings.split, "streaming": settings.streaming}
    try:
        place = find_copy(settings.dataset)
        path = Path(place)
        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            loaded = _pick_split(settings, datasets.load_from_disk(place))
            return loaded.to_iterable_dataset() if settings.streaming else loaded
        if path.is_file():
            if path.suffix not in BUILDERS:
                raise SourceError(f"{path}: expected a file ending in {', '.join(BUILDERS)}")
            return datasets.load_dataset(BUILDERS[path.suffix], data_files=place, **options)
        return datasets.load_dataset(place, settings.name, revision=settings.revision, **options)
    except (OSError, ValueError, LookupError, RuntimeError, DatasetsError) as error:
        # What happens while a copy is made says no more than that it did.
        reason = error.__cause__ if isinstance(error, DatasetsError) and error.__cause__ else error
        raise SourceError(f"{settings.dataset}: cannot load split {settings.split!r}: {reason}") from error


def _pick_split(settings: HuggingFaceDataset, loaded: Any) -> Any:
    if not isinstance(loaded, dict):
        own = re.split(r"[\[+]", str(loaded.split or settings.split))[0]
        if "[" in settings.split or settings.split not in ("train", own):
            saved = (
                f"{settings.dataset}: split {settings.split!r}: saved was {loaded.split or 'one dataset'}, which has no other"
            )
            raise SourceError(f"{saved} and no slices; leave split out, and use `limit` to take less")
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
    """Only the columns that are needed, images undecoded. Raises SourceError: a column that is not there."""
    import datasets

    wanted = [settings.image_column, *settings.caption_columns, settings.key_column]
    columns = list(dict.fromkeys(name for name in wanted if name is not None))
    known = loaded.column_names or list(next(iter(loaded), {}))
    for name in columns:
        if name not in known:
            raise SourceError(f"{settings.dataset}: no column {name!r}; it has {', '.join(known)}")
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
    found: list[Any] = list(rows[settings.key_column])
    repeated = [key for key, n in Counter(found).items() if n > 1 and key is not None]
    if repeated:
        raise SourceError(f"{settings.dataset}: key {str(repeated[0])!r} occurs more than once in {settings.key_column!r}")
    if None in found:
        raise SourceError(f"{settings.dataset}: row {found.index(None)} has no key in {settings.key_column!r}; choose another")
    return [str(key) for key in found]
