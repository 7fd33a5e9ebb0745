"""Peak memory of whole harvests, each in a process of its own."""

import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

CHILD = """
import resource, sys
from pathlib import Path
from thresher.config import validate
from thresher.data.store import open_store
from thresher.harvest.run import HarvestConfig, run

def harvest(name, n):
    values = {
        "out": Path(sys.argv[1]) / name, "model": {"kind": "open-clip"}, "hook_points": ["vision.*", "text.*"],
        "source": {"kind": "scenes", "n_records": n}, "batch_size": 16, "items_per_shard": 64, "device": "cpu",
    }
    return open_store(run(validate(HarvestConfig, values, "benchmark")))

peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
harvest("first", 16)
loaded = peak()
store = harvest("store", int(sys.argv[2]))
print(peak(), loaded, sum(store.rows(name) for name in store.hook_points))
"""


class Peak(NamedTuple):
    """Of one process."""

    peak: float
    """Resident megabytes at most."""
    loaded: float
    """The same after a harvest of one batch: libraries, the model, one of every buffer."""
    rows: int
    """Rows that it stored."""


def measure_peaks(folder: Path, n_records: int) -> tuple[Peak, Peak]:
    """Of a harvest of so many scenes and of ten times as many; several shards each."""
    return _measure(folder / "1x", n_records), _measure(folder / "10x", 10 * n_records)


def _measure(folder: Path, n_records: int) -> Peak:
    folder.mkdir()
    command = [sys.executable, "-c", CHILD, str(folder), str(n_records)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    peak, loaded, rows = (int(number) for number in done.stdout.split())
    return Peak(peak / 1e3, loaded / 1e3, rows)
