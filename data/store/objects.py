"""Objects of a bucket: the only place that knows obstore."""

import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PermissionDeniedError, PreconditionError, UnauthenticatedError
from obstore.store import GCSStore, S3Store

from thresher.errors import NetworkError, StoreError

RETRY_SECONDS = "THRESHER_RETRY_SECONDS"
"""Environment variable: for how long a request is repeated when the network or the server fails; 180 by default."""
REQUEST_SECONDS = 120
"""After which a single request counts as failed."""
PART_BYTES = 8 << 20
"""Of a multipart upload, and of a single request for data."""
PARTS_IN_FLIGHT = 2
"""Parts of one object that are on their way at once: with the one being filled, what an upload holds in memory."""
CREDENTIALS = {
    "s3": "set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY (AWS_SESSION_TOKEN where there is one), AWS_REGION, and for a server "
    "other than Amazon's AWS_ENDPOINT_URL; or run on a machine with a role that may use the bucket",
    "gs": "set GOOGLE_SERVICE_ACCOUNT to the file of a service account, or run `gcloud auth application-default login`, or run "
    "on a machine with a service account that may use the bucket",
}
"""Scheme of an address -> how one gets in."""
ENDPOINTS = {"s3": "AWS_ENDPOINT_URL", "gs": "GOOGLE_BASE_URL"}
"""Scheme -> environment variable that names another server than Amazon's or Google's."""
METADATA = ("169.254.169.254", "latest/api/token", "latest/meta-data", "metadata.google.internal")
"""Where a request for credentials goes when nobody has given any."""


class ConflictError(Exception):
    """The object is not, or no longer, what a conditional write expected."""


class Version(NamedTuple):
    """Which content of an object is meant."""

    e_tag: str | None
    version: str | None


ABSENT = Version(None, None)
"""There is no such object."""


class Objects:
    """The objects below the address `url`, by their path from there.

    Raises FileNotFoundError: no such object; StoreError: no such bucket, refused; NetworkError: everything else that keeps a
    request from succeeding, after it was repeated for `THRESHER_RETRY_SECONDS`.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._scheme, _, rest = url.partition("://")
        bucket, _, prefix = rest.partition("/")
        kind: Any = {"s3": S3Store, "gs": GCSStore}[self._scheme]
        client: dict[str, Any] = {"timeout": timedelta(seconds=REQUEST_SECONDS)}
        if os.environ.get(ENDPOINTS[self._scheme], "").startswith("http://"):
            client["allow_http"] = True  # the user has written http
        retry = {"max_retries": 10_000, "retry_timeout": timedelta(seconds=_retry_seconds())}
        with self._translate(""):
            self.backend: Any = kind(bucket, prefix=prefix or None, client_options=client, retry_config=retry)

    def locate(self, path: str) -> str:
        """The address of an object."""
        return f"{self.url}/{path}" if path else self.url

    def measure(self, path: str) -> tuple[int, Version]:
        """Bytes and version of an object."""
        with self._translate(path):
            found = obstore.head(self.backend, path)
        return found["size"], Version(found["e_tag"], found["version"])

    def get(self, path: str) -> tuple[bytes, Version]:
        """All of an object, and its version."""
        with self._translate(path):
            found = obstore.get(self.backend, path)
            return bytes(found.bytes()), Version(found.meta["e_tag"], found.meta["version"])

    def get_range(self, path: str, start: int, stop: int) -> Any:
        """Bytes `start` to `stop` (exclusive) of an object, as a buffer."""
        with self._translate(path):
            return obstore.get_range(self.backend, path, start=start, end=stop)

    def put(self, path: str, content: bytes, expected: Version | None = None) -> Version:
        """Write an object in one step, over anything or only over the `expected` version. Raises ConflictError."""
        mode: Any = "overwrite"
        if expected is not None:
            mode = {key: value for key, value in expected._asdict().items() if value is not None} or "create"
        try:
            with self._translate(path):
                made = obstore.put(self.backend, path, content, mode=mode, use_multipart=False)
        except FileNotFoundError as error:
            if expected in (None, ABSENT):
                raise
            # the expected version is gone
            raise ConflictError(self.locate(path)) from error
        return Version(made["e_tag"], made["version"])

    def open_writer(self, path: str) -> Any:
        """Something to `write` to; what was written becomes the object at its `close`, and nobody sees it before."""
        with self._translate(path):
            return obstore.open_writer(self.backend, path, buffer_size=PART_BYTES, max_concurrency=PARTS_IN_FLIGHT)

    @contextmanager
    def writing(self, path: str) -> Generator[None, None, None]:
        """Where a writer is used."""
        with self._translate(path):
            yield

    def list(self, folder: str) -> Iterator[tuple[str, int]]:
        """Path and bytes of the objects in a folder and below; asks for more only when more is taken."""
        with self._translate(folder):
            pages: Any = obstore.list(self.backend, prefix=folder or None)
        while True:
            with self._translate(folder):
                page: Any = next(pages, None)
            if page is None:
                return
            for found in page:
                yield found["path"], found["size"]

    def list_level(self, folder: str) -> tuple[Sequence[str], Sequence[str]]:
        """The folders in a folder and the objects in it, in order, without what lies below."""
        with self._translate(folder):
            found: Any = obstore.list_with_delimiter(self.backend, prefix=folder or None)
        return sorted(found["common_prefixes"]), sorted(one["path"] for one in found["objects"])

    def delete(self, paths: Sequence[str]) -> None:
        """Remove objects; those that are not there are fine."""
        if paths:
            with self._translate(paths[0]):
                obstore.delete(self.backend, list(paths))

    @contextmanager
    def _translate(self, path: str) -> Generator[None, None, None]:
        try:
            yield
        except (AlreadyExistsError, PreconditionError) as error:
            raise ConflictError(self.locate(path)) from error
        except (BaseError, OSError) as error:
            raise self._explain(path, error) from error

    def _explain(self, path: str, error: Exception) -> Exception:
        name, text = self.locate(path), str(error)
        if "NoSuchBucket" in text or "bucket does not exist" in text:
            endpoint = ENDPOINTS[self._scheme]
            return StoreError(f"{name}: there is no such bucket; create it, or mend the address (or {endpoint})")
        if isinstance(error, FileNotFoundError):
            return FileNotFoundError(2, "no such object", name)
        if "ConditionalRequestConflict" in text:
            return ConflictError(name)
        is_refused = isinstance(error, (PermissionDeniedError, UnauthenticatedError)) or "403 Forbidden" in text
        is_broken = "credential error" in text and "Unable to" in text
        if is_refused or is_broken or any(place in text for place in METADATA):
            reason = "the server refuses these credentials" if is_refused else "no credentials were found"
            reason = text.splitlines()[0].partition("credential error: ")[2] if is_broken else reason
            return StoreError(f"{name}: {reason}; {CREDENTIALS[self._scheme]}")
        reason = text.splitlines()[0][:300] if text else type(error).__name__
        return NetworkError(f"{name}: {reason}; see to the network and the address of the server ({ENDPOINTS[self._scheme]})")


def _retry_seconds() -> float:
    text = os.environ.get(RETRY_SECONDS, "180")
    try:
        return float(text)
    except ValueError as error:
        raise StoreError(f"{RETRY_SECONDS}={text!r}: expected a number of seconds") from error
