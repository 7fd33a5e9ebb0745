"""Correctness on a GPU first, then the speed of a training step and of encoding: `python benchmarks/gpu.py [--device cuda]`.

Needs torch and the folder `train` of this package only (no zarr). Prints the name of the card, the checks with the figure
behind each, and a table of medians in alternation. With `--device cpu` and small `--shapes` it runs anywhere, to see that it
works.
"""

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from train_step import make_configs

from thresher.train.arch import build
from thresher.train.kernels import Method, pursue
from thresher.train.loop import fit
from thresher.train.optimizer import OptimizerConfig, make_adam

SHAPES = ("512,4096,16,4096", "768,16384,32,8192")
"""d_in, d_sae, k, batch."""
GAP_AT_MOST = 1e-6
"""Largest shortfall of a pick against the best atom in float64, relative to the residual."""
ERROR_AT_MOST = 1e-4
"""Largest relative difference of losses and gradients from the CPU's."""


class Check(NamedTuple):
    """One law, and by how much it holds."""

    name: str
    value: float
    limit: float

    @property
    def holds(self) -> bool:
        """NaN does not."""
        return self.value <= self.limit


def make_rows(d_in: int, d_sae: int, k: int, batch: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Sparse combinations of unit atoms with noise, and a dictionary near those atoms."""
    generator = torch.Generator().manual_seed(0)
    atoms = functional.normalize(torch.randn(d_sae, d_in, generator=generator), dim=1)
    x = torch.zeros(batch, d_in)
    for _ in range(k):
        x += atoms[torch.randint(d_sae, (batch,), generator=generator)] * torch.rand(batch, 1, generator=generator)
    x += 0.01 * torch.randn(batch, d_in, generator=generator)
    near = functional.normalize(atoms + 0.02 * torch.randn(d_sae, d_in, generator=generator), dim=1)
    return x.to(device), near.to(device)


def audit_pursuit(x: Tensor, dictionary: Tensor, k: int, method: Method) -> float:
    """Follow the picks in float64: by how much of the residual's norm the best atom beats the one that was picked."""
    codes, _ = pursue(x, dictionary, k, method=method)
    exact, residual, gap = dictionary.double(), x.double(), 0.0
    for step in range(k):
        scores = residual @ exact.T
        picked = scores.gather(1, codes.indices[:, step, None])[:, 0]
        is_going = codes.values[:, step] != 0
        shortfall = (scores.amax(1) - picked) / residual.norm(dim=1).clamp_min(1e-12)
        gap = max(gap, float(torch.where(is_going, shortfall, 0).max()))
        residual = residual - torch.where(is_going, picked, 0)[:, None] * exact[codes.indices[:, step]]
    return gap


def compare_with_cpu(config: object, x: Tensor) -> float:
    """Largest relative difference of loss and gradients between the device and the CPU."""
    found: list[list[Tensor]] = []
    for rows in (x, x.cpu()):
        sae = build(config, rows.shape[1], 0).to(rows.device)  # type: ignore[arg-type, attr-defined]
        loss, _ = sae.loss(rows)
        loss.backward()
        found.append([loss.detach().cpu(), *(p.grad.cpu() for p in sae.parameters() if p.grad is not None)])  # type: ignore[attr-defined]
    return max(float((a - b).norm() / b.norm().clamp_min(1e-12)) for a, b in zip(*found, strict=True))


def run_checks(device: torch.device) -> Iterator[Check]:
    """The laws that a GPU could break."""
    for shape in ((7, 33, 5, 130), (128, 1024, 16, 257)):
        d_in, d_sae, k, batch = shape
        x, dictionary = make_rows(d_in, d_sae, k, batch, device)
        forms: tuple[Method, ...] = ("residual", "gram")
        for method in forms:
            yield Check(f"pursuit {method} {shape}: gap", audit_pursuit(x, dictionary, k, method), GAP_AT_MOST)
        for name, config in make_configs(d_sae, k).items():
            yield Check(f"{name} {shape}: loss and gradients against the CPU", compare_with_cpu(config, x), ERROR_AT_MOST)


def make_step(config: object, batches: Iterator[Tensor]) -> Callable[[], None]:
    """One iteration of the loop as training runs it."""
    first = next(batches)
    sae = build(config, first.shape[1], 0).to(first.device)  # type: ignore[arg-type, attr-defined]
    optimizer = make_adam(sae, OptimizerConfig())
    steps = fit(sae, batches, optimizer, learning_rate=lambda _: 1e-3, clip=1.0)
    return lambda: next(steps) and None


def make_encode(config: object, x: Tensor) -> Callable[[], None]:
    """Codes of a batch at a fixed dictionary."""
    sae = build(config, x.shape[1], 0).to(x.device)  # type: ignore[arg-type, attr-defined]

    def encode() -> None:
        with torch.no_grad():
            sae.encode(x)

    return encode


def time_once(work: Callable[[], None], device: torch.device) -> float:
    """Milliseconds of the device for one call."""
    if device.type != "cuda":
        start = time.process_time()
        work()
        return 1e3 * (time.process_time() - start)
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    work()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop)


