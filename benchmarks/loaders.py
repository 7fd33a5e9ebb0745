"""Raw reads, the parts of a stream, and other loaders; measured against the stream by `stream.py`."""

import itertools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from store import BLOCK
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from thresher.data.gather import Gatherer, allocate_rows
from thresher.data.shuffle import UNIT_BYTES
from thresher.data.store import Store

BATCH = 4096
HOOK_POINT = "vision.0"
LOADED_ROWS = 1 << 16
"""Rows that a mixing buffer is given at once."""


class Rows(Dataset[Tensor]):
    """Rows of a file of bfloat16 through `np.memmap`."""

    def __init__(self, path: Path, width: int) -> None:
        self.bits = np.memmap(path, np.int16, "r").reshape(-1, width)

    def __len__(self) -> int:
        return len(self.bits)

    def __getitem__(self, index: int) -> Tensor:
        return torch.from_numpy(self.bits[index].copy()).view(torch.bfloat16)

    def __getitems__(self, indices: list[int]) -> Tensor:
        """A whole batch at once: without this a DataLoader spends its time per row."""
        return self.read(np.array(indices))

    def read(self, indices: np.ndarray) -> Tensor:
        return torch.from_numpy(self.bits[indices]).view(torch.bfloat16).float()


class Parts:
    """What a batch of a CPU is made by, each part on its own, in one thread, over as many rows as the store has."""

    def __init__(self, n_rows: int, pool_rows: int, width: int) -> None:
        rows = allocate_rows((pool_rows, width), torch.bfloat16, torch.device("cpu")).zero_()
        self.pool, self.gatherer = rows.view(torch.int16).numpy(), Gatherer(rows)
        self.places = np.random.default_rng(0).integers(0, pool_rows, n_rows // BATCH * BATCH)
        self.batches = [torch.zeros((BATCH, width)) for _ in range(4)]

    def read(self, files: list[Path]) -> None:
        """Every byte of the shards, into one place of the pool after the other."""
        memory, place = memoryview(self.pool).cast("B"), 0
        for file in files:
            descriptor = os.open(file, os.O_RDONLY)
            offset = 0
            while n := os.preadv(descriptor, [memory[place : place + UNIT_BYTES]], offset):
                offset += n
                place = place + UNIT_BYTES if place + 2 * UNIT_BYTES <= len(memory) else 0
            os.close(descriptor)

    def fill(self) -> None:
        """Random rows of the pool to batches in float32."""
        self._fill(self.places)

    def fill_in_order(self) -> None:
        """Rows of the pool as they stand to batches in float32: the least that a pass through memory takes."""
        self._fill(np.arange(len(self.places)) % len(self.pool))

    def _fill(self, places: np.ndarray) -> None:
        for index in range(len(places) // BATCH):
            self.gatherer.fill(places[index * BATCH : (index + 1) * BATCH], self.batches[index % len(self.batches)])

    def copy(self) -> None:
        """As many bytes as the store has, from one half of the pool to the other, in order."""
        half, left = len(self.pool) // 2, len(self.places)
        while left > 0:
            n = min(half, left)
            self.pool[:n] = self.pool[half : half + n]
            left -= n


def read_direct(files: list[Path], threads: int) -> None:
    """Every byte of the shards past the page cache in blocks, in order, by so many threads (1: what dd does)."""
    blocks = iter([(file, offset) for file in files for offset in range(0, file.stat().st_size, BLOCK)])
    descriptors = {file: os.open(file, os.O_RDONLY | os.O_DIRECT) for file in files}

    def read(_: int) -> None:
        memory = memoryview(allocate_rows((1, BLOCK // 4), torch.float32, torch.device("cpu")).numpy()).cast("B")
        for file, offset in blocks:
            os.preadv(descriptors[file], [memory], offset)

    with ThreadPoolExecutor(threads) as readers:
        list(readers.map(read, range(threads)))
    for descriptor in descriptors.values():
        os.close(descriptor)


def read_units(store: Store, readers: int, seed: int) -> None:
    """What the processor does for a pool on a GPU: units in random order into small memory, by so many threads."""
    info = store.hook_points[HOOK_POINT]
    n = 1 << (UNIT_BYTES // (info.width * 2)).bit_length() - 1
    starts = iter(np.random.default_rng(seed).permutation(np.arange(0, info.rows, n)).tolist())
    places = allocate_rows((readers * n, info.width), torch.bfloat16, torch.device("cpu")).split(n)

    def read(memory: Tensor) -> None:
        for start in starts:
            store.read_into(HOOK_POINT, start, memory[: min(n, info.rows - start)])

    with ThreadPoolExecutor(readers) as threads:
        list(threads.map(read, places))


def import_mixing_buffer() -> Callable[..., Iterator[Tensor]] | None:
    """SAELens' buffer, if it is installed; it takes seconds to import."""
    try:
        from sae_lens.training.mixing_buffer import mixing_buffer
    except ImportError as error:
        print(f"SAELens is left out ({error})")
        return None
    return mixing_buffer


def mix_buffer(mixing_buffer: Callable[..., Iterator[Tensor]], rows: Rows, pool_rows: int) -> Iterator[Tensor]:
    """SAELens' buffer over the file in order, as it is fed by cached activations."""
    parts = (np.array(rows.bits[start : start + LOADED_ROWS]) for start in range(0, len(rows), LOADED_ROWS))
    loaded = (torch.from_numpy(part).view(torch.bfloat16) for part in parts)
    return (batch.float() for batch in mixing_buffer(pool_rows, BATCH, loaded))


def load(rows: Rows, workers: int, seed: int) -> Iterator[Tensor]:
    """Batches of a torch DataLoader."""
    generator = torch.Generator().manual_seed(seed)
    loader = DataLoader(rows, BATCH, shuffle=True, num_workers=workers, collate_fn=_as_it_is, generator=generator)
    return iter(loader)


def gather_random_rows(rows: Rows, n: int, seed: int) -> None:
    """Batches of random rows of the file."""
    order = np.random.default_rng(seed).permutation(len(rows))
    for index in range(n):
        rows.read(order[index * BATCH : (index + 1) * BATCH])


def take(batches: Iterator[Any], n: int) -> None:
    """The next batches, none of which is kept."""
    for _ in itertools.islice(batches, n):
        pass


def _as_it_is(batch: Any) -> Any:
    """Leave the batch of `__getitems__` alone."""
    return batch
