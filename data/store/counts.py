"""How many rows and items each batch has: known before they are written, several writers can each begin in the middle."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from thresher.data.store.header import read_header
from thresher.data.store.layout import COUNTS, MODALITIES
from thresher.data.store.places import open_storage
from thresher.data.store.storage import write_file
from thresher.errors import StoreError
from thresher.runs import canonical_json


class BatchCount(NamedTuple):
    """What one batch will add."""

    rows: Mapping[str, int]
    """Row space -> rows."""
    items: Mapping[str, int]
    """Modality -> items."""


class Counts(NamedTuple):
    """What each batch of a harvest adds, in the order of the batches."""

    rows: Mapping[str, npt.NDArray[np.int64]]
    """Row space -> rows by batch."""
    items: Mapping[str, npt.NDArray[np.int64]]
    """Modality -> items by batch."""


class CountLedger:
    """The counts of an unfinished store, kept in it part by part (a part: the batches of one part of the tables)."""

    def __init__(self, path: str | Path, n_batches: int) -> None:
        self._storage = open_storage(path)
        self._layout = read_header(self._storage).layout
        self._n_batches = n_batches
        self._n_parts = -(-n_batches // self._layout.batches_per_part)

    def missing(self) -> list[int]:
        """The parts that are not counted yet."""
        return [part for part in range(self._n_parts) if self._storage.size(_path(part)) is None]

    def batches(self, part: int) -> range:
        """The batches of a part."""
        size = self._layout.batches_per_part
        return range(part * size, min((part + 1) * size, self._n_batches))

    def write(self, part: int, counts: Sequence[BatchCount]) -> None:
        """Keep the counts of the batches of one part."""
        assert len(counts) == len(self.batches(part)), "one for each batch"
        write_file(self._storage, _path(part), [canonical_json([count._asdict() for count in counts])])

    def read(self) -> Counts:
        """The counts of all batches. Raises StoreError when a part is missing or damaged."""
        found = [count for part in range(self._n_parts) for count in self._read(part)]
        return Counts(
            {space: np.array([c.rows.get(space, 0) for c in found], np.int64) for space in self._layout.shard_rows},
            {modality: np.array([c.items.get(modality, 0) for c in found], np.int64) for modality in MODALITIES},
        )

    def _read(self, part: int) -> list[BatchCount]:
        path = _path(part)
        try:
            counts = [BatchCount(**count) for count in json.loads(self._storage.read(path))]
            if len(counts) == len(self.batches(part)):
                return counts
            problem: object = f"{len(counts)} batches, expected {len(self.batches(part))}"
        except (OSError, ValueError, TypeError) as error:
            problem = error
        raise StoreError(
            f"{self._storage.locate(path)}: no counts of batches ({problem}); the store is damaged: harvest it again"
        )


def _path(part: int) -> str:
    return f"{COUNTS}/{part:08d}.json"
