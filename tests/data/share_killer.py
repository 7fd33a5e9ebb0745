"""Run by test_store_kills: several processes write one store and are killed at random instants, again and again.

They are forked from here, where everything is imported, and meet as the processes of a launch do: before the batches are read
from the counts, before anybody commits, before the end. Who misses another one there ends. One of them is killed, or all at
once as when a machine dies; at a random change of the disk, now and then with half of a write done, or at a random moment;
into a bucket, at a random request. Any number goes on, and in the end the store must be the one that a single process writes
into a folder. Prints how many times that was, and how many stores were made.
"""

import contextlib
import functools
import itertools
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

from store_killer import (
    BATCHES,
    HOOK_POINTS,
    ITEMS_PER_SHARD,
    N_BATCHES,
    PARTS_PER_RUN,
    Run,
    compare,
    die_at,
    fork,
    measure,
    run,
    write,
)

from thresher.data.store import BatchCount, CountLedger, Share, StoreWriter, unlock_store
from thresher.data.store.objects import Objects
from thresher.data.store.places import open_storage, parse_location
from thresher.testing.store import CONCEPTS, IDENTITY, tree

LAST_REQUEST = 90
"""Of a process that writes its half into a bucket without being killed; what comes later kills nobody."""
ALONE = 3
"""Exit code of a process that has missed another one."""

Meet = Callable[[], None]


def open_writer(place: str | Path, share: Share | None = None) -> StoreWriter:
    return StoreWriter(place, IDENTITY, HOOK_POINTS, CONCEPTS, items_per_shard=ITEMS_PER_SHARD, share=share)


def count(index: int) -> BatchCount:
    items = {modality: len(found) for modality, found in BATCHES[index].items.items()}
    return BatchCount({space: len(rows.item) for space, rows in BATCHES[index].rows.items()}, items)


def lead(place: str | Path, n: int, meet: Meet) -> None:
    """The first of them: opens the store for all, concludes it when all have written."""
    with open_writer(place) as writer:
        if not writer.is_planned:
            writer.plan(BATCHES[0])
        writer.admit()
        ledger = CountLedger(place, N_BATCHES)
        for part in ledger.missing():
            ledger.write(part, [count(index) for index in ledger.batches(part)])
        meet()
        write_share(place, 0, n, meet)
        meet()
        writer.conclude()


def follow(place: str | Path, rank: int, n: int, meet: Meet) -> None:
    """Any other one."""
    meet()
    write_share(place, rank, n, meet)
    meet()


def write_share(place: str | Path, rank: int, n: int, meet: Meet) -> None:
    with open_writer(place, Share(rank, n, CountLedger(place, N_BATCHES).read())) as writer:
        meet()
        for index in writer.missing(N_BATCHES):
            writer.write(BATCHES[index])
        writer.finish()


def die_at_request(step: int) -> None:
    """Kill this process at its `step`-th request that changes the bucket."""
    steps = itertools.count()

    def before(method):
        def counted(*arguments, **keywords):
            if next(steps) == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return method(*arguments, **keywords)

        return counted

    for name in ("put", "open_writer", "writing", "delete"):
        setattr(Objects, name, before(getattr(Objects, name)))


def work_together(
    place: str | Path, rank: int, wires: "list[dict[int, socket.socket]]", die: Callable[[], None] | None
) -> None:
    """One of the processes, which has a wire to each other one."""
    others = wires[rank].values()
    for far in itertools.chain(*(found.values() for number, found in enumerate(wires) if number != rank)):
        far.close()

    def meet() -> None:
        try:
            for wire in others:
                wire.sendall(b".")
            heard = [wire.recv(1) for wire in others]
        except (BrokenPipeError, ConnectionResetError):
            os._exit(ALONE)
        if not all(heard):
            os._exit(ALONE)

    if open_storage(place).size("manifest.json") is not None:
        return  # whoever was killed had done all
    if die is not None:
        die()
    if rank:
        follow(place, rank, len(wires), meet)
    else:
        lead(place, len(wires), meet)


