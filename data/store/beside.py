"""What lies at the place of a store: this very store, something else; files that go with it: who made it, and from what."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from thresher.data.store.codecs import Profile
from thresher.data.store.header import plain
from thresher.data.store.layout import LOCK, RUN
from thresher.data.store.places import open_storage, parse_location
from thresher.data.store.reader import open_store
from thresher.data.store.storage import write_file
from thresher.errors import ConfigError, StoreError
from thresher.runs import CONFIG, PROVENANCE, refuse_foreign


def refuse_foreign_store(location: str | Path) -> None:
    """Raise ConfigError when there are files at a location, but no store. Looks at no more than it must."""
    location = parse_location(location)
    if isinstance(location, Path):
        refuse_foreign(location, [RUN])
        return
    storage = open_storage(location)
    if storage.size(RUN) is not None:
        return
    foreign = next((name for name in storage.list_files("") if name not in (LOCK, CONFIG, PROVENANCE)), None)
    if foreign is not None:
        raise ConfigError(
            f"out={location!r}: other things lie there ({foreign}, ...) and no {RUN}; nothing was changed. Choose a new place"
        )


def is_finished(
    location: str | Path, identity: Mapping[str, Any], profile: Profile = "raw", *, portable_dtype: bool = False
) -> bool:
    """Whether the store of this identity is there, complete; what is wrong with anything else, a writer says."""
    try:
        store = open_store(location, incomplete="prefix")
    except StoreError:
        return False
    is_alike = (store.profile, store.portable_dtype) == (profile, portable_dtype)
    return store.is_complete and store.identity == plain(dict(identity)) and is_alike


def write_beside(location: str | Path, files: Mapping[str, bytes]) -> None:
    """Write small files beside a store, replacing those of the same names. Raises StoreError."""
    storage = open_storage(location)
    try:
        for name, content in files.items():
            write_file(storage, name, [content])
    except OSError as error:
        raise StoreError(f"{storage.locate()}: cannot write ({error.strerror}); choose another `out`") from error
