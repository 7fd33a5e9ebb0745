"""Who may write a store that lies in a bucket, where nothing ends a lock by itself when its holder dies."""

import contextlib
import fcntl
import json
import os
import re
import socket
import tempfile
import uuid
from pathlib import Path

from thresher.data.store.layout import LOCK
from thresher.data.store.objects import ABSENT, ConflictError, Objects, Version
from thresher.errors import NetworkError, StoreError
from thresher.progress import log
from thresher.runs import canonical_json

CLAIM_BYTES = 64
"""An object of at most so many bytes where a record belongs is no record, but the claim of a writer to write it."""


class Hold:
    """A right to write that rests on the object `.lock` staying as it is."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._version = ABSENT

    def check(self) -> None:
        """Raise StoreError when the store was taken over, or its lock released."""
        if self._objects.measure(LOCK)[1] != self._version:
            raise self._lost()

    def create(self, path: str, content: bytes) -> None:
        """Create an object that nobody has created yet. Raises StoreError when somebody has."""
        expected = ABSENT
        while True:
            # After the object was looked at: a claim of somebody who has taken over since then is another version of it.
            self.check()
            with contextlib.suppress(ConflictError):
                self._objects.put(path, content, expected)
                return
            try:
                found, expected = self._objects.get(path)
            except FileNotFoundError:
                expected = ABSENT
                continue
            if found == content:  # the answer to our own write was lost, and it was repeated
                return
            if len(found) > CLAIM_BYTES:
                raise self._lost()

    def _lost(self) -> StoreError:
        return StoreError(
            f"{self._objects.url}: another harvest has taken this store over; this one ends, what it has committed stays"
        )


class ObjectLock(Hold):
    """The object `.lock`: empty when nobody writes, else the record of who does.

    It changes hands by conditional writes only. A record is taken over when its holder is proven to be gone (a file of this
    machine that he held locked is not locked any more), or when somebody has said so (`abandon`). No clock decides anything.
    """

    def __init__(self, objects: Objects) -> None:
        super().__init__(objects)
        self._token = uuid.uuid4().hex
        self._proof, self._descriptor = _hold_proof(self._token)
        try:
            self.has_taken_over = self._take()
        except BaseException:
            self._drop_proof()
            self._proof.unlink(missing_ok=True)
            raise

    def claim(self, path: str) -> bool:
        """Keep whoever held the lock before from creating an object; False when it is there already."""
        claim = f"{self._token}\n".encode()
        with contextlib.suppress(ConflictError):
            self._objects.put(path, claim, ABSENT)
            return True
        found, version = self._objects.get(path)
        if len(found) > CLAIM_BYTES:
            return False
        with contextlib.suppress(ConflictError):
            self._objects.put(path, claim, version)
            return True
        return False

    def share(self) -> None:
        """Let in the writers that join."""
        self._version = self._replace(self._describe(is_shared=True))

    def release(self) -> None:
        """Let another writer in."""
        if self._descriptor < 0:
            return
        try:
            with contextlib.suppress(StoreError, FileNotFoundError):  # it is somebody else's by now
                self._replace(b"")
            self._proof.unlink(missing_ok=True)
        except NetworkError as error:
            log(f"the lock could not be released; the next harvest on this machine takes it over ({error})")
        self._drop_proof()

    def _take(self) -> bool:
        """Become the holder; True when that ends the hold of somebody else."""
        record, found, version = self._describe(is_shared=False), b"", ABSENT
        while True:
            try:
                self._version = self._objects.put(LOCK, record, version)
                break
            except ConflictError:
                found, version = self._objects.get(LOCK)
            if found == record:  # the answer to our own write was lost, and it was repeated
                self._version, found = version, b""
                break
            if found and not _is_gone(found):
                raise refuse(self._objects.url, found)
        if (proof := _find_proof(found)) is not None:
            proof.unlink(missing_ok=True)
        return bool(found)

    def _replace(self, content: bytes) -> Version:
        try:
            return self._objects.put(LOCK, content, self._version)
        except ConflictError as error:
            raise self._lost() from error

    def _describe(self, *, is_shared: bool) -> bytes:
        return canonical_json(
            {"token": self._token, "host": socket.gethostname(), "process": os.getpid(), "proof": str(self._proof)}
            | {"shared": is_shared, "abandoned": False}
        )

    def _drop_proof(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


class JoinedLock(Hold):
    """The part of one of several writers in the lock of the one who has let them in."""

    def __init__(self, objects: Objects) -> None:
        super().__init__(objects)
        try:
            found, self._version = objects.get(LOCK)
        except FileNotFoundError:
            found = b""
        if not (found and _read(found).get("shared")):
            raise refuse(objects.url, found)

    def share(self) -> None:
        """Only who holds the lock can share it."""
        raise StoreError(f"{self._objects.url}: this writer has joined; only the lead lets others in")

    def release(self) -> None:
        """Nothing is held."""


def abandon(objects: Objects) -> str:
    """Say that the holder of a store is gone for good, so that the next writer takes it over; gives who that was."""
    try:
        found, version = objects.get(LOCK)
    except FileNotFoundError:
        found, version = b"", ABSENT
    if not found:
        return ""
    record = _read(found)
    try:
        objects.put(LOCK, canonical_json(record | {"abandoned": True}), version)
    except ConflictError as error:
        raise StoreError(f"{objects.url}: its lock has changed hands just now; look again") from error
    return f"process {record.get('process')} on {record.get('host')}"


def refuse(url: str, found: bytes) -> StoreError:
    """The error for a store that somebody else writes."""
    record = _read(found) if found else {}
    who = f" (process {record.get('process')} on {record.get('host')})" if record else ""
    return StoreError(
        f"{url}: another harvest is writing this store{who}; wait for it, or choose another `out`. If that process is gone for "
        f"good, say so by `thresher store unlock {url}`"
    )


def _is_gone(found: bytes) -> bool:
    record, proof = _read(found), _find_proof(found)
    if record.get("abandoned"):
        return True
    return not record.get("shared") and proof is not None and _is_unlocked(proof)


def _hold_proof(token: str) -> tuple[Path, int]:
    """A locked file of this machine that tells others on it, by not being locked, that this process has ended."""
    path = Path(tempfile.gettempdir()) / f"thresher-{token}.lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return path, descriptor


def _find_proof(found: bytes) -> Path | None:
    """The file that a record names, if it is one of ours by its name."""
    record = _read(found)
    path = Path(str(record.get("proof", "")))
    return path if re.fullmatch(r"thresher-[0-9a-f]{32}\.lock", path.name) else None


def _is_unlocked(proof: Path) -> bool:
    """Whether the file is there and nobody holds it locked; one that is not there proves nothing."""
    try:
        descriptor = os.open(proof, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)


def _read(found: bytes) -> dict[str, object]:
    try:
        record = json.loads(found)
    except ValueError:
        return {}
    return dict(record) if isinstance(record, dict) else {}
