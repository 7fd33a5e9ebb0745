"""Shuffled batches against raw sequential reads and other loaders: `python benchmarks/stream.py [--mb 400] [--cold]`.

All ways take their turn in each repeat, the first of which does not count; printed are medians over the others. Raw reads go
through one small buffer, the best that a processor can do, and into memory of the size of the pool, what a loader with a pool
can hope for. Every loader hands out float32 batches on the CPU. At the end a matching-pursuit SAE trains from the stream: how
much of its time it waits.
"""

import argparse
import itertools
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from store import Cost, evict, make_batches, measure, open_stream, read_raw, write_raw, write_store
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from thresher.data.pool import READERS
from thresher.data.shuffle import UNIT_BYTES
from thresher.data.store import HookPointSpec, Store, open_store
from thresher.data.stream import ActivationStream
from thresher.train.arch import MatchingPursuit, build
from thresher.train.loop import fit
from thresher.train.optimizer import OptimizerConfig, make_adam

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


def as_it_is(batch: Any) -> Any:
    """Leave the batch of `__getitems__` alone."""
    return batch


def take(batches: Iterator[Any], n: int) -> None:
    for _ in itertools.islice(batches, n):
        pass


def read_raw_into_pool(files: list[Path], pool: np.ndarray) -> None:
    """Every byte of the shards, into one place of a large pool after the other."""
    place = 0
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        offset = 0
        while n := os.preadv(descriptor, [pool[place : place + UNIT_BYTES]], offset):
            offset += n
            place = (place + UNIT_BYTES) % len(pool)
        os.close(descriptor)


