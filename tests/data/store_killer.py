"""Run by test_store_kills: kills writers with SIGKILL at random instants until there were enough, and resumes every time.

Writers are forked from here, where everything is imported. Half of them die at a random change of the disk, now and then with
half of a write done; half are killed from outside at a random moment. A reader in another process opens the store over and
over meanwhile. Every store must end as one that nobody killed. Prints how many writers were killed, and how many stores made.
Arguments: folder, kills, seed, and the profile of the stores (raw when not given).
"""

import functools
import gc
import itertools
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import torch

from thresher.data.store import StoreWriter, open_store, verify_store
from thresher.data.store.header import read_header
from thresher.data.store.places import open_storage
from thresher.data.store.recovery import read_committed
from thresher.errors import StoreError
from thresher.testing import store as made_up
from thresher.testing.store import CONCEPTS, IDENTITY, expected_rows, make_batch, tree

HOOK_POINTS = [spec for spec in made_up.HOOK_POINTS if spec.name in ("vision.3", "vision.4", "vision.embed", "text.3")]
N_BATCHES = 6
ITEMS_PER_SHARD = 12
KILLS_PER_STORE = 12
PROFILE = sys.argv[4] if __name__ == "__main__" and len(sys.argv) > 4 else "raw"
PARTS_PER_RUN = 6
"""A kill comes within the first sixth of a whole run: else most stores would be done before they are killed."""

torch.set_num_threads(1)  # threads of a parent do not live on in its children
pa.array(["a"])  # looks for pandas, which takes longer than all that a writer does here
BATCHES = [make_batch(index, hook_points=HOOK_POINTS) for index in range(N_BATCHES)]
EXPECTED = {spec.name: expected_rows(spec.name, N_BATCHES, hook_points=HOOK_POINTS) for spec in HOOK_POINTS}
gc.freeze()  # a collection in a child would copy what it shares with this process


class Run(NamedTuple):
    """What was measured of a run that nobody killed."""

    seconds: float
    changes: int
    """Of the disk."""


def write(path: Path) -> None:
    """Write the store from where it stands to its end."""
    with StoreWriter(path, IDENTITY, HOOK_POINTS, CONCEPTS, items_per_shard=ITEMS_PER_SHARD, profile=PROFILE) as writer:
        for index in writer.missing(N_BATCHES):
            writer.write(BATCHES[index])
        writer.finish()


