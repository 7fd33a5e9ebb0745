"""Run by test_store_safety: kills writers with SIGKILL at random instants until there were enough, and resumes every time.

Writers are forked from here, where everything is imported. Half of them die at a random change of the disk, now and then with
half of a write done; half are killed from outside at a random moment. A reader in another process opens the store over and
over meanwhile. Every store must end as one that nobody killed. Prints how many writers were killed, and how many stores made.
"""

import itertools
import os
import random
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import torch

from thresher.data.store import StoreWriter, open_store, verify_store
from thresher.errors import StoreError
from thresher.testing.store import CONCEPTS, HOOK_POINTS, IDENTITY, expected_rows, make_batch, tree

N_BATCHES = 8
ITEMS_PER_SHARD = 12
LAST_STEP = 260
"""Of a child; a whole run takes several times as many."""
KILLS_PER_STORE = 8

torch.set_num_threads(1)  # threads of a parent do not live on in its children
BATCHES = [make_batch(index) for index in range(N_BATCHES)]
EXPECTED = {spec.name: expected_rows(spec.name, N_BATCHES) for spec in HOOK_POINTS}


def write(path: Path) -> None:
    """Write the store from where it stands to its end."""
    with StoreWriter(path, IDENTITY, HOOK_POINTS, CONCEPTS, items_per_shard=ITEMS_PER_SHARD) as writer:
        for index in writer.missing(N_BATCHES):
            writer.write(BATCHES[index])
        writer.finish()


def die_at(step: int) -> None:
    """Kill this process at its `step`-th change of the disk, now and then with half of a write done."""
    steps, lock, write_bytes = itertools.count(), threading.Lock(), os.write

    def count() -> None:
        with lock:
            if next(steps) == step:
                os.kill(os.getpid(), signal.SIGKILL)

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


def check_files(path: Path) -> None:
    """Every committed file is sound."""
    if (path / "run.json").exists():
        wrong = [line for line in verify_store(path, level="checksums") if "manifest.json: missing" not in line]
        assert all("committed rows; the next harvest mends it" in line for line in wrong), wrong


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


def read_on(path: Path) -> None:
    """Read until killed."""
    seen: dict[str, int] = {}
    while True:
        read(path, seen)
        time.sleep(0.02)  # else it takes a core from the writers


def write_and_die(path: Path, step: int) -> None:
    die_at(step)
    write(path)


def kill_once(path: Path, chance: random.Random, longest: float) -> bool:
    """Start a writer and kill it; False when it had come to the end before."""
    if chance.random() < 0.5:
        child = fork(write_and_die, path, chance.randrange(LAST_STEP))
    else:
        child = fork(write, path)
        time.sleep(chance.random() * longest)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0
    return os.WIFSIGNALED(status)


def make_store(path: Path, chance: random.Random, longest: float) -> int:
    """Write a store by writers that are killed, the last one excepted; gives how many were."""
    n_killed, seen = 0, {}
    reader = fork(read_on, path)
    for _ in range(KILLS_PER_STORE):
        if (path / "manifest.json").exists():
            break
        n_killed += kill_once(path, chance, longest)
        read(path, seen)
        check_files(path)
    if not (path / "manifest.json").exists():
        assert os.waitpid(fork(write, path), 0)[1] == 0
    read(path, seen)
    os.kill(reader, signal.SIGKILL)
    assert os.WIFSIGNALED(os.waitpid(reader, 0)[1]), "the reader saw something wrong"
    return n_killed


def main(folder: Path, n_kills: int, seed: int) -> None:
    """Compare stores of killed writers with one that nobody killed, until `n_kills` were killed."""
    start = time.perf_counter()
    assert os.waitpid(fork(write, folder / "whole"), 0)[1] == 0
    longest = time.perf_counter() - start
    whole, chance = tree(folder / "whole"), random.Random(seed)
    n_killed = n_stores = 0
    while n_killed < n_kills:
        path = folder / f"killed-{n_stores}"
        n_killed += make_store(path, chance, longest)
        assert tree(path) == whole
        shutil.rmtree(path)
        n_stores += 1
    sys.stdout.write(f"{n_killed} {n_stores}\n")


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    except StoreError as error:
        sys.exit(str(error))
