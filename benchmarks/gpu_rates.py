"""Timing on a device, and what the device reaches at best; used by `gpu.py`."""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

Sizes = tuple[int, int, int, int]
"""d_in, d_sae, k, batch."""
Work = Callable[[], object]


class Rates(NamedTuple):
    """What this device reaches at best in the shape of a dense encoder."""

    bf16: float
    """Flops per ms of a matrix product in bfloat16."""
    fp32: float
    tf32: float
    memory: float
    """Bytes per ms read and written by a copy."""


def time_work(work: Work, device: torch.device, rounds: int) -> list[float]:
    """Milliseconds of the device for each of `rounds` calls, after three that warm up."""
    for _ in range(3):
        work()
    if device.type != "cuda":
        times = []
        for _ in range(rounds):
            start = time.process_time()
            work()
            times.append(1e3 * (time.process_time() - start))
        return times
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(rounds)]
    for start, stop in events:
        start.record()
        work()
        stop.record()
    torch.cuda.synchronize(device)
    return [start.elapsed_time(stop) for start, stop in events]


def measure_rates(shape: Sizes, device: torch.device) -> Rates:
    """Products of [batch, d_in] with [d_in, d_sae], at most 2^30 scores, and a copy of 1 GB (16 MB on a CPU)."""
    d_in, d_sae, _, batch = shape
    batch = min(batch, max(2**30 // d_sae, 1))
    flops, found = 2.0 * batch * d_in * d_sae, {}
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32), ("tf32", torch.float32)):
        torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
        x, weight = torch.randn(batch, d_in, device=device).to(dtype), torch.randn(d_sae, d_in, device=device).to(dtype)
        out = torch.empty(batch, d_sae, dtype=dtype, device=device)
        found[name] = flops / statistics.median(time_work(lambda x=x, w=weight, out=out: torch.mm(x, w.T, out=out), device, 10))
    torch.backends.cuda.matmul.allow_tf32 = False
    stream = torch.ones(2**28 if device.type == "cuda" else 2**22, device=device)
    other = torch.empty_like(stream)
    copied = 8.0 * stream.numel() / statistics.median(time_work(lambda: other.copy_(stream), device, 10))
    return Rates(found["bf16"], found["fp32"], found["tf32"], copied)
