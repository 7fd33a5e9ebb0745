"""Shuffled batches of activations for training, and the held-out rows beside them."""

import queue
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

from thresher.config import config
from thresher.data.pool import ReusedMemory
from thresher.data.records import Modality
from thresher.data.shuffle import ShuffledRows
from thresher.data.store import Store
from thresher.errors import CheckpointError, ConfigError, StoreError

Balance = Literal["equal", "rows"]
PREFETCHED_BATCHES = 2
"""Batches that are ready before the trainer asks for them."""


@config
class StreamConfig:
    """How training reads a store."""

    batch_size: int = 4096
    """Rows of a batch."""
    holdout: float = 0.05
    """Fraction of the source's records that training never sees; they serve evaluation and analysis."""
    pool_rows: int = 1_000_000
    """Rows held in memory, of all hook points together. What fits is shuffled uniformly, more piece by piece."""
    balance: Balance = "equal"
    """`equal`: every batch has as many rows of each hook point; `rows`: in proportion to their rows in the store."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"batch_size={self.batch_size}: give at least 1")
        if not 0 <= self.holdout < 1:
            raise ConfigError(f"holdout={self.holdout}: give a fraction from 0 to below 1")
        if self.pool_rows < 1:
            raise ConfigError(f"pool_rows={self.pool_rows}: give at least 1; a million shuffles well")


class StreamBatch(NamedTuple):
    """What one training step sees; the rows of a hook point stand together, in the order of the hook points."""

    x: Float32[Tensor, "row d_in"]
    """Activations on the device."""
    group: Int64[Tensor, "row"]
    """For each row the index of its hook point."""


class _Position(NamedTuple):
    """Where a stream is."""

    taken: tuple[int, ...]
    """Per hook point the rows handed out."""
    credit: tuple[int, ...]
    """Per hook point what it is owed, in units of 1 / sum(weights) of a row."""


class _Made(NamedTuple):
    """A batch that is ready, or will be when the device has come to `event`."""

    batch: StreamBatch
    position: _Position
    event: "torch.cuda.Event | None"


class ActivationStream:
    """Endless shuffled batches over the training rows of one or more hook points of equal width.

    The sequence is a pure function of store, hook points and arguments; it does not depend on the speed of disk or threads,
    and goes on bit for bit from `state_dict`. Raises ConfigError (arguments), StoreError (no such hook point, different
    widths, no training rows).
    """

    def __init__(
        self,
        store: Store,
        hook_points: Sequence[str],
        *,
        batch_size: int,
        holdout: float,
        seed: int,
        pool_rows: int,
        balance: Balance,
        device: torch.device,
    ) -> None:
        StreamConfig(batch_size=batch_size, holdout=holdout, pool_rows=pool_rows, balance=balance)
        self.d_in = _common_width(store, hook_points)
        self.hook_points = tuple(hook_points)
        self._batch_size, self._device = batch_size, device
        self._settings: dict[str, Any] = {
            "store": store.fingerprint,
            "hook_points": list(hook_points),
            "batch_size": batch_size,
            "holdout": holdout,
            "seed": seed,
            "pool_rows": pool_rows,
            "balance": balance,
        }
        # One for all copies to the device: they pass the trainer's work, and stay in order among themselves.
        self._cuda_stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._sources = self._open_sources(store, holdout=holdout, seed=seed, pool_rows=pool_rows)
        self._weights = [1 if balance == "equal" else source.n_rows for source in self._sources]
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

    def __iter__(self) -> Iterator[StreamBatch]:
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

    def close(self) -> None:
        """End the reading threads; the stream cannot be used afterwards."""
        for source in self._sources:
            source.close()

    def _open_sources(self, store: Store, *, holdout: float, seed: int, pool_rows: int) -> list[ShuffledRows]:
        """The training rows of each hook point; the rows in memory are shared out in proportion to the rows they have."""
        total = sum(store.rows(name) for name in self.hook_points)
        modalities: set[Modality] = {store.hook_points[name].modality for name in self.hook_points}
        held = {modality: held_out(store, modality, holdout, seed) for modality in modalities}
        sources: list[ShuffledRows] = []
        for index, name in enumerate(self.hook_points):
            n_rows = store.rows(name)
            source = ShuffledRows(
                store,
                name,
                held_out=held[store.hook_points[name].modality],
                pool_rows=max(1, pool_rows * n_rows // max(total, 1)),
                seed=seed,
                stream=index,
                device=self._device,
                cuda_stream=self._cuda_stream,
            )
            if source.n_rows == 0:
                raise StoreError(
                    f"{store.path}: {name}: none of its {n_rows} rows is left for training with holdout={holdout}; "
                    "harvest more records or hold out fewer"
                )
            sources.append(source)
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
        memory = ReusedMemory((self._batch_size, self.d_in), self._device)
        while True:
            counts, credit = share_out(self._batch_size, self._weights, position.credit)
            x = memory.take()
            start = 0
            for source, taken, count in zip(self._sources, position.taken, counts, strict=True):
                source.take_into(taken, x[start : start + count])
                start += count
            group = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)).to(self._device)
            taken = tuple(taken + count for taken, count in zip(position.taken, counts, strict=True))
            position = _Position(taken, tuple(credit))
            event = None
            if self._cuda_stream is not None:
                event = torch.cuda.Event()
                event.record(self._cuda_stream)
            yield _Made(StreamBatch(x, group), position, event)

    def _receive(self, made: _Made) -> StreamBatch:
        """The batch, for the CUDA stream that the caller works on."""
        if made.event is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_event(made.event)
            for tensor in made.batch:
                tensor.record_stream(current)
        return made.batch


def share_out(n: int, weights: Sequence[int], credit: Sequence[int]) -> tuple[list[int], list[int]]:
    """Divide `n` rows by weight: the counts, and the credit to give to the next call.

    What a weight is owed and did not get (in units of 1 / sum(weights) of a row) is carried over, so that counts of many
    calls add up to the exact proportion within a row or two.
    """
    total = sum(weights)
    owed = [n * weight + carried for weight, carried in zip(weights, credit, strict=True)]
    counts = [max(0, value // total) for value in owed]
    left = [value - count * total for value, count in zip(owed, counts, strict=True)]
    while (missing := n - sum(counts)) != 0:
        step = 1 if missing > 0 else -1
        candidates = [index for index, count in enumerate(counts) if step > 0 or count > 0]
        chosen = max(candidates, key=lambda index: step * left[index])
        counts[chosen] += step
        left[chosen] -= step * total
    return counts, left


def held_out(store: Store, modality: Modality, fraction: float, seed: int) -> Bool[np.ndarray, "item"]:
    """Which items of a modality are held out: all items of about `fraction` of the records.

    Image and captions of one record are always on the same side. A pure function of record and seed (SplitMix64, Steele,
    Lea & Flood 2014), so that it does not change when a store grows.
    """
    records = store.items(modality, columns=["record"])["record"].to_numpy().astype(np.uint64)
    start = _mix(np.array([seed % 2**64], np.uint64))
    return _mix(records ^ start) < np.uint64(min(int(fraction * 2.0**64), 2**64 - 1))


def read_held_out(
    store: Store, hook_point: str, *, fraction: float, seed: int, limit: int | None
) -> tuple[Float[Tensor, "row d_in"], Int64[np.ndarray, "row"]]:
    """The held-out rows of a hook point in float32, and the item of each row, in the order of the store.

    With `limit` a random choice of so many of them, the same for the same seed. Raises StoreError when there are none.
    """
    mask = held_out(store, store.hook_points[hook_point].modality, fraction, seed)
    items = store.item_of(hook_point)
    rows = np.flatnonzero(mask[items])
    if len(rows) == 0:
        raise StoreError(
            f"{store.path}: {hook_point}: no rows are held out with holdout={fraction}; harvest more records or hold out more"
        )
    if limit is not None and limit < len(rows):
        rows = np.sort(np.random.default_rng(seed).choice(rows, limit, replace=False))
    return store.read_rows(hook_point, rows).float(), items[rows]


def _mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """One step of SplitMix64: a bijection of 64-bit words that looks random."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _common_width(store: Store, hook_points: Sequence[str]) -> int:
    if not hook_points or len(set(hook_points)) < len(hook_points):
        raise ConfigError(f"hook_points={list(hook_points)}: give at least one, each once")
    unknown = [name for name in hook_points if name not in store.hook_points]
    if unknown:
        raise StoreError(f"{store.path}: no hook point {unknown[0]!r}; the store has {', '.join(store.hook_points)}")
    widths = {name: store.hook_points[name].width for name in hook_points}
    if len(set(widths.values())) > 1:
        found = ", ".join(f"{name} has {width}" for name, width in widths.items())
        raise StoreError(f"{store.path}: one dictionary needs hook points of one width, but {found}; train one for each width")
    return widths[hook_points[0]]
