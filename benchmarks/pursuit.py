"""Matching pursuit beside other libraries' and beside TopK: training step, encoding, memory, and whether it is exact.

    python benchmarks/pursuit.py [--sizes 512,4096,16,1024 ...] [--threads 1] [--repeats 9] [--no-peers]
    python benchmarks/pursuit.py --rows activations.npy --sizes 512,2048,16,1000

Every contender has the same rows and the same start dictionary, and all are timed in alternation in one process. CPU time
is process time, the median over rounds; the first round warms up and is dropped where there are others. The limit is what
the contender's own operations take at this machine's measured rates (see costs.py). All contenders are in memory at once:
what is too large together is left out or gets a smaller batch, and that is printed. Needs the extra `interop` for peers.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from contenders import METHODS, OURS_TOPK, Contender, fit_grams, list_methods, list_our_encoders, list_our_steps, list_peers
from rows import Shape, load_rows, plant_rows, train_dictionary
from timing import Limits, Taken, alternate, describe_machine, make_limit_works, measure_peak
from torch import Tensor

from thresher.testing.pursuit import audit_pursuit
from thresher.train.kernels import Method, pursue
from thresher.train.kernels.pursuit import resolve_method

SIZES = ("512,4096,16,1024", "768,16384,32,2048", "1024,32768,64,1024")
PURE_TORCH = ("ours mp, residual", "ours mp, gram")


class Measured(NamedTuple):
    """By contender."""

    times: dict[str, float]
    """CPU milliseconds, scaled to the shape's batch."""
    peaks: dict[str, float]
    """Megabytes; NaN where it was not measured."""


def compare(contenders: list[Contender], shape: Shape, *, repeats: int, seconds: float, title: str) -> Measured:
    """Time all of them in alternation, then their memory one by one, and print a table."""
    limit_works = make_limit_works(shape.batch, shape.d_in, shape.d_sae)
    works = {contender.name: contender.make() for contender in contenders}
    taken = alternate(works | {name: work for name, (work, _) in limit_works.items()}, repeats, seconds_each=seconds)
    limits = Limits(**{name: amount / taken[name].median for name, (_, amount) in limit_works.items()})
    del works, limit_works
    peaks = {c.name: measure_whole_peak(c) if taken[c.name].median < 1e3 * seconds else float("nan") for c in contenders}
    rates = f"{limits.fp32 / 1e6:.0f} Gflop/s fp32, {limits.bf16 / 1e6:.0f} bf16, reads {limits.memory / 1e6:.1f} GB/s"
    print(f"\n### {title}: {shape} ({rates})\n")
    print("| | CPU ms | +- | wall ms | rounds | of our topk | limit ms | of limit | peak MB |")
    print("|---|---|---|---|---|---|---|---|---|")
    scaled = {c.name: taken[c.name].median * shape.batch / c.batch for c in contenders}
    for contender in contenders:
        cells = describe(contender, taken[contender.name], shape, scaled[OURS_TOPK], limits)
        print(f"| {cells} | {peaks[contender.name]:.0f} |", flush=True)
    return Measured(scaled, peaks)


def measure_whole_peak(contender: Contender) -> float:
    """Megabytes from nothing to the peak of two calls: parameters, gradients, Adam and what is kept between calls included."""

    def run_twice() -> None:
        work = contender.make()
        work()
        work()

    return measure_peak(run_twice)


