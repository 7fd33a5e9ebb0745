"""Shuffled batches against raw sequential reads and other loaders: `python benchmarks/stream.py [--mb 1600] [--where cache]`.

Two tables. From the page cache: raw is a sequential read of all bytes through one small buffer, the best that a processor can
do; beside it stand what a copy in memory takes and the parts that a batch is made by. From the disk: raw is a sequential read
past the page cache in blocks of 4 MiB by one thread, what `dd iflag=direct bs=4M` does; files that are read through the cache
are evicted first. All ways take their turn in each repeat, the first of which does not count; printed are medians over the
others, of rates and of the ratios to raw in the same repeat. Every loader hands out float32 batches on the CPU. At the end a
matching-pursuit SAE trains from the stream: how much of its time it waits.
"""

import argparse
import itertools
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from loaders import (
    BATCH,
    HOOK_POINT,
    Parts,
    Rows,
    gather_random_rows,
    import_mixing_buffer,
    load,
    mix_buffer,
    read_direct,
    read_units,
    take,
)
from store import Cost, evict, make_batches, measure, read_raw, write_raw, write_store
from torch import Tensor

from thresher.data.pool import DIRECT_READERS, READERS
from thresher.data.reads import Reads
from thresher.data.store import HookPointSpec, Store, open_store
from thresher.data.stream import ActivationStream
from thresher.train.arch import MatchingPursuit, build
from thresher.train.loop import fit
from thresher.train.optimizer import OptimizerConfig, make_adam

FEW = 16
"""Of the batches from the disk, other loaders are given one in so many: each of their rows is a read of its own."""


class Way(NamedTuple):
    """A way to read the store."""

    name: str
    work: Callable[[int], None]
    """Takes the number of the repeat."""
    part: float = 1.0
    """Of the rows that it reads."""
    evicts: bool = False
    """Whether the files have to leave the page cache first."""