def launch(place: str | Path, deaths: "list[Callable[[], None] | None]", kill: Callable[[list[int]], None]) -> bool:
    """Start a process for each of `deaths` and wait for all, after `kill` had them; whether any was killed."""
    wires: list[dict[int, socket.socket]] = [{} for _ in deaths]
    for one, other in itertools.combinations(range(len(deaths)), 2):
        wires[one][other], wires[other][one] = socket.socketpair()
    children = [fork(work_together, place, rank, wires, die) for rank, die in enumerate(deaths)]
    for wire in itertools.chain(*(found.values() for found in wires)):
        wire.close()
    kill(children)
    ends = [os.waitpid(child, 0)[1] for child in children]
    assert all(os.WIFSIGNALED(end) or os.waitstatus_to_exitcode(end) in (0, ALONE) for end in ends), ends
    return any(os.WIFSIGNALED(end) for end in ends)


def spare(children: list[int]) -> None:
    """Kill nobody from outside."""


def kill_together(path: Path, chance: random.Random, whole: Run) -> bool:
    """Let two or three write and be killed: one or all, from inside or from outside."""
    n = chance.choice((2, 2, 2, 3))
    victim = chance.randrange(n)
    if chance.random() < 0.6:
        step = chance.randrange(whole.changes // 2 // PARTS_PER_RUN)
        deaths = [functools.partial(die_at, step) if rank == victim else None for rank in range(n)]
        return launch(path, deaths, spare)
    delay, is_one = chance.random() * whole.seconds / PARTS_PER_RUN, chance.random() < 0.5

    def kill(children: list[int]) -> None:
        time.sleep(delay)
        for child in [children[victim]] if is_one else children:
            os.kill(child, signal.SIGKILL)

    return launch(path, [None] * n, kill)


def write_together(path: Path) -> None:
    """Two write, and nobody is killed; the changes that are counted are those of both."""
    ends = socket.socketpair()
    wires = [{1: ends[0]}, {0: ends[1]}]
    other = fork(work_together, path, 1, wires, None)
    work_together(path, 0, wires, None)
    assert os.waitpid(other, 0)[1] == 0


def check_bucket(place: str) -> None:
    """What a dead lead has locked is unlocked."""
    if open_storage(place).size(".lock"):
        unlock_store(place)


def finish_bucket(place: str, whole: Path) -> None:
    """Write the rest alone where there is one, and compare."""
    if open_storage(place).size("manifest.json") is None:
        write(place)
    found, expected = ({name: content for name, content in tree(store).items() if name != ".lock"} for store in (place, whole))
    assert found == expected


def kill_in_bucket(folder: Path, place: str, n_kills: int, chance: random.Random) -> None:
    """Two write into a bucket, one is killed, until there were `n_kills`; another store when one of them is complete."""
    run(write, folder / "whole")
    n_killed = n_stores = 0
    while n_killed < n_kills:
        store = f"{place}-{n_stores}"
        n_stores += 1
        is_killed = True
        while is_killed and n_killed < n_kills:
            victim, die = chance.randrange(2), functools.partial(die_at_request, chance.randrange(LAST_REQUEST))
            is_killed = launch(store, [die if rank == victim else None for rank in (0, 1)], spare)
            n_killed += is_killed
            run(check_bucket, store)
        run(finish_bucket, store, folder / "whole")
    sys.stdout.write(f"{n_killed} {n_stores}\n")


def main(folder: Path, where: str, n_kills: int, seed: int) -> None:
    chance = random.Random(seed)
    if where != "folder":
        kill_in_bucket(folder, f"{parse_location(where)}/store", n_kills, chance)
        return
    whole = measure(folder, write_together)
    compare(folder, n_kills, functools.partial(kill_together, chance=chance, whole=whole))


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main(Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:]))
