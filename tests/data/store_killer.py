"""Run by test_store_safety: writes one store in forked children, kills them with SIGKILL at random steps, resumes, to the end.

A step is one of the calls that change the disk. Prints one line per child: how it ended and where it had started.
"""

import itertools
import os
import random
import signal
import sys
import threading
from pathlib import Path

from thresher.data.store import StoreWriter, open_store, verify_store
from thresher.testing.store import CONCEPTS, HOOK_POINTS, IDENTITY, expected_rows, make_batch

N_BATCHES = 12
ITEMS_PER_SHARD = 12
LAST_STEP = 260
"""Of a child; a whole run takes several times as many."""


def write(path: Path) -> None:
    """Write the store from where it stands to its end."""
    with StoreWriter(path, IDENTITY, HOOK_POINTS, CONCEPTS, items_per_shard=ITEMS_PER_SHARD) as writer:
        for index in range(writer.next_batch, N_BATCHES):
            writer.write(make_batch(index))
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


def check_prefix(path: Path) -> None:
    """Whatever a reader sees of the unfinished store is right."""
    if not (path / "run.json").exists():
        return
    store = open_store(path, incomplete="prefix")
    for name in store.hook_points:
        rows = store.rows(name)
        assert store.read(name, 0, rows).equal(expected_rows(name, N_BATCHES)[:rows]), name
    wrong = [line for line in verify_store(path, level="checksums") if "manifest.json: missing" not in line]
    assert all("committed rows; the next harvest mends it" in line for line in wrong), wrong


def main(folder: Path, n_kills: int, seed: int) -> None:
    """Write `whole` at one go; kill `n_kills` children that write `killed`, then let one finish."""
    write(folder / "whole")
    path = folder / "killed"
    chance = random.Random(seed)
    for step in [*(chance.randrange(LAST_STEP) for _ in range(n_kills)), None]:
        child = os.fork()
        if child == 0:
            if step is not None:
                die_at(step)
            write(path)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        check_prefix(path)
        sys.stdout.write("killed\n" if os.WIFSIGNALED(status) else f"exit {os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
