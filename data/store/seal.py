"""A checksum inside of a JSON document, for what nothing else tells whether it is whole."""

import json
from collections.abc import Collection
from typing import Any

import crc32c

from thresher.runs import canonical_json

FIELD = "seal"
_OPEN, _CLOSE, _NONE = f'"{FIELD}": "'.encode(), b'"', b"0" * 8


def seal(document: dict[str, Any]) -> bytes:
    """A document as canonical JSON with `seal`: the CRC-32C of the file in which the seal's own digits are zeros."""
    content = canonical_json(document | {FIELD: _NONE.decode()})
    return _fill(content, f"{crc32c.crc32c(content):08x}".encode())


def unseal(content: bytes, fields: Collection[str]) -> dict[str, Any]:
    """The document without its seal. Raises ValueError when a byte is not as written.

    A document of an earlier release has no seal, and no other fields than `fields`.
    """
    document: Any = json.loads(content)
    if not isinstance(document, dict):
        raise ValueError("no JSON object")
    found = document.pop(FIELD, None)
    if found is None and (unknown := {*document} - {*fields}):
        raise ValueError(f"fields {', '.join(sorted(unknown))} without a seal")
    if found is not None and f"{crc32c.crc32c(_fill(content, _NONE)):08x}" != found:
        raise ValueError(f"its content does not have the checksum {found} that it tells")
    return document


def _fill(content: bytes, digits: bytes) -> bytes:
    """The content with other digits in its seal: the last field of that name, because none that follows it has fields."""
    before, opened, rest = content.rpartition(_OPEN)
    return before + opened + digits + rest[len(digits) :]
