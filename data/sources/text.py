"""Text files cut into documents, and documents into windows that fit a model's context."""

import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from thresher.config import config
from thresher.data.records import Concept, Modality, Record
from thresher.data.sources.captions import ESCAPES, NO_CHARACTER, EncodingErrors, escape_halves, make_text
from thresher.errors import ConfigError, SourceError
from thresher.runs import fingerprint, fingerprint_file

WORD = re.compile(r"\s*\S+")
"""A word with the white space before it; the pieces of a document, put together, are the document."""

SEPARATORS = {"lines": rb"\r?\n", "blank-lines": rb"\r?\n(?:[ \t]*\r?\n)+", "file": rb"\Z"}


@config
class TextFiles:
    """Text files (.txt, .jsonl), cut into documents and those into windows; every window is one record."""

    kind: Literal["text"] = "text"
    """Which source this is."""
    files: tuple[Path, ...]
    """The files, in order."""
    documents: Literal["blank-lines", "lines", "file"] = "blank-lines"
    """What separates documents in a .txt file: blank lines, line ends, or nothing. In a .jsonl file each line is one."""
    text_field: str = "text"
    """The field of a .jsonl line that holds the document."""
    max_characters: int = 1000
    """Longest window, cut between words. Nothing is lost here; a window longer than the model's context in tokens is
    truncated and counted by the harvest, so keep it below about 3 characters per token of the context."""
    encoding_errors: EncodingErrors = "unreadable"
    """A window that is not UTF-8: an item without rows whose status names file and line, or U+FFFD for the bad bytes."""

    def __post_init__(self) -> None:
        if not self.files:
            raise ConfigError("files: name at least one file")
        if len(set(self.files)) < len(self.files):
            raise ConfigError("files: the same file twice")
        if self.max_characters < 1:
            raise ConfigError(f"max_characters={self.max_characters}: at least 1")


class _Window(NamedTuple):
    """Where a window is: the document's bytes in its file, and its own bytes within the document's UTF-8 text."""

    file: int
    start: int
    stop: int
    inner_start: int
    inner_stop: int


class TextFilesSource:
    """Windows in the order of the files. Holds their places in memory, not their text."""

    def __init__(self, settings: TextFiles) -> None:
        self._settings = settings
        self._names = short_names(settings.files)
        self._windows = [window for number in range(len(settings.files)) for window in self._scan(number)]
        if not self._windows:
            raise SourceError(f"{', '.join(map(str, settings.files))}: no text in it; the source is empty")

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """Texts."""
        return ("text",)

    @property
    def concepts(self) -> tuple[Concept, ...]:
        """None: nothing is known of what the texts say."""
        return ()

    @property
    def fingerprint(self) -> str:
        """Hex digest of the settings and of the files' names and content."""
        settings = self._settings
        cut: list[Any] = [settings.documents, settings.text_field, settings.max_characters]
        cut += [settings.encoding_errors] if settings.encoding_errors != "unreadable" else []
        return fingerprint({"files": self._names, "cut": cut, "content": [fingerprint_file(path) for path in settings.files]})

    def __len__(self) -> int:
        """Number of windows."""
        return len(self._windows)

    def records(self, start: int = 0, stop: int | None = None) -> Iterator[Record]:
        """Windows `start` to `stop`; each reads its document again, once for neighbours."""
        place: tuple[int, int] | None = None
        document = b""
        for window in self._windows[start:stop]:
            if place != (window.file, window.start):
                place, document = (window.file, window.start), self._read_document(window)
            text = document[window.inner_start : window.inner_stop].decode("utf-8", ESCAPES)
            found = make_text(text, self._names[window.file], self._settings.encoding_errors)
            if found.unreadable is not None:
                found = make_text(text, self._find_line(window, text), self._settings.encoding_errors)
            yield Record(f"{self._names[window.file]}@{window.start + window.inner_start}", texts=(found,))

    def _scan(self, number: int) -> Iterator[_Window]:
        path = self._settings.files[number]
        try:
            content = path.read_bytes()
        except OSError as error:
            raise SourceError(f"{path}: cannot read the text ({error.strerror})") from error
        for start, stop in self._find_documents(path, content):
            document = self._extract(path, content[start:stop], start)
            for inner_start, inner_stop in cut_windows(document, self._settings.max_characters):
                yield _Window(number, start, stop, inner_start, inner_stop)

    def _find_documents(self, path: Path, content: bytes) -> Iterator[tuple[int, int]]:
        """Byte ranges of the documents, white space around them left out."""
        kind = "lines" if path.suffix == ".jsonl" else self._settings.documents
        start = 0
        for found in re.finditer(SEPARATORS[kind] + rb"|\Z", content):
            document = content[start : found.start()]
            if document.strip():
                left = len(document) - len(document.lstrip())
                yield start + left, start + len(document.rstrip())
            start = found.end()

    def _extract(self, path: Path, content: bytes, start: int) -> str:
        """The text of a document in its file. Raises SourceError: not JSON, no such field."""
        text = content.decode("utf-8", ESCAPES)
        if path.suffix != ".jsonl":
            return text
        field = self._settings.text_field
        try:
            row = json.loads(text)
        except ValueError as error:
            raise SourceError(f"{path}: the line at byte {start} is no JSON object with a field {field!r}: {error}") from error
        if not isinstance(row, dict) or field not in row:
            found = f"it has {', '.join(cast(dict[str, Any], row))}" if isinstance(row, dict) else "it is no object"
            raise SourceError(f"{path}: the line at byte {start} is no JSON object with a field {field!r}: {found}")
        found = cast(dict[str, Any], row)[field]
        if not isinstance(found, str):
            raise SourceError(f"{path}: the line at byte {start}: {field} is {found!r}, not a text")
        return escape_halves(found)

    def _find_line(self, window: _Window, text: str) -> str:
        """Name and line of the first byte of a window that is no UTF-8 (in a .jsonl file, of the document)."""
        path = self._settings.files[window.file]
        with path.open("rb") as file:
            before = file.read(window.start).count(b"\n")
            if path.suffix != ".jsonl":
                before += file.read(window.inner_start).count(b"\n") + text[: _find_bad(text)].count("\n")
        return f"{self._names[window.file]}:{before + 1}"

    def _read_document(self, window: _Window) -> bytes:
        path = self._settings.files[window.file]
        with path.open("rb") as file:
            file.seek(window.start)
            return self._extract(path, file.read(window.stop - window.start), window.start).encode("utf-8", ESCAPES)


def cut_windows(document: str, max_characters: int) -> Iterator[tuple[int, int]]:
    """UTF-8 byte ranges of windows of at most `max_characters`, cut before white space, longer words cut anywhere.

    The windows follow each other without a gap: together they are the document. A document of white space has none.
    """
    pieces = [match.group() for match in WORD.finditer(document)]
    if not pieces:
        return
    pieces[-1] += document[sum(map(len, pieces)) :]
    start = stop = length = 0
    for piece in pieces:
        for part in (piece[at : at + max_characters] for at in range(0, len(piece), max_characters)):
            if length + len(part) > max_characters:
                yield start, stop
                start, length = stop, 0
            stop, length = stop + len(part.encode("utf-8", ESCAPES)), length + len(part)
    yield start, stop


def _find_bad(text: str) -> int:
    found = NO_CHARACTER.search(text)
    return found.start() if found else len(text)


def short_names(files: Sequence[Path]) -> list[str]:
    """The files' paths from their common folder: the same wherever the folder lies."""
    folders = [str(path.absolute().parent) for path in files]
    common = os.path.commonpath(folders)
    return [path.absolute().relative_to(common).as_posix() for path in files]
