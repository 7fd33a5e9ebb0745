"""Which storage a location means: the one place where the kind of storage is chosen."""

import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated
from urllib.parse import unquote, urlsplit

import pydantic

from thresher.data.store.cache import CacheConfig, open_cache
from thresher.data.store.layout import RUN, ZARR
from thresher.data.store.local import LocalStorage
from thresher.data.store.storage import Storage, StoredFile
from thresher.errors import ConfigError, StoreError

SCHEMES = ("s3", "gs")
"""Of addresses that mean a bucket."""


def parse_location(location: str | Path) -> str | Path:
    """A folder of this machine as a path, or the normalised address of a place in a bucket as text.

    Takes paths, `file:///folder`, `s3://bucket/prefix` and `gs://bucket/prefix`. Raises ConfigError for any other address.
    """
    if isinstance(location, Path):
        if re.match(r"[a-z0-9]+:/[^/]", str(location)):
            raise ConfigError(f"{location}: an address that was made a path has lost a slash; give addresses as text")
        return location
    scheme, found, rest = location.partition("://")
    if not found:
        return Path(location)
    if scheme == "file":
        parts = urlsplit(location)
        if parts.netloc not in ("", "localhost") or not parts.path:
            raise ConfigError(f"{location}: expected file:///<folder>, with three slashes")
        return Path(unquote(parts.path))
    bucket, *folders = rest.split("/")
    folders = [folder for folder in folders if folder]
    if scheme not in SCHEMES or not bucket or not folders or {".", ".."} & set(folders):
        raise ConfigError(f"{location}: expected a folder, file:///<folder>, s3://<bucket>/<prefix> or gs://<bucket>/<prefix>")
    return "/".join([f"{scheme}:/", bucket, *folders])


StoreLocation = Annotated[str | Path, pydantic.BeforeValidator(parse_location)]
"""Where a store is: a folder, or an address in a bucket."""


def open_cached(location: str, settings: CacheConfig, fingerprint: str, files: Mapping[str, StoredFile]) -> Storage:
    """What keeps the complete store at an address, its files read through the cache of this machine."""
    from thresher.data.store.remote import CachedStorage

    return CachedStorage(location, open_cache(settings), fingerprint, files)


def open_storage(location: str | Path) -> Storage:
    """What keeps the store at a location. Raises ConfigError (no such kind of address), StoreError (obstore is missing)."""
    location = parse_location(location)
    if isinstance(location, Path):
        return LocalStorage(location)
    with _explain_missing(location):
        from thresher.data.store.remote import RemoteStorage
    return RemoteStorage(location)


def find_remote_stores(url: str) -> list[str]:
    """The addresses of the stores at an address of a bucket or below it, in order."""
    with _explain_missing(url):
        from thresher.data.store.objects import Objects
    objects, found, folders = Objects(url), list[str](), [""]
    while folders:
        folder = folders.pop()
        below, files = objects.list_level(folder)
        is_store = any(file.rpartition("/")[2] == RUN for file in files)
        if is_store and {name.rpartition("/")[2] for name in below} & {"commits", ZARR}:
            found.append(objects.locate(folder))
        else:
            folders += below
    return sorted(found)


@contextmanager
def _explain_missing(location: str) -> Generator[None, None, None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise StoreError(f"{location}: needs {error.name}; install it by `pip install 'thresher[remote]'`") from error