class Streams:
    """Streams that go on from repeat to repeat."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.opened: list[tuple[ActivationStream, Iterator[object]]] = []

    def start(self, pool_rows: int, reads: Reads, batch_size: int = BATCH) -> Iterator[object]:
        """Batches of a stream that holds nothing out."""
        stream = ActivationStream(
            self.store,
            [HOOK_POINT],
            batch_size=batch_size,
            holdout=0.0,
            seed=0,
            pool_rows=pool_rows,
            balance="rows",
            device=torch.device("cpu"),
            reads=reads,
        )
        self.opened.append((stream, iter(stream)))
        return self.opened[-1][1]

    def close(self) -> None:
        """End their threads."""
        for stream, batches in self.opened:
            batches.close()
            stream.close()


def list_cached(files: list[Path], streams: Streams, rows: Rows, pool_rows: int, arguments: argparse.Namespace) -> list[Way]:
    """Ways to read what is in the page cache; the first is the raw read."""
    n_rows, n = len(rows), len(rows) // BATCH
    parts = Parts(n_rows, pool_rows, arguments.width)
    sliding, whole = streams.start(pool_rows, "cached"), streams.start(n_rows, "cached")
    ways = [
        Way("raw", lambda _: read_raw(files)),
        Way("copy in memory", lambda _: parts.copy()),
        Way("part: raw read into the pool", lambda _: parts.read(files)),
        Way("part: pool to float32 batches", lambda _: parts.fill()),
        Way("pool to float32 batches, in order", lambda _: parts.fill_in_order()),
        Way("reads of a stream to a GPU", lambda seed: read_units(streams.store, READERS, seed)),
        Way("stream, sliding pool", lambda _: take(sliding, n)),
        Way("stream, all rows in the pool", lambda _: take(whole, n)),
        Way("np.memmap, random rows", lambda seed: gather_random_rows(rows, n, seed)),
        Way("torch DataLoader, in the process", lambda seed: take(load(rows, 0, seed), n)),
        Way("torch DataLoader, 2 workers", lambda seed: take(load(rows, 2, seed), n)),
    ]
    mixing_buffer = None if arguments.without_saelens else import_mixing_buffer()
    if mixing_buffer is not None:
        ways.append(Way("SAELens mixing_buffer", lambda _: take(mix_buffer(mixing_buffer, rows, pool_rows), n)))
    return ways


def list_cold(files: list[Path], streams: Streams, rows: Rows, pool_rows: int) -> list[Way]:
    """Ways to read what is on the disk alone; the first is the raw read."""
    n = len(rows) // BATCH
    few = max(1, n // FEW)
    past, through = streams.start(pool_rows, "direct"), streams.start(pool_rows, "cached")
    store = streams.store.bypass_cache()
    return [
        Way("raw, past the cache, 1 thread", lambda _: read_direct(files, 1)),
        Way(f"raw, past the cache, {READERS} threads", lambda _: read_direct(files, READERS)),
        Way("raw, through the cache", lambda _: read_raw(files), evicts=True),
        Way("reads of a stream to a GPU, direct", lambda seed: read_units(store, DIRECT_READERS, seed)),
        Way("stream, sliding pool, direct", lambda _: take(past, n)),
        Way("stream, sliding pool, cached", lambda _: take(through, n), evicts=True),
        Way("np.memmap, random rows", lambda seed: gather_random_rows(rows, few, seed), few / n, evicts=True),
    ]


def run(ways: list[Way], files: list[Path], repeats: int) -> dict[str, list[Cost]]:
    """Costs of reading all rows, by the name of the way."""
    costs: dict[str, list[Cost]] = {way.name: [] for way in ways}
    for repeat in range(1 + repeats):
        for way in ways:
            if way.evicts:
                evict(files)
            seconds, cpu = measure(lambda way=way, seed=repeat: way.work(seed))
            costs[way.name].append(Cost(seconds / way.part, cpu / way.part))
    return {name: found[1:] for name, found in costs.items()}


def print_table(title: str, costs: dict[str, list[Cost]], gb: float) -> None:
    print(f"\n{title}")
    print(f"{'':38} {'GB/s':>7} {'of raw':>7} {'cpu s/GB':>9} {'raw/cpu':>8}")
    raw = next(iter(costs.values()))
    for name, found in costs.items():
        seconds, cpu = (statistics.median(values) for values in zip(*found, strict=True))
        of_raw = statistics.median(first.seconds / each.seconds for first, each in zip(raw, found, strict=True))
        by_cpu = statistics.median(first.cpu / max(each.cpu, 1e-6) for first, each in zip(raw, found, strict=True))
        print(f"{name:38} {gb / seconds:7.2f} {of_raw:7.2f} {cpu / gb:9.3f} {by_cpu:8.2f}")


def print_model(costs: dict[str, list[Cost]], gb: float, arguments: argparse.Namespace) -> None:
    """What limits a stream from the page cache to a CPU."""
    cpu = {name: statistics.median(cost.cpu for cost in found) / gb for name, found in costs.items()}
    parts = {name.removeprefix("part: "): value for name, value in cpu.items() if name.startswith("part: ")}
    total, n = sum(parts.values()), os.cpu_count() or 1
    best, raw = n / max(total, 1e-6), gb / statistics.median(cost.seconds for cost in costs["raw"])
    listed = " + ".join(f"{value:.3f} ({name})" for name, value in parts.items())
    row = arguments.width * 2
    print(
        f"CPU seconds per GB: {listed} = {total:.3f}; the stream takes {cpu['stream, sliding pool']:.3f}, the rest is places, "
        f"threads and hand-over. {n} processors that do nothing else could hand out {best:.2f} GB/s, {best / raw:.2f} of raw. "
        f"A row of {row} bytes is read from the page cache and written to the pool, read from there and written as {2 * row} "
        f"bytes: {5 * row} bytes through memory where a raw read moves {row}."
    )


def measure_stall(streams: Streams, arguments: argparse.Namespace) -> tuple[float, float]:
    """Share of a trainer's time in which it waits for a batch, and the time of one iteration in seconds."""
    n_rows = streams.store.rows(HOOK_POINT)
    waited, batches = [0.0], streams.start(n_rows // arguments.pool, "auto", min(1024, n_rows))

    def wait() -> Iterator[Tensor]:
        while True:
            start = time.perf_counter()
            batch = next(batches)
            waited[0] += time.perf_counter() - start
            yield batch.x

    sae = build(MatchingPursuit(d_sae=arguments.d_sae, k=16), arguments.width, 0)
    steps = fit(sae, wait(), make_adam(sae, OptimizerConfig()), learning_rate=lambda _: 1e-3)
    next(steps)
    waited[0], start = 0.0, time.perf_counter()
    for _ in itertools.islice(steps, arguments.iterations):
        pass
    seconds = time.perf_counter() - start
    return waited[0] / seconds, seconds / arguments.iterations


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mb", type=float, default=1600.0)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--pool", type=int, default=4, help="rows of the store per row of the pool")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--d-sae", type=int, default=4096)
    parser.add_argument("--iterations", type=int, default=20, help="of the trainer whose waiting is measured; 0 for none")
    parser.add_argument("--where", choices=["cache", "disk", "both"], default="both", help="where the rows are")
    parser.add_argument("--without-saelens", action="store_true", help="do not import SAELens")
    parser.add_argument("--folder", type=Path, default=None, help="where to write, on a disk; a temporary folder by default")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    hook_points = [HookPointSpec(HOOK_POINT, "image", "image.tokens", arguments.width, "bfloat16")]
    batches = list(make_batches(max(2, int(arguments.mb * 1e6) // (6400 * arguments.width)), arguments.width, hook_points))
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        path, raw = Path(folder) / "store", Path(folder) / "raw"
        write_store(path, batches, hook_points)
        write_raw(raw, batches)
        files, rows, streams = (
            sorted(path.glob("acts.zarr/layers/*/activations/c/*/0")),
            Rows(raw, arguments.width),
            Streams(open_store(path)),
        )
        pool_rows, gb = max(len(rows) // arguments.pool, BATCH), len(rows) * arguments.width * 2 / 1e9
        load_average = " ".join(f"{value:.1f}" for value in os.getloadavg())
        print(f"{gb:.2f} GB of bfloat16, {arguments.width} wide; a pool of 1 / {arguments.pool}; load {load_average}")
        if arguments.where != "disk":
            costs = run(list_cached(files, streams, rows, pool_rows, arguments), [*files, raw], arguments.repeats)
            print_table("From the page cache", costs, gb)
            print_model(costs, gb, arguments)
        if arguments.where != "cache":
            costs = run(list_cold(files, streams, rows, pool_rows), [*files, raw], arguments.repeats)
            print_table("From the disk", costs, gb)
        if arguments.iterations:
            stall, seconds = measure_stall(streams, arguments)
            print(f"A trainer (mp, d_sae={arguments.d_sae}, k=16) waits {stall:.2%} of its time; {seconds:.3f} s an iteration")
        streams.close()
        shutil.rmtree(path)


if __name__ == "__main__":
    main()