def read_units(store: Store, seed: int) -> None:
    """What the processor does for a pool on a GPU: units in random order into small memory, by as many threads."""
    info = store.hook_points[HOOK_POINT]
    n = 1 << (UNIT_BYTES // (info.width * 2)).bit_length() - 1
    starts = np.random.default_rng(seed).permutation(np.arange(0, info.rows, n))

    def read(starts: np.ndarray) -> None:
        memory = torch.empty((n, info.width), dtype=torch.bfloat16)
        for start in starts.tolist():
            store.read_into(HOOK_POINT, start, memory[: min(n, info.rows - start)])

    with ThreadPoolExecutor(READERS) as readers:
        list(readers.map(read, np.array_split(starts, READERS)))


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
    generator = torch.Generator().manual_seed(seed)
    loader = DataLoader(rows, BATCH, shuffle=True, num_workers=workers, collate_fn=as_it_is, generator=generator)
    return iter(loader)


def gather_random_rows(rows: Rows, n: int, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(rows))
    for index in range(n):
        rows.read(order[index * BATCH : (index + 1) * BATCH])


def run(path: Path, raw: Path, arguments: argparse.Namespace) -> dict[str, list[Cost]]:
    """Costs of reading all rows, by the name of the way."""
    files, opened = sorted(path.glob("acts.zarr/layers/*/activations/c/*/0")), open_store(path)
    rows, costs = Rows(raw, arguments.width), dict[str, list[Cost]]()
    n_rows = opened.rows(HOOK_POINT)
    n, pool_rows = n_rows // BATCH, max(n_rows // arguments.pool, BATCH)
    streams = {rows: open_stream(opened, rows, 0) for rows in (pool_rows, n_rows)}
    batches = {rows: iter(stream) for rows, stream in streams.items()}
    pool = np.zeros(max(pool_rows * arguments.width * 2 // UNIT_BYTES, 1) * UNIT_BYTES, np.uint8)
    ways: dict[str, Callable[[int], None]] = {
        "raw, small buffer": lambda _: read_raw(files),
        "raw, into memory of the pool's size": lambda _: read_raw_into_pool(files, pool),
        "reads of a stream to a GPU": lambda seed: read_units(opened, seed),
        "stream, sliding pool": lambda _: take(batches[pool_rows], n),
        "stream, all rows in the pool": lambda _: take(batches[n_rows], n),
        "np.memmap, random rows": lambda seed: gather_random_rows(rows, n, seed),
        "torch DataLoader, in the process": lambda seed: take(load(rows, 0, seed), n),
        "torch DataLoader, 2 workers": lambda seed: take(load(rows, 2, seed), n),
    }
    mixing_buffer = None if arguments.without_saelens else import_mixing_buffer()
    if mixing_buffer is not None:
        ways["SAELens mixing_buffer"] = lambda _: take(mix_buffer(mixing_buffer, rows, pool_rows), n)
    for repeat in range(1 + arguments.repeats):
        for name, way in ways.items():
            if arguments.cold:
                evict([*files, raw])
            costs.setdefault(name, []).append(measure(lambda way=way, seed=repeat: way(seed)))
    for pool_size, stream in streams.items():
        batches[pool_size].close()  # type: ignore[attr-defined]
        stream.close()
    return {name: found[1:] for name, found in costs.items()}


def measure_stall(path: Path, arguments: argparse.Namespace) -> tuple[float, float]:
    """Share of a trainer's time in which it waits for a batch, and the time of one iteration in seconds."""
    store = open_store(path)
    n_rows = store.rows(HOOK_POINT)
    opened = ActivationStream(
        store,
        [HOOK_POINT],
        batch_size=min(1024, n_rows),
        holdout=0.0,
        seed=0,
        pool_rows=n_rows // arguments.pool,
        balance="rows",
        device=torch.device("cpu"),
    )
    waited, batches = [0.0], iter(opened)

    def wait() -> Iterator[Tensor]:
        while True:
            start = time.perf_counter()
            batch = next(batches)
            waited[0] += time.perf_counter() - start
            yield batch.x

    sae = build(MatchingPursuit(d_sae=arguments.d_sae, k=16), arguments.width, 0)
    steps = fit(sae, wait(), make_adam(sae, OptimizerConfig()), learning_rate=lambda _: 1e-3)  # type: ignore[arg-type]
    next(steps)
    waited[0], start = 0.0, time.perf_counter()
    for _ in itertools.islice(steps, arguments.iterations):
        pass
    seconds = time.perf_counter() - start
    batches.close()  # type: ignore[attr-defined]
    opened.close()
    return waited[0] / seconds, seconds / arguments.iterations


def print_table(costs: dict[str, list[Cost]], arguments: argparse.Namespace) -> None:
    where = "evicted before every read" if arguments.cold else "in the page cache"
    print(f"{arguments.mb:.0f} MB of bfloat16, {arguments.width} wide, {where}; pool of 1 / {arguments.pool}")
    print(f"{'':38} {'GB/s':>7} {'of raw':>7} {'of raw, pool':>12} {'cpu s':>7} {'raw/cpu':>8} {'pool/cpu':>9}")
    medians = {name: [statistics.median(values) for values in zip(*found, strict=True)] for name, found in costs.items()}
    small, large = (medians[name] for name in list(medians)[:2])
    for name, (seconds, cpu) in medians.items():
        rate, cpu = arguments.mb / 1e3 / seconds, max(cpu, 1e-6)
        wall = f"{rate:7.2f} {small[0] / seconds:7.2f} {large[0] / seconds:12.2f}"
        print(f"{name:38} {wall} {cpu:7.3f} {small[1] / cpu:8.2f} {large[1] / cpu:9.2f}")
    row = arguments.width * 2
    print(
        f"A row has {row} bytes. To a CPU they are copied from the page cache to the pool ({row}), from there to the "
        f"processor's cache ({row}) and, as float32, to the batch ({2 * row} written): two passes through memory. To a GPU: "
        f"to pinned memory ({row}); the device does the rest."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mb", type=float, default=400.0)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--pool", type=int, default=4, help="rows of the store per row of the pool")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--d-sae", type=int, default=4096)
    parser.add_argument("--iterations", type=int, default=20, help="of the trainer whose waiting is measured")
    parser.add_argument("--cold", action="store_true", help="evict the files before every read")
    parser.add_argument("--without-saelens", action="store_true", help="do not import SAELens")
    parser.add_argument("--folder", type=Path, default=None, help="where to write; a temporary folder by default")
    arguments = parser.parse_args()
    hook_points = [HookPointSpec(HOOK_POINT, "image", "image.tokens", arguments.width, "bfloat16")]
    batches = list(make_batches(max(2, int(arguments.mb * 1e6) // (6400 * arguments.width)), arguments.width, hook_points))
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        path, raw = Path(folder) / "store", Path(folder) / "raw"
        write_store(path, batches, hook_points)
        write_raw(raw, batches)
        print_table(run(path, raw, arguments), arguments)
        stall, seconds = measure_stall(path, arguments)
        shutil.rmtree(path)
    print(f"A trainer (mp, d_sae={arguments.d_sae}, k=16) waits {stall:.2%} of its time; an iteration takes {seconds:.3f} s")


if __name__ == "__main__":
    main()
