"""How a stream reads: through the page cache of the system, or past it."""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from thresher.data.readable import Readable
from thresher.data.store import HookPointInfo, Store
from thresher.data.store.schema import TORCH_DTYPE

Reads = Literal["auto", "cached", "direct"]
"""`cached`: through the page cache; `direct`: past it; `auto`: what suits the size of the store."""
MEMORY = Path("/proc/meminfo")
OWN_GROUP = Path("/proc/self/cgroup")
GROUPS = Path("/sys/fs/cgroup")
"""Where Linux says how much memory there is, which group this process is of, and how much a group may have."""


def choose_reads(
    reads: Reads, sources: Iterable[HookPointInfo], *, pool_rows: int, n_shares: int, room: int | None
) -> Literal["cached", "direct"]:
    """How a stream of these hook points is best read on a machine with `room` bytes for the page cache (None: not known).

    Past the cache when the rows would not fit into it beside the pool: then the cache holds little of what is asked for, and
    to fill it costs the processor more than the disk does. Processes that share the batches (`n_shares`) read the same rows
    within seconds, so that even then one read serves all of them through the cache.
    """
    if reads != "auto":
        return reads
    sizes = [(info.rows, info.width * TORCH_DTYPE[info.dtype].itemsize) for info in sources]
    n_bytes = sum(rows * row_bytes for rows, row_bytes in sizes)
    n_rows = sum(rows for rows, _ in sizes)
    pool = n_bytes * min(pool_rows, n_rows) // max(n_rows, 1)
    return "direct" if room is not None and n_shares == 1 and n_bytes + pool > room else "cached"


def open_reads(store: Readable, reads: Literal["cached", "direct"]) -> Readable:
    """What gives the rows of a store in this way; what is no store on a disk has only one."""
    return store.bypass_cache() if reads == "direct" and isinstance(store, Store) else store


def find_cache_room() -> int | None:
    """Bytes that the page cache can hold: free, or given up for it. None where the system does not say."""
    try:
        lines = dict(line.split(":", 1) for line in MEMORY.read_text().splitlines())
        available = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    return min([available, *_find_limits()])


def _find_limits() -> list[int]:
    """Of the control group of this process and those around it (version 2), where they have one."""
    try:
        (group,) = [line[3:] for line in OWN_GROUP.read_text().splitlines() if line.startswith("0::")]
    except (OSError, ValueError):
        return []
    found: list[int] = []
    folder = GROUPS / group.strip("/")
    for each in [folder, *folder.parents[: len(folder.relative_to(GROUPS).parts)]]:
        try:
            found.append(int((each / "memory.max").read_text()))
        except (OSError, ValueError):
            continue
    return found
