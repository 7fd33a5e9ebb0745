"""Shuffled batches of activations for training, and the held-out rows beside them."""

import queue
import threading
from collections.abc import Generator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from thresher.data.gather import ReusedMemory
from thresher.data.holdout import held_out, read_held_out
from thresher.data.mixing import Balance, share_out, to_integers, weigh, weigh_parts
from thresher.data.origins import Origin, find_width, list_origins
from thresher.data.readable import Readable
from thresher.data.reads import Reads, choose_reads, find_cache_room
from thresher.data.shuffle import ShuffledRows
from thresher.data.stream_config import StreamConfig
from thresher.errors import CheckpointError, StoreError

__all__ = [
    "ActivationStream",
    "Balance",
    "Drawn",
    "StreamBatch",
    "StreamConfig",
    "held_out",
    "read_held_out",
    "share_out",
]

PREFETCHED_BATCHES = 2
"""Batches that are ready before the trainer asks for them."""


class StreamBatch(NamedTuple):
    """What one training step sees; the rows of a hook point stand together, in the order of the hook points."""

    x: Float32[Tensor, "row d_in"]
    """Activations on the device."""
    group: Int64[Tensor, "row"]
    """For each row the index of its hook point."""


class Drawn(NamedTuple):
    """Rows of a batch that come from one hook point of one store."""

    store: Readable
    hook_point: str
    rows: Int64[np.ndarray, "row"]
    """Where they stand in the store, in the order of the batch."""


class _Position(NamedTuple):
    """Where a stream is."""

    taken: tuple[int, ...]
    """Per source the rows handed out."""
    credit: tuple[int, ...]
    """Per source what it is owed, in units of 1 / sum(weights) of a row."""


class _Made(NamedTuple):
    """A batch that is ready, or will be when the device has come to `event`."""

    batch: StreamBatch
    position: _Position
    event: "torch.cuda.Event | None"


