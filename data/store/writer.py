"""Writing a store: batches go through a bounded queue to one thread that does all the disk work."""

import queue
import threading
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from thresher.data.records import Concept
from thresher.data.store.checks import check_batch, check_columns
from thresher.data.store.codecs import Profile
from thresher.data.store.header import Header, check_same, plain, read_header, write_header
from thresher.data.store.layout import MANIFEST, RUN, ZARR, Layout, check_hook_points, plan_layout
from thresher.data.store.places import open_storage, parse_location
from thresher.data.store.plan import Share
from thresher.data.store.reader import open_store
from thresher.data.store.schema import Batch, HookPointSpec
from thresher.data.store.sink import Sink
from thresher.errors import NetworkError, StoreError

QUEUED_BATCHES = 2
"""Batches that wait for the disk before `write` blocks."""


class StoreWriter:
    """Creates a store, or goes on with an unfinished one of the same identity.

    Use it as a context manager. Everything committed survives an exception, a kill and a full disk; what was not yet
    committed comes again when the same batches are written again. When the disk has failed and then something else, the
    block ends with the error of the disk. Raises StoreError: the store is complete, is of another identity or format
    version, or has another writer.

    `profile` says how chunks are encoded; with `portable_dtype`, `zarr.json` calls bfloat16 uint16, which readers know that do
    not know bfloat16. This package reads the same values whatever they are.

    Several processes write one store together when one of them, the lead, opens it as usual, calls `plan` (unless
    `is_planned`), `admit` and in the end `conclude`, and all of them (the lead by a second writer) open it with their
    `share` in between, before any of them writes. The lead must stay open until the others are closed.
    """

    next_batch: int
    """Index of the batch to go on with; `write` drops rows and items of it that are already stored."""
    is_complete: bool
    """True after `finish`."""

    def __init__(
        self,
        path: str | Path,
        identity: Mapping[str, Any],
        hook_points: Sequence[HookPointSpec],
        concepts: Sequence[Concept],
        *,
        items_per_shard: int | None = None,
        profile: Profile = "raw",
        portable_dtype: bool = False,
        share: Share | None = None,
    ) -> None:
        self._path = path = parse_location(path)
        check_hook_points(path, hook_points)
        if items_per_shard is not None and items_per_shard < 1:
            raise StoreError(f"{path}: items_per_shard={items_per_shard}: give at least 1, or None for an automatic choice")
        self._storage = open_storage(path)
        layout = Layout({}, 0, profile=profile, portable_dtype=portable_dtype)
        self._header = Header(plain(dict(identity)), tuple(hook_points), tuple(concepts), layout)
        self._items_per_shard = items_per_shard
        self._share = share
        self._sink: Sink | None = None
        self._error: BaseException | None = None
        self.is_complete = False
        with self._explain_errors():
            self._lock = self._storage.lock() if share is None else self._storage.join()
        try:
            self._resume()
        except BaseException:
            self._lock.release()
            raise
        self._next = self.next_batch = self._sink.start.batch if self._sink else 0
        self._queue: queue.Queue[Batch | None] = queue.Queue(QUEUED_BATCHES)
        self._thread = threading.Thread(target=self._work, name="store-writer", daemon=True)
        self._thread.start()

    def write(self, batch: Batch) -> None:
        """Hand over the next batch; blocks while the disk is two batches behind.

        Its tensors belong to the writer from now on: they must not be changed. Raises StoreError: not the next batch, not as
        the hook points say, or whatever went wrong on the disk since the last call.
        """
        self.raise_error()
        if batch.index != self._next and batch.index not in self.missing(batch.index + 1)[:1]:
            raise StoreError(f"{self._path}: batch {batch.index}, expected batch {self._next}; write them in order")
        check_batch(batch, self._header.hook_points)
        if self._sink is None:
            self._create(batch)
        check_columns(batch, self._header.layout.columns)
        self._next = batch.index + 1
        self._queue.put(batch)

    def raise_error(self) -> None:
        """Raise what has gone wrong on the disk, if anything has: StoreError that says how to go on."""
        if self._error is not None:
            with self._explain_errors():
                raise self._error

    def missing(self, stop: int) -> list[int]:
        """The batches from here up to `stop` (exclusive) that must be written, in order.

        All of them, but for a store that a repair has made holes in: there only those that fill the holes.
        """
        found: list[int] = []
        batch: int | None = self._next
        while (batch := self._next_missing(batch)) is not None and batch < stop:
            found.append(batch)
            batch += 1
        return found

    def finish(self) -> None:
        """Wait for the disk, store what is left, write moments and manifest. From then on the store never changes.

        Of a store that several write, only the share is stored, and the lock is kept until the end of the block.
        """
        self.raise_error()
        self._stop()
        self.raise_error()
        if self._sink is None:
            self._create(None)
        assert self._sink is not None
        with self._explain_errors():
            if self._share is not None:
                self._sink.commit_rest()
                return
            self._sink.finish()
        self.is_complete = True
        self._lock.release()

    @property
    def is_planned(self) -> bool:
        """Whether the sizes of shards are fixed, by an earlier harvest or by `plan`."""
        return self._sink is not None

    def plan(self, first: Batch) -> None:
        """Fix the sizes of shards by the first batch, which is not stored by this."""
        check_batch(first, self._header.hook_points)
        self._create(first)

    def admit(self) -> None:
        """Let in the other writers. From now on this one can only `conclude`."""
        self._stop()
        with self._explain_errors():
            self._lock.share()

    def conclude(self) -> None:
        """Finish a store of which the others have stored everything. Raises StoreError when something is missing."""
        with self._explain_errors():
            sink = Sink(self._storage, self._header)
            if sink.is_open or sink.next_needed(0) is not None:
                raise StoreError(
                    f"{self._path}: {sink.describe()}, the rest is missing; rerun the same harvest command to resume"
                )
            sink.finish()
        self.is_complete = True
        self._lock.release()

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        # What was handed over before a mistake is stored; who is asked to stop does not wait for it.
        if error is not None and not isinstance(error, Exception) and self._error is None:
            self._error = error
        self._stop()
        if self._sink is not None and not self.is_complete:
            self._sink.discard()
        self._lock.release()
        # What went wrong later is often a consequence, and would hide what is to be mended.
        if isinstance(error, Exception) and self._error not in (error, error.__cause__):
            self.raise_error()

    def _resume(self) -> None:
        if self._storage.size(RUN) is None:
            if any(True for _ in self._storage.list_files(ZARR)):
                raise StoreError(f"{self._path}: holds {ZARR} but no {RUN}: not ours to continue; choose another `out`")
            return
        stored = read_header(self._storage)
        is_complete = self._storage.size(MANIFEST) is not None
        check_same(self._storage, stored, self._header, is_complete=is_complete)
        if is_complete:
            open_store(self._path)  # of a damaged one it says what to do
            raise StoreError(f"{self._path}: this store is complete; open it with open_store, or choose another `out`")
        self._header = self._header._replace(layout=stored.layout)
        with self._explain_errors():
            self._sink = Sink(self._storage, self._header, self._share)

    def _next_missing(self, batch: int) -> int | None:
        return batch if self._sink is None else self._sink.next_needed(batch)

    def _create(self, first: Batch | None) -> None:
        asked = self._header.layout
        planned = plan_layout(self._header.hook_points, first, self._items_per_shard)
        layout = planned._replace(profile=asked.profile, portable_dtype=asked.portable_dtype)
        self._header = self._header._replace(layout=layout)
        with self._explain_errors():
            write_header(self._storage, self._header)
            self._sink = Sink(self._storage, self._header)

    def _work(self) -> None:
        while (batch := self._queue.get()) is not None:
            if self._error is not None:
                continue
            assert self._sink is not None
            try:
                self._sink.append(batch)
            except BaseException as error:
                self._error = error
                self._sink.discard()

    def _stop(self) -> None:
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()

    @contextmanager
    def _explain_errors(self) -> Generator[None, None, None]:
        try:
            yield
        except (OSError, NetworkError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            stored = self._sink.describe() if self._sink else "nothing is stored yet"
            raise StoreError(
                f"{self._path}: cannot write the store ({reason}); {stored}; "
                "mend that and rerun the same harvest command to resume"
            ) from error