def describe(contender: Contender, taken: Taken, shape: Shape, topk: float, limits: Limits) -> str:
    """The cells of a contender's times. Times of a smaller batch are scaled to the shape's and say so."""
    scale = shape.batch / contender.batch
    name = contender.name if scale == 1 else f"{contender.name} (from batch {contender.batch})"
    median, wall = taken.median * scale, sorted(taken.wall)[len(taken.wall) // 2] * scale
    limit = contender.cost.limit(limits) if contender.cost is not None else None
    floor = "| " if limit is None else f"{limit:.1f} | {limit / median:.0%}"
    ratio = f"{median / topk:.2f}"
    return f"{name} | {median:.1f} | {taken.spread:.0%} | {wall:.1f} | {len(taken.cpu)} | {ratio} | {floor}"


def summarise(steps: Measured, encodes: Measured) -> None:
    """Ratios of CPU time and of memory."""
    mp, topk = find_fastest(steps, "ours mp"), find_fastest(steps, "ours topk")
    pure = min((name for name in steps.times if name in PURE_TORCH), key=steps.times.__getitem__, default=mp)
    print(f"\n| training step | {pure} | {mp} |\n|---|---|---|")
    for name, value in steps.times.items():
        if not name.startswith("ours"):
            print(f"| {name} costs | {value / steps.times[pure]:.1f}x | {value / steps.times[mp]:.1f}x |")
    for what, figures in (("time", steps.times), ("peak", steps.peaks)):
        print(f"| {what} of {topk} | {figures[pure] / figures[topk]:.2f} | {figures[mp] / figures[topk]:.2f} |")
    mp, topk = find_fastest(encodes, "ours mp"), find_fastest(encodes, "ours topk")
    print(f"\nEncoding: {mp} costs {encodes.times[mp] / encodes.times[topk]:.2f} of {topk}.")


def find_fastest(measured: Measured, family: str) -> str:
    """Name of the fastest contender whose name starts with `family`."""
    return min((name for name in measured.times if name.startswith(family)), key=measured.times.__getitem__)


def audit(x: Tensor, dictionary: Tensor, k: int, methods: Iterable[Method]) -> None:
    """Print the worst gap along each method's own path, and how often its support is the float64 reference's."""
    print(f"\n| {len(x)} rows | rows in | worst gap / residual norm | same sequence | same set |\n|---|---|---|---|---|")
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        rows = x.to(dtype)
        exact, _ = pursue(rows.double(), dictionary.double(), k, method="residual", check=False)
        for method in methods:
            codes, residual = pursue(rows, dictionary, k, method=method, check=False)
            found = audit_pursuit(rows.float(), dictionary, codes, residual)
            sequence = (codes.indices == exact.indices).all(1).float().mean()
            support = (codes.indices.sort(1).values == exact.indices.sort(1).values).all(1).float().mean()
            name = str(dtype).removeprefix("torch.")
            print(f"| {method} | {name} | {found.gap:.1e} | {sequence:.4f} | {support:.4f} |")


def run(shape: Shape, x: Tensor, dictionary: Tensor, arguments: argparse.Namespace) -> None:
    """All tables of one size."""
    methods, missing = list_methods(arguments.methods)
    methods, too_large = fit_grams(methods, shape, arguments.gigabytes / 2)
    for reason in [*missing, *too_large]:
        print(f"left out: {reason}")
    print(f'method="auto" takes {resolve_method("auto", None, x, dictionary, shape.k)} for a new dictionary here')
    options = {"gigabytes": arguments.gigabytes / 4, "seconds": arguments.seconds}
    found = list(list_peers(shape, dictionary, x, **options)) if arguments.peers else []
    options = {"repeats": arguments.repeats, "seconds": arguments.seconds}
    steps = [*(step for step, _ in found), *list_our_steps(shape, dictionary, x, methods)]
    step_figures = compare(steps, shape, title="Training step", **options)
    encoders = [*(encoder for _, encoder in found), *list_our_encoders(shape, dictionary, x, methods)]
    encode_figures = compare(encoders, shape, title="Encode at a fixed dictionary", **options)
    summarise(step_figures, encode_figures)
    audit(x[: arguments.audited], dictionary, shape.k, methods)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="*", default=SIZES, help="d_in,d_sae,k,batch")
    parser.add_argument("--methods", nargs="*", default=METHODS, choices=METHODS, help="of our pursuit")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=9, help="rounds that count")
    parser.add_argument("--seconds", type=float, default=60, help="CPU seconds after which a contender leaves the rounds")
    parser.add_argument("--gigabytes", type=float, default=12, help="memory: half for our Gram matrices, a quarter for a peer")
    parser.add_argument("--audited", type=int, default=256, help="rows compared with the float64 reference")
    parser.add_argument("--peers", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--rows", type=Path, help=".npy of activations; the dictionary is then trained on them")
    parser.add_argument("--iterations", type=int, default=300, help="of that training")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    print(describe_machine())
    for text in arguments.sizes:
        shape = Shape(*(int(part) for part in text.split(",")))
        if arguments.rows is None:
            x, dictionary = plant_rows(shape)
        else:
            x = load_rows(arguments.rows)[: shape.batch]
            if x.shape != (shape.batch, shape.d_in):
                parser.error(f"--rows holds {list(x.shape)}: give sizes {x.shape[1]},d_sae,k,{len(x)}")
            dictionary = train_dictionary(x, shape, arguments.iterations)
        run(shape, x, dictionary, arguments)


if __name__ == "__main__":
    main()
