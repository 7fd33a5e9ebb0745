"""What the benchmarks share: timing in alternation, peak memory, and the machine's own limits."""

import ctypes
import gc
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch

STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")


class Taken(NamedTuple):
    """Times of one piece of work, in milliseconds, one entry per round."""

    cpu: list[float]
    """Process time, all threads: a busy machine disturbs it less."""
    wall: list[float]
    """Time on the clock."""

    @property
    def median(self) -> float:
        """Of the CPU time."""
        return statistics.median(self.cpu)

    @property
    def spread(self) -> float:
        """Half of the range of CPU time, as a share of the median."""
        return (max(self.cpu) - min(self.cpu)) / 2 / self.median if self.median else 0.0


def alternate(
    works: Mapping[str, Callable[[], object]], rounds: int, *, seconds_each: float = float("inf")
) -> dict[str, Taken]:
    """Time every work once per round, all of them in each round.

    The first round warms up (compiles, fills caches) and does not count, except for a work that had no other: one that has
    used `seconds_each` of CPU leaves the rounds.
    """
    taken = {name: Taken([], []) for name in works}
    for _ in range(1 + rounds):
        for name, work in works.items():
            if sum(taken[name].cpu) >= 1e3 * seconds_each:
                continue
            cpu, wall = time.process_time(), time.perf_counter()
            work()
            taken[name].cpu.append(1e3 * (time.process_time() - cpu))
            taken[name].wall.append(1e3 * (time.perf_counter() - wall))
    return {name: Taken(cpu[1:] or cpu, wall[1:] or wall) for name, (cpu, wall) in taken.items()}


def measure_peak(work: Callable[[], object]) -> float:
    """Megabytes that the process grows by at most while `work` runs, whoever allocates them; NaN outside Linux.

    Free memory is given back before, so that memory that an earlier call left behind is not counted as there already.
    """
    if not (CLEAR_REFS.exists() and platform.libc_ver()[0] == "glibc"):
        return float("nan")
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    CLEAR_REFS.write_text("5")  # Resets the high-water mark: proc(5).
    before = _read_status("VmRSS")
    work()
    return (_read_status("VmHWM") - before) / 1e3


def _read_status(field: str) -> float:
    """Kilobytes."""
    for line in STATUS.read_text().splitlines():
        if line.startswith(field + ":"):
            return 1.024 * float(line.split()[1])
    raise KeyError(field)


class Limits(NamedTuple):
    """What this machine does at best, with the threads that torch has now."""

    fp32: float
    """Flops per CPU millisecond of a matrix product in float32."""
    bf16: float
    """The same in bfloat16."""
    memory: float
    """Bytes read per CPU millisecond from memory, out of the caches."""


def make_limit_works(batch: int, d_in: int, d_sae: int) -> dict[str, tuple[Callable[[], object], float]]:
    """Works that show `Limits`, to be timed beside the others, and the flops or bytes of each.

    The products have the shape of a dense encoder's, [batch, d_in] by [d_in, d_sae].
    """
    works: dict[str, tuple[Callable[[], object], float]] = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        x, weight = torch.randn(batch, d_in).to(dtype), torch.randn(d_sae, d_in).to(dtype)
        out = torch.empty(batch, d_sae, dtype=dtype)
        works[name] = (_Product(x, weight.T, out), 2.0 * batch * d_in * d_sae)
    stream = torch.ones(2**26)
    works["memory"] = (stream.sum, 4.0 * stream.numel())
    return works


class _Product(NamedTuple):
    x: torch.Tensor
    weight: torch.Tensor
    out: torch.Tensor

    def __call__(self) -> None:
        torch.mm(self.x, self.weight, out=self.out)


def describe_machine() -> str:
    """Processor, cores, torch."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = models[0] if models else platform.processor() or platform.machine()
    return f"{name}, {max(len(models), 1)} cores, torch {torch.__version__}, {torch.get_num_threads()} thread(s)"
