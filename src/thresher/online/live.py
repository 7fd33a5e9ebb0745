"""Shuffled batches of rows that a harvest makes while they are trained on."""

from collections import deque
from collections.abc import Callable, Generator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from thresher.data.stream import Drawn, StreamBatch
from thresher.errors import CheckpointError
from thresher.online.ahead import read_ahead
from thresher.online.sequence import Block, Place

STAGES = 64
"""Groups that a stratum draws from; fewer in a pool of few rows."""
GROUP_ROWS = 32
"""A group has at least so many rows."""
READY_BATCHES = 2
"""Batches that are ready before the trainer asks for them."""


Read = Callable[[Place], Generator[Block, None, None]]


class Position(NamedTuple):
    """Where a stream is."""

    taken: int
    """Rows handed out."""
    place: Place
    """From where the harvest has to go on for the rows that come next."""


class Window:
    """An endless sequence of rows, shuffled as it comes by a pool that slides over it.

    The sequence is cut into groups of equal size. Stratum t takes from each of the groups t - stages + 1 to t a random
    1 / stages of its rows, the share of their age, and mixes them. So a row waits for a time that is uniform over the length
    of the pool, no row is lost, and what a stratum holds follows from t and the sequence alone.
    """

    def __init__(self, pool_rows: int, seed: int) -> None:
        self.stages = max(1, min(STAGES, pool_rows // GROUP_ROWS))
        self.group_rows = max(1, pool_rows // (self.stages + 1))
        self._seed = seed
        rising = [self.group_rows * (t + 1) // self.stages for t in range(self.stages - 1)]
        self._before = np.cumsum([0, *rising])
        """Rows before each of the strata that are not full yet, and before the first full one."""

    def find(self, taken: int) -> tuple[int, int]:
        """The stratum of the row after `taken` others, and where in it."""
        if taken >= self._before[-1]:
            n, offset = divmod(taken - int(self._before[-1]), self.group_rows)
            return self.stages - 1 + n, offset
        stratum = int(np.searchsorted(self._before, taken, side="right")) - 1
        return stratum, taken - int(self._before[stratum])

    def oldest(self, stratum: int) -> int:
        """The first row of the sequence that a stratum or a later one needs."""
        return max(0, stratum - self.stages + 1) * self.group_rows

    def mix(self, stratum: int, groups: Mapping[int, tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """The rows of a stratum and their hook points, from those of its groups."""
        parts: list[tuple[Tensor, Tensor]] = []
        for number in range(max(0, stratum - self.stages + 1), stratum + 1):
            first, last = (self.group_rows * age // self.stages for age in (stratum - number, stratum - number + 1))
            order = np.random.default_rng([self._seed, 0, number]).permutation(self.group_rows)[first:last]
            parts.append((groups[number][0][order], groups[number][1][order]))
        x, group = (torch.cat(each) for each in zip(*parts, strict=True))
        order = torch.from_numpy(np.random.default_rng([self._seed, 1, stratum]).permutation(len(x)))
        return x[order], group[order]


class LiveStream:
    """Endless batches of the rows of a sequence, in the order of a `Window`; the rows of a hook point stand together.

    A thread harvests while another makes batches and the caller trains. The batches are a pure function of sequence and
    arguments, and go on bit for bit from `state_dict`: the harvest then starts at the oldest row that is still in the pool.
    Memory: half of `pool_rows` rows, and as many as the threads are ahead.
    """

    n_rows = 0
    """Training rows of an epoch: unknown."""

    def __init__(
        self, read: Read, d_in: int, *, batch_size: int, pool_rows: int, seed: int, ahead: int, device: torch.device
    ) -> None:
        """`read` gives the sequence from a place on; `ahead` batches of the harvest are ready before they are needed."""
        self.d_in, self._read, self._ahead, self._device = d_in, read, ahead, device
        self._batch_size, self._window = batch_size, Window(pool_rows, seed)
        self._settings = {"batch_size": batch_size, "pool_rows": pool_rows, "seed": seed}
        self._position = Position(0, Place(0, 0, 0))

    def __iter__(self) -> Generator[StreamBatch, None, None]:
        """Batches from the current position on."""
        made = read_ahead(self._make(self._position), READY_BATCHES)
        try:
            for batch, position in made:
                self._position = position
                x, group = (each.to(self._device, non_blocking=True) for each in batch)
                yield StreamBatch(x, group)
        finally:
            made.close()

    def state_dict(self) -> dict[str, Any]:
        """Plain values that say where the stream is, after the last batch that was handed out."""
        return {"settings": dict(self._settings), "taken": self._position.taken, "place": list(self._position.place)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after the batch at which `state` was taken. Raises CheckpointError: of other settings."""
        if state.get("settings") != self._settings or "place" not in state:
            raise CheckpointError(f"the stream's position was saved under {state.get('settings')}, now {self._settings}")
        self._position = Position(int(state["taken"]), Place(*state["place"]))

    def trace(self, state: Mapping[str, Any]) -> tuple[StreamBatch, list[Drawn]]:
        """The batch after the one at which `state` was taken. Its rows stand nowhere."""
        self.load_state_dict(state)
        batches = iter(self)
        batch = next(batches)
        batches.close()
        return batch, []

    def close(self) -> None:
        """Nothing: the threads end with the iterator."""

    def _make(self, position: Position) -> Generator[tuple[StreamBatch, Position], None, None]:
        taken, strata = position.taken, self._mix(position)
        x, group, place = next(strata)
        offset = self._window.find(taken)[1]
        x, group = x[offset:], group[offset:]
        try:
            while True:
                while len(x) < self._batch_size:
                    more, of_more, place = next(strata)
                    x, group = torch.cat([x, more]), torch.cat([group, of_more])
                taken += self._batch_size
                order = group[: self._batch_size].argsort(stable=True)
                batch = StreamBatch(x[: self._batch_size][order].float(), group[: self._batch_size][order])
                x, group = x[self._batch_size :], group[self._batch_size :]
                if self._device.type == "cuda":
                    batch = StreamBatch(*(each.pin_memory() for each in batch))
                yield batch, Position(taken, place.find(self._window.oldest(self._window.find(taken)[0])))
        finally:
            strata.close()

    def _mix(self, position: Position) -> Generator[tuple[Tensor, Tensor, "_Places"], None, None]:
        """The strata from the one at a position on."""
        blocks = read_ahead(self._read(position.place), self._ahead)
        window, places = self._window, _Places()
        stratum = window.find(position.taken)[0]
        rows = _Rows(blocks, places, window.oldest(stratum))
        groups: dict[int, tuple[Tensor, Tensor]] = {}
        try:
            while True:
                oldest = window.oldest(stratum) // window.group_rows
                groups = {number: found for number, found in groups.items() if number >= oldest}
                for number in range(max(groups, default=oldest - 1) + 1, stratum + 1):
                    groups[number] = rows.take(window.group_rows)
                yield *window.mix(stratum, groups), places
                stratum += 1
        finally:
            blocks.close()


class _Places:
    """Where the batches of the harvest stand that rows in the pool come from."""

    def __init__(self) -> None:
        self._known: deque[Place] = deque()

    def note(self, place: Place) -> None:
        """A batch has come."""
        self._known.append(place)

    def find(self, row: int) -> Place:
        """The batch that holds a row of the sequence; those before it are forgotten."""
        while len(self._known) > 1 and self._known[1].before <= row:
            self._known.popleft()
        return self._known[0]


class _Rows:
    """The rows of blocks from a row of the sequence on, in pieces of any size."""

    def __init__(self, blocks: Generator[Block, None, None], places: _Places, first: int) -> None:
        self._blocks, self._places, self._next = blocks, places, first
        self._left: deque[tuple[Tensor, Tensor]] = deque()
        self._n_left = 0

    def take(self, n: int) -> tuple[Tensor, Tensor]:
        """The next `n` rows and their hook points."""
        while self._n_left < n:
            block = next(self._blocks)
            self._places.note(block.place)
            skipped = max(0, self._next + self._n_left - block.place.before)
            x, group = block.x[skipped:], block.group[skipped:]
            if len(x):
                self._left.append((x, group))
                self._n_left += len(x)
        x, group = (torch.cat(each) for each in zip(*self._left, strict=True))
        self._left = deque([(x[n:], group[n:])])
        self._n_left -= n
        self._next += n
        return x[:n].clone(), group[:n]
