"""`run.json`: what a store holds and how it is laid out, fixed before the first row is written."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from thresher.data.records import Concept
from thresher.data.store.layout import FORMAT, RUN, VERSION, Layout
from thresher.data.store.schema import HookPointSpec
from thresher.data.store.seal import seal, unseal
from thresher.data.store.storage import Storage, write_file
from thresher.errors import StoreError
from thresher.runs import canonical_json

OPTIONAL: dict[str, Any] = {"columns": {}, "profile": "raw", "portable_dtype": False}
"""Fields of the layout that are left out where they have this value, as in stores of earlier releases."""


class Header(NamedTuple):
    """The content of `run.json`."""

    identity: Mapping[str, Any]
    """What was harvested, in plain values."""
    hook_points: Sequence[HookPointSpec]
    concepts: Sequence[Concept]
    layout: Layout


def write_header(storage: Storage, header: Header) -> None:
    """Write `run.json`."""
    document = {
        "format": FORMAT,
        "version": VERSION,
        "identity": header.identity,
        "hook_points": [spec._asdict() for spec in header.hook_points],
        "concepts": [concept._asdict() for concept in header.concepts],
        "layout": {name: value for name, value in header.layout._asdict().items() if value != OPTIONAL.get(name)},
    }
    write_file(storage, RUN, [seal(document)])


def read_header(storage: Storage) -> Header:
    """Read `run.json`. Raises StoreError: no store, damaged, or of another version of the format."""
    path = storage.locate(RUN)
    try:
        content = storage.read(RUN)
        document: Any = json.loads(content)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StoreError(
            f"{storage.locate()}: no activation store ({RUN} is missing); give the folder that a harvest has written"
        ) from error
    except (OSError, ValueError) as error:
        raise StoreError(f"{path}: cannot be read ({error}); harvest the store again, into another folder") from error
    check_version(path, document)
    try:
        unseal(content, ("format", "version", *Header._fields))
        return Header(
            identity=document["identity"],
            hook_points=tuple(HookPointSpec(**pick(spec, HookPointSpec._fields)) for spec in document["hook_points"]),
            concepts=tuple(Concept(**pick(concept, Concept._fields)) for concept in document["concepts"]),
            layout=Layout(**pick(OPTIONAL | document["layout"], Layout._fields)),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{path}: damaged ({error!r}); harvest the store again, into another folder") from error


def check_version(path: str, document: Any) -> None:
    """Raise StoreError unless a document is of the format and version that this code reads."""
    found = document.get("format") if isinstance(document, dict) else None
    if found != FORMAT:
        raise StoreError(f"{path}: format {found!r}, expected {FORMAT!r}; this is no activation store of thresher")
    if document.get("version") != VERSION:
        raise StoreError(
            f"{path}: store format version {document.get('version')}, this thresher reads version {VERSION}; "
            "use the thresher that wrote it, or harvest the store again"
        )


def check_same(storage: Storage, stored: Header, asked: Header, *, is_complete: bool) -> None:
    """Raise StoreError that lists what differs, unless a harvest asks for just what the store holds."""
    settings = _differences("", plain(stored.identity), plain(asked.identity))
    differences = [
        # Other hook points follow from other settings, and are not said twice.
        *(settings or _differences("hook_points", plain(stored.hook_points), plain(asked.hook_points))),
        *_differences("concepts", plain(stored.concepts), plain(asked.concepts)),
        *_differences("profile", stored.layout.profile, asked.layout.profile),
        *_differences("portable_dtype", stored.layout.portable_dtype, asked.layout.portable_dtype),
    ]
    if differences:
        found = "a complete harvest" if is_complete else "an unfinished harvest"
        lines = "\n".join(f"  {line}" for line in differences[:20])
        raise StoreError(
            f"{storage.locate()}: holds {found} of something else; choose another `out`, or ask for the same again\n{lines}"
        )


def pick(values: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The fields that this version knows; the format may gain optional ones. KeyError when one is missing."""
    return {name: values[name] for name in names}


def plain(value: Any) -> Any:
    """A value as it comes back from JSON."""
    return json.loads(canonical_json(value))


def _differences(where: str, stored: Any, asked: Any) -> list[str]:
    if isinstance(stored, dict) and isinstance(asked, dict):
        prefix = f"{where}." if where else ""
        keys = sorted({*stored, *asked})
        return [line for key in keys for line in _differences(f"{prefix}{key}", stored.get(key), asked.get(key))]
    if stored == asked:
        return []
    return [f"{where}: stored {_short(stored)}, asked for {_short(asked)}"]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