class ActivationStream:
    """Endless shuffled batches over the training rows of one or more hook points of equal width, of one or more stores.

    The sequence is a pure function of stores, hook points and arguments; it does not depend on the speed of disk or threads,
    and goes on bit for bit from `state_dict`. Raises ConfigError (arguments), StoreError (no such hook point, different
    widths, no training rows).
    """

    def __init__(
        self,
        store: Readable,
        hook_points: Sequence[str],
        *,
        batch_size: int,
        holdout: float,
        seed: int,
        pool_rows: int,
        balance: Balance,
        device: torch.device,
        weights: Mapping[str, float] | None = None,
        store_weights: Sequence[float] | None = None,
        reads: Reads = "auto",
        share: tuple[int, int] = (0, 1),
    ) -> None:
        """`share` = (i, n) hands out only the i-th of n stretches of the rows of each batch."""
        weights = dict(weights or {})
        StreamConfig(batch_size=batch_size, holdout=holdout, pool_rows=pool_rows, weights=weights)
        self.d_in = find_width(store, hook_points)
        self.hook_points = tuple(hook_points)
        self._batch_size, self._device = batch_size, device
        place, n_shares = share
        self._own = slice(batch_size * place // n_shares, batch_size * (place + 1) // n_shares)
        self._settings: dict[str, Any] = {
            "store": store.fingerprint,
            "hook_points": list(hook_points),
            "batch_size": batch_size,
            "holdout": holdout,
            "seed": seed,
            "pool_rows": pool_rows,
            "balance": balance,
            "weights": weights,
            "store_weights": None if store_weights is None else list(store_weights),
        }
        # One for all copies to the device: they pass the trainer's work, and stay in order among themselves.
        self._cuda_stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        named = weigh({name: store.rows(name) for name in hook_points}, balance, weights)
        opened = list_origins(store, hook_points, holdout, seed, store_weights)
        self._groups = [source.group for source in opened]
        self._stores = [source.store for source in opened]
        infos = [source.store.hook_points[hook_points[source.group]] for source in opened]
        self.reads: Literal["cached", "direct"] = choose_reads(
            reads, infos, pool_rows=pool_rows, n_shares=n_shares, room=find_cache_room()
        )
        """How the rows are read."""
        self._sources = self._open_sources(opened, holdout=holdout, seed=seed, pool_rows=pool_rows)
        parts = [[source.weight for source in opened if source.group == index] for index in range(len(named))]
        self._weights = to_integers([each for weight, of in zip(named, parts, strict=True) for each in weigh_parts(weight, of)])
        zeros = (0,) * len(self._sources)
        self._position = _Position(zeros, zeros)

    @property
    def n_rows(self) -> int:
        """Training rows of all hook points."""
        return sum(source.n_rows for source in self._sources)

    @property
    def epoch(self) -> float:
        """Passes over the training rows so far."""
        return sum(self._position.taken) / self.n_rows

    def __iter__(self) -> Generator[StreamBatch, None, None]:
        """Batches from the current position on, made ahead by a thread that ends with the iterator."""
        ready: queue.Queue[_Made | BaseException] = queue.Queue(PREFETCHED_BATCHES)
        stop = threading.Event()
        thread = threading.Thread(target=self._produce, args=(ready, stop), name="stream-batches", daemon=True)
        thread.start()
        try:
            while True:
                made = ready.get()
                if isinstance(made, BaseException):
                    raise made
                self._position = made.position
                yield self._receive(made)
        finally:
            stop.set()
            while thread.is_alive():
                while not ready.empty():
                    ready.get_nowait()
                thread.join(timeout=0.01)

    def state_dict(self) -> dict[str, Any]:
        """Plain values that say where the stream is, after the last batch that was handed out."""
        return {
            "settings": dict(self._settings),
            "taken": list(self._position.taken),
            "credit": list(self._position.credit),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after the batch at which `state` was taken. Raises CheckpointError: of another store or other settings."""
        differing = [name for name, value in self._settings.items() if state["settings"].get(name) != value]
        if differing:
            lines = [f"{name}: saved {state['settings'].get(name)!r}, now {self._settings[name]!r}" for name in differing]
            raise CheckpointError("the stream's position was saved under other settings; " + "; ".join(lines))
        self._position = _Position(tuple(state["taken"]), tuple(state["credit"]))

    def trace(self, state: Mapping[str, Any]) -> tuple[StreamBatch, list[Drawn]]:
        """The batch after the one at which `state` was taken, and where its rows stand, source by source.

        Goes on from `state` itself. Not to be called while somebody iterates.
        """
        self.load_state_dict(state)
        position = self._position
        counts, _ = share_out(self._batch_size, self._weights, position.credit)
        drawn: list[Drawn] = []
        start = -self._own.start
        for store, group, source, taken, count in zip(
            self._stores, self._groups, self._sources, position.taken, counts, strict=True
        ):
            low, high = max(start, 0), max(min(start + count, self._own.stop - self._own.start), 0)
            rows = source.find_rows(taken + low - start, max(high - low, 0))
            drawn.append(Drawn(store, self.hook_points[group], rows))
            start += count
        batches = iter(self)
        batch = next(batches)
        batches.close()
        return batch, drawn

    def close(self) -> None:
        """End the reading threads; the stream cannot be used afterwards."""
        for source in self._sources:
            source.close()

    def _open_sources(self, opened: Sequence[Origin], *, holdout: float, seed: int, pool_rows: int) -> list[ShuffledRows]:
        """The training rows of each source; the rows in memory are shared out in proportion to the rows they have."""
        infos = [source.store.hook_points[self.hook_points[source.group]] for source in opened]
        total = sum(info.rows for info in infos)
        sources: list[ShuffledRows] = []
        for index, (source, info) in enumerate(zip(opened, infos, strict=True)):
            shuffled = ShuffledRows(
                source.store,
                info.name,
                held_out=source.held_out,
                pool_rows=max(1, pool_rows * info.rows // max(total, 1)),
                seed=seed,
                stream=index,
                device=self._device,
                cuda_stream=self._cuda_stream,
                reads=self.reads,
            )
            if shuffled.n_rows == 0:
                raise StoreError(
                    f"{source.store.path}: {info.name}: none of its {info.rows} rows is left for training with "
                    f"holdout={holdout}; harvest more records or hold out fewer"
                )
            sources.append(shuffled)
        return sources

    def _produce(self, ready: "queue.Queue[_Made | BaseException]", stop: threading.Event) -> None:
        try:
            with torch.cuda.stream(self._cuda_stream):
                for made in self._batches(self._position):
                    ready.put(made)
                    if stop.is_set():
                        return
        except BaseException as error:
            ready.put(error)

    def _batches(self, position: _Position) -> Generator[_Made, None, None]:
        first, stop = self._own.start, self._own.stop
        memory = ReusedMemory((stop - first, self.d_in), self._device)
        while True:
            counts, credit = share_out(self._batch_size, self._weights, position.credit)
            x = memory.take()
            start = -first
            for source, taken, count in zip(self._sources, position.taken, counts, strict=True):
                low, high = max(start, 0), min(start + count, stop - first)
                if low < high:
                    source.take_into(taken + low - start, x[low:high])
                start += count
            group = torch.from_numpy(np.repeat(self._groups, counts)[self._own]).to(self._device)
            taken = tuple(taken + count for taken, count in zip(position.taken, counts, strict=True))
            position = _Position(taken, tuple(credit))
            yield _Made(StreamBatch(x, group), position, self._mark())

    def _mark(self) -> "torch.cuda.Event | None":
        """When the device has done all that is queued for the batch."""
        if self._cuda_stream is None:
            return None
        event = torch.cuda.Event()
        event.record(self._cuda_stream)
        return event

    def _receive(self, made: _Made) -> StreamBatch:
        """The batch, for the CUDA stream that the caller works on."""
        if made.event is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_event(made.event)
            for tensor in made.batch:
                tensor.record_stream(current)
        return made.batch
