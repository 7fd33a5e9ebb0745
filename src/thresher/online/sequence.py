"""The training rows that a harvest gives, epoch after epoch, from any place."""

from collections.abc import Generator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from thresher.data.holdout import choose_records
from thresher.data.store import Batch, HookPointSpec
from thresher.errors import ConfigError, StoreError
from thresher.harvest.run import Harvest


class Place(NamedTuple):
    """Where a batch of the harvest stands."""

    epoch: int
    batch: int
    before: int
    """Rows of the sequence before it."""


class Block(NamedTuple):
    """The training rows of one batch of the harvest."""

    place: Place
    x: Float[Tensor, "row d_in"]
    """In the dtype of the harvest."""
    group: Int64[Tensor, "row"]
    """For each row the index of its hook point."""


class RowSequence:
    """A pure function of harvest, hook points, weights and seed; it does not depend on where it is read from.

    With `weights`, whole numbers by hook point, each batch of the harvest gives rows in just this proportion, as many as
    there are of the scarcest; of the others a random choice, another one in each epoch. Without, it gives all.
    """

    def __init__(
        self,
        harvest: Harvest,
        specs: Sequence[HookPointSpec],
        first: Sequence[Batch],
        *,
        weights: Sequence[int] | None,
        holdout: float,
        seed: int,
    ) -> None:
        """`first` are the first batches of the harvest, which are kept in memory."""
        self._harvest, self._specs, self._first = harvest, specs, first
        self._weights, self._holdout, self._seed = weights, holdout, seed

    def read(self, place: Place) -> Generator[Block, None, None]:
        """The blocks from a place on, without end. Raises StoreError when an epoch has no training rows."""
        epoch, number, before = place
        while True:
            start = before
            for batch in self._read_epoch(number):
                x, group = self._choose(batch, epoch)
                yield Block(Place(epoch, batch.index, before), x, group)
                before += len(x)
            if not number and before == start:
                raise StoreError(f"no rows to train on are left with holdout={self._holdout}; harvest more, hold out fewer")
            epoch, number = epoch + 1, 0

    def _read_epoch(self, number: int) -> Generator[Batch, None, None]:
        yield from self._first[number:]
        yield from self._harvest.read(range(max(number, len(self._first)), self._harvest.n_batches))

    def _choose(self, batch: Batch, epoch: int) -> tuple[Tensor, Tensor]:
        """The rows of a batch that are trained on."""
        records = {name: np.array([item.record for item in found], np.uint64) for name, found in batch.items.items()}
        held = {name: choose_records(found, self._holdout, self._seed) for name, found in records.items()}
        places: list[np.ndarray] = []
        for spec in self._specs:
            rows = batch.rows.get(spec.space)
            places.append(np.zeros(0, np.int64) if rows is None else np.flatnonzero(~held[spec.modality][rows.item.numpy()]))
        places = self._balance(places, epoch, batch.index)
        values = [
            batch.rows[spec.space].activations[spec.name][torch.from_numpy(found)]
            for spec, found in zip(self._specs, places, strict=True)
            if len(found)
        ]
        counts = torch.tensor([len(found) for found in places])
        x = torch.cat(values) if values else torch.empty(0, self._specs[0].width)
        return x, torch.repeat_interleave(torch.arange(len(places)), counts)

    def _balance(self, places: list[np.ndarray], epoch: int, batch: int) -> list[np.ndarray]:
        if self._weights is None:
            return places
        n = min(len(found) // weight for found, weight in zip(places, self._weights, strict=True))
        wanted = [n * weight for weight in self._weights]
        draws = [np.random.default_rng([self._seed, 2, epoch, batch, group]) for group in range(len(places))]
        return [
            found if len(found) == count else np.sort(draw.choice(found, count, replace=False))
            for found, count, draw in zip(places, wanted, draws, strict=True)
        ]


def reduce_weights(weights: Mapping[str, float], hook_points: Sequence[str]) -> list[int]:
    """Weights as the smallest whole numbers in their proportion, 1 for a hook point that is not named.

    Raises ConfigError when that takes numbers above 1000.
    """
    given = np.array([float(weights.get(name, 1.0)) for name in hook_points])
    for divisor in range(1, 1001):
        scaled = given / given.min() * divisor
        if np.abs(scaled - scaled.round()).max() < 1e-9 * divisor and scaled.max() <= 1000:
            return scaled.round().astype(int).tolist()
    raise ConfigError(f"weights={dict(weights)}: while a harvest goes on they must be in the proportion of small whole numbers")
