"""Write and read bandwidth of the activation store against raw files, in alternation: `python benchmarks/store.py [--mb 400]`.

Every repeat writes the same rows as a store, as one raw file with fsync, and as one that is written past the page cache as
the shards of a store are; then reads the shards with plain `preadv` and through each of the ways of a store. Printed are
medians over the repeats, those of the ratios of a repeat, and what a byte costs the processors. Reads are from the page cache
(a fast disk: the processor is the limit) unless `--cold` evicts the files first.
"""

import argparse
import functools
import itertools
import os
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
import torch

from thresher.data.store import (
    Batch,
    HookPointSpec,
    Item,
    Profile,
    Rows,
    Store,
    StoreWriter,
    atomic,
    moments,
    open_store,
    verify_store,
)
from thresher.data.store.schema import TORCH_DTYPE
from thresher.data.stream import ActivationStream

TOKENS = 50
ITEMS = 64
BLOCK = 4 << 20


class Cost(NamedTuple):
    """Of one run."""

    seconds: float
    cpu: float


def measure(work: Callable[[], object]) -> Cost:
    """Wall and processor time of all threads."""
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    work()
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    return Cost(seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def make_batches(n: int, width: int, hook_points: list[HookPointSpec]) -> Iterator[Batch]:
    """Batches of random rows, each in memory of its own as those of a harvest are, so that no cache holds them."""
    rows_per_batch = ITEMS * TOKENS
    x = torch.randn(rows_per_batch, width).to(TORCH_DTYPE[hook_points[0].dtype])
    item = torch.arange(ITEMS).repeat_interleave(TOKENS)
    position = torch.arange(TOKENS).repeat(ITEMS).int()
    for index in range(n):
        items = [Item(f"{index}/{i}", index * ITEMS + i, "ok", None, None, ()) for i in range(ITEMS)]
        rows = Rows(item, position, None, {spec.name: x.clone() for spec in hook_points})
        yield Batch(index, {"image": items}, [], {"image.tokens": rows})


def write_raw(path: Path, batches: list[Batch]) -> None:
    """The same activations into one file, then fsync."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for batch in batches:
        for x in batch.rows["image.tokens"].activations.values():
            os.write(descriptor, x.view(torch.int16).numpy().data)
    os.fsync(descriptor)
    os.close(descriptor)


def write_past_cache(path: Path, batches: list[Batch]) -> None:
    """The same through memory that begins with a page, from which the disk takes it."""
    buffer, filled = atomic.allocate_pages(BLOCK), 0
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_DIRECT)
    for batch in batches:
        for x in batch.rows["image.tokens"].activations.values():
            left = x.view(torch.int16).numpy().reshape(-1).view(np.uint8)
            while len(left):
                taken = min(len(left), BLOCK - filled)
                buffer[filled : filled + taken] = left[:taken]
                filled, left = (filled + taken) % BLOCK, left[taken:]
                if not filled:
                    os.write(descriptor, buffer.data)
    os.write(descriptor, buffer[: filled // atomic.ALIGNMENT * atomic.ALIGNMENT].data)
    os.fsync(descriptor)
    os.close(descriptor)


def write_store(path: Path, batches: list[Batch], hook_points: list[HookPointSpec], profile: Profile = "raw") -> None:
    with StoreWriter(path, {"of": "a benchmark"}, hook_points, (), profile=profile) as writer:
        for batch in batches:
            writer.write(batch)
        writer.finish()


def read_raw(files: list[Path]) -> None:
    """Every byte of the shards through one buffer."""
    buffer = np.empty(BLOCK, np.uint8)
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        offset = 0
        while n := os.preadv(descriptor, [buffer.data], offset):
            offset += n
        os.close(descriptor)


def read_chunks(store: Store, order: np.ndarray, out: torch.Tensor) -> None:
    """Chunks of every hook point in `order` into one buffer."""
    for name, chunk in itertools.product(store.hook_points, order.tolist()):
        start = chunk * len(out)
        store.read_into(name, start, out[: min(len(out), store.rows(name) - start)])


def verify_all(path: Path) -> None:
    findings = verify_store(path, level="checksums")
    if findings:
        raise SystemExit("\n".join(findings))


def open_stream(store: Store, pool_rows: int, seed: int) -> ActivationStream:
    """All hook points, nothing held out."""
    return ActivationStream(
        store,
        list(store.hook_points),
        batch_size=4096,
        holdout=0.0,
        seed=seed,
        pool_rows=pool_rows,
        balance="rows",
        device=torch.device("cpu"),
    )


def stream_epoch(stream: ActivationStream, n_batches: int) -> None:
    batches = iter(stream)
    for _ in range(n_batches):
        next(batches)
    batches.close()


def evict(files: list[Path]) -> None:
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def run(folder: Path, arguments: argparse.Namespace) -> dict[str, list[Cost]]:
    """All costs by the name of what was done."""
    hook_points = [
        HookPointSpec(f"vision.{i}", "image", "image.tokens", arguments.width, "bfloat16") for i in range(arguments.hooks)
    ]
    bytes_per_batch = ITEMS * TOKENS * arguments.width * 2 * arguments.hooks
    batches = list(make_batches(max(1, int(arguments.mb * 1e6) // bytes_per_batch), arguments.width, hook_points))
    costs: dict[str, list[Cost]] = {}

    def add(name: str, files: list[Path], work: Callable[..., object], *given: object) -> None:
        if arguments.cold:
            evict(files)
        costs.setdefault(name, []).append(measure(functools.partial(work, *given)))

    write_store(folder / "warm", batches[:2], hook_points)  # Loops are compiled before they are timed.
    for repeat in range(arguments.repeats):
        path = folder / f"store{repeat}"
        add("write raw + fsync", [], write_raw, folder / "raw", batches)
        add("write raw past the page cache + fsync", [], write_past_cache, folder / "raw", batches)
        (folder / "raw").unlink()
        with mock.patch.object(moments, "add_rows"):
            add("write store, without moments", [], write_store, path, batches, hook_points, arguments.profile)
        shutil.rmtree(path)
        add("write store", [], write_store, path, batches, hook_points, arguments.profile)
        files, store = sorted(path.glob("acts.zarr/layers/*/activations/c/*/0")), open_store(path)
        chunk = torch.empty((1024, arguments.width), dtype=torch.bfloat16)
        order = np.random.default_rng(repeat).permutation(-(-store.rows("vision.0") // len(chunk)))
        if arguments.writes_only:
            shutil.rmtree(path)
            continue
        read_raw(files)  # What is written past the page cache is not in it.
        add("read raw", files, read_raw, files)
        add("read store, in order", files, read_chunks, store, np.sort(order), chunk)
        add("read store, random chunks", files, read_chunks, store, order, chunk)
        add("verify checksums", files, verify_all, path)
        n_rows = store.rows("vision.0") * arguments.hooks
        for name, pool_rows in (("whole", n_rows), ("tenth", n_rows // 10)):
            stream = open_stream(store, pool_rows, repeat)
            add(f"stream an epoch, pool of the {name}", files, stream_epoch, stream, n_rows // 4096)
            stream.close()
        shutil.rmtree(path)
    return costs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mb", type=float, default=400.0)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--hooks", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--profile", choices=["raw", "compact", "archive"], default="raw", help="of the store")
    parser.add_argument("--writes-only", action="store_true", help="leave out reads and streams")
    parser.add_argument("--cold", action="store_true", help="evict the files before every read")
    parser.add_argument("--folder", type=Path, default=None, help="where to write; a temporary folder by default")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        costs = run(Path(folder), arguments)
    print(
        f"{arguments.mb:.0f} MB, {arguments.hooks} hook points, {arguments.width} wide, bfloat16, {arguments.profile}, "
        f"{arguments.repeats} repeats"
    )
    print(f"{'':38} {'GB/s':>8} {'of raw':>7} {'cpu s':>7} {'of raw':>7} {'ns/B':>7}")
    for name, found in costs.items():
        base = costs["write raw + fsync" if name.startswith("write") else "read raw"]
        seconds, cpu = (statistics.median(values) for values in zip(*found, strict=True))
        faster = statistics.median(raw.seconds / mine.seconds for raw, mine in zip(base, found, strict=True))
        dearer = statistics.median(mine.cpu / raw.cpu for raw, mine in zip(base, found, strict=True))
        rate, cost = arguments.mb / 1e3 / seconds, cpu * 1e3 / arguments.mb
        print(f"{name:38} {rate:8.2f} {faster:7.2f} {cpu:7.2f} {dearer:7.1f} {cost:7.2f}")


if __name__ == "__main__":
    main()
