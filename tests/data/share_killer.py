"""Run by test_store_kills: two processes write one store, one of them is killed at a random instant, again and again.

Both are forked from here, where everything is imported, and meet as the processes of a launch do: before the batches are read
from the counts, before anybody commits, before the end. Who misses the other there ends. A killed process dies at a random
change of the disk, now and then with half of a write done; into a bucket, at a random request. In the end any number of
processes finishes the store, which must be the one that a single process writes into a folder. Prints how many were killed.
"""

import functools
import itertools
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from store_killer import BATCHES, ITEMS_PER_SHARD, N_BATCHES, check_files, die_at, fork, read, write

from thresher.data.store import BatchCount, CountLedger, Share, StoreWriter, unlock_store
from thresher.data.store.objects import Objects
from thresher.data.store.places import open_storage, parse_location
from thresher.testing.store import CONCEPTS, HOOK_POINTS, IDENTITY, tree

LAST_STEP = {"folder": 180, "bucket": 90}
"""Of a process that writes its half without being killed; what comes later kills nobody."""
ALONE = 3
"""Exit code of a process that has missed the other one."""

Meet = Callable[[], None]


def open_writer(place: str | Path, share: Share | None = None) -> StoreWriter:
    return StoreWriter(place, IDENTITY, HOOK_POINTS, CONCEPTS, items_per_shard=ITEMS_PER_SHARD, share=share)


def count(index: int) -> BatchCount:
    items = {modality: len(found) for modality, found in BATCHES[index].items.items()}
    return BatchCount({space: len(rows.item) for space, rows in BATCHES[index].rows.items()}, items)


def lead(place: str | Path, meet: Meet) -> None:
    """The first of the two: opens the store for both, concludes it when both have written."""
    with open_writer(place) as writer:
        if not writer.is_planned:
            writer.plan(BATCHES[0])
        writer.admit()
        ledger = CountLedger(place, N_BATCHES)
        for part in ledger.missing():
            ledger.write(part, [count(index) for index in ledger.batches(part)])
        meet()
        write_share(place, 0, meet)
        meet()
        writer.conclude()


def follow(place: str | Path, meet: Meet) -> None:
    """The second of the two."""
    meet()
    write_share(place, 1, meet)
    meet()


def write_share(place: str | Path, rank: int, meet: Meet) -> None:
    with open_writer(place, Share(rank, 2, CountLedger(place, N_BATCHES).read())) as writer:
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


def work_together(place: str | Path, rank: int, pipes: list[tuple[int, int]], die: Callable[[], None] | None) -> None:
    """One of the two processes. It tells by its own pipe and hears by that of the other."""
    hear, tell = pipes[1 - rank][0], pipes[rank][1]
    os.close(pipes[rank][0])
    os.close(pipes[1 - rank][1])
    write_bytes = os.write

    def meet() -> None:
        try:
            write_bytes(tell, b".")
        except BrokenPipeError:
            os._exit(ALONE)
        if not os.read(hear, 1):
            os._exit(ALONE)

    if open_storage(place).size("manifest.json") is not None:
        return  # whoever was killed had done all
    if die is not None:
        die()
    (follow if rank else lead)(place, meet)


def launch(place: str | Path, victim: int, die: Callable[[], None]) -> bool:
    """Start both and wait for both; whether one was killed."""
    pipes = [os.pipe(), os.pipe()]
    children = [fork(work_together, place, rank, pipes, die if rank == victim else None) for rank in (0, 1)]
    for end in itertools.chain(*pipes):
        os.close(end)
    ends = [os.waitpid(child, 0)[1] for child in children]
    assert all(os.WIFSIGNALED(end) or os.waitstatus_to_exitcode(end) in (0, ALONE) for end in ends), ends
    return any(os.WIFSIGNALED(end) for end in ends)


def check(place: str | Path) -> None:
    """What a reader sees is right; what a dead lead has locked is unlocked."""
    if isinstance(place, Path):
        check_files(place)
        read(place, {})
    elif open_storage(place).size(".lock"):
        unlock_store(place)


def finish(place: str | Path, whole: Path) -> None:
    """Write the rest alone where there is one, and compare."""
    if open_storage(place).size("manifest.json") is None:
        write(place)
    assert {name: content for name, content in tree(place).items() if name != ".lock"} == {
        name: content for name, content in tree(whole).items() if name != ".lock"
    }


def run(work, *arguments) -> None:
    """In a child, so that nothing here holds what a fork does not survive."""
    assert os.waitpid(fork(work, *arguments), 0)[1] == 0


def main(folder: Path, where: str, n_stores: int, kills_per_store: int, seed: int) -> None:
    run(write, folder / "whole")
    chance, n_killed = random.Random(seed), 0
    for number in range(n_stores):
        place = folder / f"store{number}" if where == "folder" else parse_location(f"{where}/store{number}")
        kind, killer = ("folder", die_at) if where == "folder" else ("bucket", die_at_request)
        for _ in range(kills_per_store):
            step = chance.randrange(LAST_STEP[kind])
            was_killed = launch(place, chance.randrange(2), functools.partial(killer, step))
            n_killed += was_killed
            run(check, place)
            if not was_killed:
                break
        run(finish, place, folder / "whole")
    sys.stdout.write(f"{n_killed}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:]))
