"""From cells and bytes to captions: several in one cell, empty ones, and what is no UTF-8."""

import re
from collections.abc import Iterator
from typing import Any, Literal, cast

from thresher.data.records import Text
from thresher.errors import ConfigError

EncodingErrors = Literal["unreadable", "replace"]
"""A text with bytes that are no UTF-8: an item without rows whose status names file and line, or with U+FFFD in their place."""
EmptyCaptions = Literal["drop", "keep"]
"""An empty caption is none, or an item of which a model sees only its special tokens (BOS, EOS)."""

ESCAPES = "surrogateescape"
"""How bytes that are no UTF-8 travel inside of a str until `make_text` judges them."""
NO_CHARACTER = re.compile("[\ud800-\udfff]")
"""Halves of surrogate pairs: bytes that are no UTF-8, or what an escape in JSON made without its other half."""


def make_text(text: str, where: str, errors: EncodingErrors) -> Text:
    """A text that was decoded with surrogate escapes; `where` names it in the reason."""
    found = NO_CHARACTER.search(text)
    if found is None:
        return Text(text)
    shown = NO_CHARACTER.sub("\ufffd", text)
    if errors == "replace":
        return Text(shown)
    code = ord(found.group())
    what = f"byte 0x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"
    return Text(shown, unreadable=f"{where}: not UTF-8 ({what} after {found.start()} characters)")


def escape_halves(text: str) -> str:
    """Halves of surrogate pairs as three escaped bytes each, so that `encode("utf-8", ESCAPES)` takes the text."""

    def escape(found: re.Match[str]) -> str:
        is_byte = 0xDC80 <= ord(found.group()) <= 0xDCFF
        return found.group() if is_byte else found.group().encode("utf-8", "surrogatepass").decode("utf-8", ESCAPES)

    return NO_CHARACTER.sub(escape, text)


def make_name(name: str) -> str:
    """A name or key with what is no UTF-8 in it written as escapes."""
    return name.encode("utf-8", "backslashreplace").decode()


def split_cell(cell: Any, separator: str | None, empty: EmptyCaptions = "drop") -> Iterator[str]:
    """The captions in one cell: a string, a list of strings, or nothing (None); blanks are left out, or kept as empty.

    Raises ValueError for what is no text (numbers count as texts).
    """
    texts = cell if isinstance(cell, list) else [cell]
    for text in cast(list[Any], texts):
        if text is None:
            continue
        if not isinstance(text, (str, int, float)):
            raise ValueError(f"expected a text or a list of texts, found {type(text).__name__}: {str(text)[:60]}")
        parts = str(text).split(separator) if separator else [str(text)]
        yield from (part.strip() for part in parts if part.strip() or empty == "keep")


def check_separator(separator: str | None) -> None:
    """Raise ConfigError for a separator that separates nothing."""
    if separator == "":
        raise ConfigError("separator='': give a character, or leave it out")