def watch_disk(act: Callable[[int], None]) -> None:
    """Call `act` with the number of each change of the disk by this process; at writes with half of it done."""
    steps, lock, write_bytes = itertools.count(), threading.Lock(), os.write

    def count() -> None:
        with lock:
            act(next(steps))

    def before(function):
        def counted(*arguments, **keywords):
            count()
            return function(*arguments, **keywords)

        return counted

    def write_half_first(descriptor, data):
        if len(data) < 2:
            count()
            return write_bytes(descriptor, data)
        written = write_bytes(descriptor, data[: len(data) // 2])
        count()
        return written

    os.write = write_half_first
    for name in ("fsync", "mkdir", "unlink", "replace"):
        setattr(os, name, before(getattr(os, name)))
    for name in ("mkdir", "unlink", "replace", "write_bytes"):
        setattr(Path, name, before(getattr(Path, name)))


def die_at(step: int) -> None:
    """Kill this process at its `step`-th change of the disk."""

    def act(number: int) -> None:
        if number == step:
            os.kill(os.getpid(), signal.SIGKILL)

    watch_disk(act)


def measure(folder: Path, work: Callable[[Path], None]) -> Run:
    """Let a child do the work, and see how long it takes and how often it changes the disk."""
    seen = folder / "changes"
    descriptor = os.open(seen, os.O_WRONLY | os.O_CREAT)
    write_bytes = os.write
    start = time.perf_counter()
    run(lambda: (watch_disk(lambda number: write_bytes(descriptor, b".")), work(folder / "whole")))
    os.close(descriptor)
    return Run(time.perf_counter() - start, seen.stat().st_size)


def read(path: Path, seen: dict[str, int]) -> None:
    """Whatever a reader sees of the store is right, and what it has seen stays."""
    if not (path / "run.json").exists():
        return
    store = open_store(path, incomplete="prefix")
    for name in store.hook_points:
        rows = store.rows(name)
        assert rows >= seen.get(name, 0), f"{name}: {rows} rows, there were {seen[name]}"
        assert store.read(name, 0, rows).equal(EXPECTED[name][:rows]), name
        seen[name] = rows


def check_files(path: Path, made: dict[str, tuple[int, int]]) -> None:
    """What was committed at first is there and was not made again; `made` takes note of what is new.

    Since the bytes in the end are right, they were so from the beginning.
    """
    if not (path / "run.json").exists():
        assert not made
        return
    if not made:
        wrong = [line for line in verify_store(path, level="checksums") if "manifest.json: missing" not in line]
        assert all("committed rows; the next harvest mends it" in line for line in wrong), wrong
    storage = open_storage(path)
    committed = read_committed(storage, read_header(storage).layout)
    stats = {name: (path / name).stat() for name in [*committed.files(), *committed.records()]}
    found = {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in stats.items()}
    assert {name: found.get(name) for name in made} == made
    made.update(found)


def fork(work, *arguments) -> int:
    """Run a function in a child that ends with 0 when it comes to its end."""
    child = os.fork()
    if child:
        return child
    try:
        work(*arguments)
    except BaseException as error:
        sys.stderr.write(f"{error!r}\n")
        os._exit(1)
    os._exit(0)


def run(work, *arguments) -> None:
    """In a child, so that nothing here holds what a fork does not survive."""
    assert os.waitpid(fork(work, *arguments), 0)[1] == 0


def read_on(path: Path) -> None:
    """Read until killed."""
    seen: dict[str, int] = {}
    while True:
        start = time.process_time()
        read(path, seen)
        time.sleep(0.02 + 10 * (time.process_time() - start))  # else it takes a core from the writers


def write_and_die(path: Path, step: int) -> None:
    die_at(step)
    write(path)


def kill_once(path: Path, chance: random.Random, whole: Run) -> bool:
    """Start a writer and kill it; False when it had come to the end before."""
    if chance.random() < 0.5:
        child = fork(write_and_die, path, chance.randrange(whole.changes // PARTS_PER_RUN))
    else:
        child = fork(write, path)
        time.sleep(chance.random() * whole.seconds / PARTS_PER_RUN)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0
    return os.WIFSIGNALED(status)


def make_store(path: Path, kill: Callable[[Path], bool]) -> int:
    """Write a store by writers that are killed, the last one excepted; gives how many times that was."""
    n_killed, seen, made = 0, dict[str, int](), dict[str, tuple[int, int]]()
    reader = fork(read_on, path)
    try:
        for _ in range(KILLS_PER_STORE):
            if (path / "manifest.json").exists():
                break
            n_killed += kill(path)
            read(path, seen)
            check_files(path, made)
        if not (path / "manifest.json").exists():
            run(write, path)
        read(path, seen)
        check_files(path, made)
    finally:
        os.kill(reader, signal.SIGKILL)
        status = os.waitpid(reader, 0)[1]
    assert os.WIFSIGNALED(status), "the reader saw something wrong"
    return n_killed


def compare(folder: Path, n_kills: int, kill: Callable[[Path], bool]) -> None:
    """Compare stores of killed writers with one that nobody killed, until there were `n_kills`."""
    whole = {name: content for name, content in tree(folder / "whole").items() if name != ".lock"}
    n_killed = n_stores = 0
    while n_killed < n_kills:
        path = folder / f"killed-{n_stores}"
        n_killed += make_store(path, kill)
        assert {name: content for name, content in tree(path).items() if name != ".lock"} == whole
        shutil.rmtree(path)
        n_stores += 1
    sys.stdout.write(f"{n_killed} {n_stores}\n")


def main(folder: Path, n_kills: int, seed: int) -> None:
    """One writer at a time."""
    chance, whole = random.Random(seed), measure(folder, write)
    compare(folder, n_kills, functools.partial(kill_once, chance=chance, whole=whole))


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    except StoreError as error:
        sys.exit(str(error))