def measure(shape: tuple[int, int, int, int], device: torch.device, rounds: int) -> dict[str, tuple[float, float, float]]:
    """Median step, median encode (ms) and peak memory of a step (MB) by architecture, in alternation."""
    d_in, d_sae, k, batch = shape
    x, _ = make_rows(d_in, d_sae, k, 4 * batch, device)
    configs = make_configs(d_sae, k)
    steps = {name: make_step(config, itertools.cycle(x.split(batch))) for name, config in configs.items()}
    encodes = {name: make_encode(config, x[:batch]) for name, config in configs.items()}
    taken: dict[str, list[list[float]]] = {name: [[], [], []] for name in configs}
    for round_ in range(2 + rounds):
        for name in configs:
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
                held = torch.cuda.memory_allocated(device)
            step = time_once(steps[name], device)
            peak = (torch.cuda.max_memory_allocated(device) - held) / 1e6 if device.type == "cuda" else float("nan")
            encode = time_once(encodes[name], device)
            if round_ >= 2:
                for values, value in zip(taken[name], (step, encode, peak), strict=True):
                    values.append(value)
    return {name: tuple(statistics.median(values) for values in found) for name, found in taken.items()}  # type: ignore[misc]


def main() -> None:
    """Check, measure, print; exit code 1 when a check fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="*", default=SHAPES)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("no CUDA device here; --device cpu with small --shapes shows that the script works")
    torch.backends.cuda.matmul.allow_tf32 = False
    print(f"{torch.cuda.get_device_name(device) if device.type == 'cuda' else 'CPU'}, torch {torch.__version__}")
    checks = list(run_checks(device))
    for check in checks:
        print(f"{'ok ' if check.holds else 'BAD'} {check.name}: {check.value:.2g} (at most {check.limit:.0e})")
    for text in arguments.shapes:
        d_in, d_sae, k, batch = (int(part) for part in text.split(","))
        print(f"\n(d_in, d_sae, k, batch) = ({text}), medians of {arguments.rounds}")
        print(f"{'':20}{'step ms':>10}{'of topk':>9}{'encode ms':>11}{'of topk':>9}{'peak MB':>10}")
        found = measure((d_in, d_sae, k, batch), device, arguments.rounds)
        for name, (step, encode, peak) in found.items():
            ratio, encode_ratio = step / found["topk"][0], encode / found["topk"][1]
            print(f"{name:20}{step:10.2f}{ratio:9.2f}{encode:11.2f}{encode_ratio:9.2f}{peak:10.0f}")
    sys.exit(0 if all(check.holds for check in checks) else 1)


if __name__ == "__main__":
    main()
