"""Correctness on a GPU first, then what encoding and a training step take: `python benchmarks/gpu.py [--device cuda]`.

    PYTHONPATH=src python benchmarks/gpu.py [--shapes d_in,d_sae,k,batch ...] [--rounds 20] [--methods ...] [--tiles]
                                           [--checks-only] [--no-checks] [--no-peers]

Needs torch, triton, jaxtyping, pydantic and pyyaml, not zarr nor an installation; overcomplete, sae-lens and sparsify are
compared where they are installed. Prints the card with the rates measured on it, each check with its figure, and for each
shape the medians over two sweeps through all contenders. `--tiles` times the selection kernel with other tiles than the one
that `plan_correlation` takes. With `--device cpu` and small `--shapes` it runs anywhere, to see that it works.
"""

import argparse
import gc
import importlib.util
import statistics
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from gpu_checks import METHODS, check_running, check_values, draw_rows, list_methods
from gpu_rates import Rates, Sizes, Work, measure_rates, time_work
from torch import Tensor
from train_step import make_dense_step

from thresher.train.arch import MatchingPursuit, TopK, build
from thresher.train.kernels import Method, prepare, pursue
from thresher.train.loop import fit
from thresher.train.optimizer import OptimizerConfig, make_adam

SHAPES = ("512,4096,16,1024", "768,16384,32,2048", "768,16384,32,8192", "1024,32768,64,1024", "4096,65536,64,4096")
TILES = ((128, 256, 64, 8, 3), (128, 256, 64, 8, 4), (256, 128, 64, 8, 3), (128, 128, 64, 8, 4), (128, 128, 64, 4, 4),
         (64, 256, 64, 4, 4), (128, 128, 128, 8, 3))  # fmt: skip
"""Rows, atoms, depth, warps, stages."""
SWEEPS = 2
REFERENCE = "topk, bf16 selection"


class Contender(NamedTuple):
    """One row of a table."""

    name: str
    make: Callable[[], Work]
    """Builds it, so that what it holds is held only while it is timed."""


class Taken(NamedTuple):
    """Times in ms of the device, and the most memory in MB beyond what was held before the work was built."""

    times: list[float]
    peaks: list[float]


def list_steps(shape: Sizes, x: Tensor, methods: list[Method]) -> Iterator[Contender]:
    """Training steps: ours as the loop runs them, and dense autograd."""
    _, d_sae, k, _ = shape
    configs: dict[str, object] = {f"mp, {method}": MatchingPursuit(d_sae=d_sae, k=k, method=method) for method in methods}
    configs |= {"topk": TopK(d_sae=d_sae, k=k), REFERENCE: TopK(d_sae=d_sae, k=k, selection="bf16")}
    for name, config in configs.items():
        yield Contender(name, lambda config=config: _make_step(config, x))
    yield Contender("mp, dense autograd", lambda: _make_dense_step(shape, x))


def list_peer_steps(k: int, x: Tensor, dictionary: Tensor) -> Iterator[Contender]:
    """Training steps of the installed peers, as their own trainers make them."""
    for peer in _list_peers():
        yield Contender(peer.name, lambda peer=peer: _make_peer_step(peer, dictionary, k, x))
        if peer.name == "overcomplete mp":
            yield Contender("overcomplete mp, tf32", lambda peer=peer: _allow_tf32(_make_peer_step(peer, dictionary, k, x)))


def list_encoders(shape: Sizes, x: Tensor, dictionary: Tensor, methods: list[Method]) -> Iterator[Contender]:
    """Codes at a fixed dictionary; what derives from it is made beforehand."""
    _, d_sae, k, _ = shape
    for method in methods:
        yield Contender(f"mp, {method}", lambda method=method: _make_pursuit(method, dictionary, k, x))
    for name, config in (("topk", TopK(d_sae=d_sae, k=k)), (REFERENCE, TopK(d_sae=d_sae, k=k, selection="bf16"))):
        yield Contender(name, lambda config=config: _make_encoder(build(config, x.shape[1], 0).to(x.device).encode, x))


def list_peer_encoders(k: int, x: Tensor, dictionary: Tensor) -> Iterator[Contender]:
    """Encoders of the installed peers."""
    for peer in _list_peers():
        yield Contender(peer.name, lambda peer=peer: _make_peer_encoder(peer, dictionary, k, x))


def _list_peers() -> tuple[object, ...]:
    if importlib.util.find_spec("matplotlib") is None:
        return ()
    import peers

    return tuple(peer for peer in peers.PEERS if peers.is_installed(peer.package))


def _make_step(config: object, x: Tensor) -> Work:
    sae = build(config, x.shape[1], 0).to(x.device)
    steps = fit(sae, iter(lambda: x, None), make_adam(sae, OptimizerConfig()), learning_rate=lambda _: 1e-3, clip=1.0)
    return lambda: next(steps)


def _make_dense_step(shape: Sizes, x: Tensor) -> Work:
    d_in, d_sae, k, _ = shape
    with x.device:  # where its parameters are made
        return make_dense_step(d_in, d_sae, k, lambda: x)


def _make_pursuit(method: Method, dictionary: Tensor, k: int, x: Tensor) -> Work:
    prepared = prepare(dictionary, method)
    return lambda: pursue(x, dictionary, k, prepared=prepared, check=False)


def _make_encoder(encode: Callable[[Tensor], object], x: Tensor) -> Work:
    return torch.no_grad()(lambda: encode(x))


def _make_peer_step(peer: object, dictionary: Tensor, k: int, x: Tensor) -> Work:
    import peers

    return peers.make_step(peer.make(dictionary.cpu(), k).to(x.device), peer.compute_loss, lambda: x)


def _make_peer_encoder(peer: object, dictionary: Tensor, k: int, x: Tensor) -> Work:
    sae = peer.make(dictionary.cpu(), k).to(x.device).eval()
    return _make_encoder(lambda x: peer.encode(sae, x), x)


def _allow_tf32(work: Work) -> Work:
    def with_tf32() -> None:
        torch.backends.cuda.matmul.allow_tf32 = True
        try:
            work()
        finally:
            torch.backends.cuda.matmul.allow_tf32 = False

    return with_tf32


def sweep(contenders: list[Contender], device: torch.device, rounds: int) -> dict[str, Taken]:
    """Time all contenders, the second time in reverse; one that runs out of memory is reported and left out."""
    taken: dict[str, Taken] = {contender.name: Taken([], []) for contender in contenders}
    for order in (contenders, contenders[::-1])[:SWEEPS]:
        for contender in order:
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats(device)
            held = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
            try:
                times = time_work(contender.make(), device, rounds)
            except torch.OutOfMemoryError:
                print(f"  {contender.name}: out of memory")
                continue
            peak = torch.cuda.max_memory_allocated(device) - held if device.type == "cuda" else float("nan")
            taken[contender.name].times.extend(times)
            taken[contender.name].peaks.append(peak / 1e6)
    return {name: found for name, found in taken.items() if found.times}


def print_table(title: str, found: dict[str, Taken]) -> None:
    """Median, spread, ratio to TopK with selection in bf16, memory."""
    medians = {name: statistics.median(taken.times) for name, taken in found.items()}
    print(f"{title:28}{'ms':>10}{'min':>10}{'of topk':>9}{'peak MB':>10}")
    for name, median in medians.items():
        ratio = median / medians[REFERENCE] if REFERENCE in medians else float("nan")
        print(f"{name:28}{median:10.3f}{min(found[name].times):10.3f}{ratio:9.2f}{max(found[name].peaks):10.0f}")


def print_limits(shape: Sizes, rates: Rates, encoders: dict[str, Taken]) -> None:
    """What share of the measured limits the selection of each method reaches."""
    d_in, d_sae, k, batch = shape
    flops, picks = 2.0 * batch * d_sae * d_in, float(batch * k)
    limits = {
        "mp, residual": k * flops / rates.fp32,
        "mp, triton_certified": k * flops / rates.bf16 + 20 * picks * d_in / rates.memory,
        "mp, gram": flops / rates.fp32 + 4 * picks * d_sae / rates.memory,
        "mp, triton_gram": flops / rates.bf16 + (2 * picks * d_sae + 10 * picks * d_in) / rates.memory,
    }
    print(f"measured: bf16 {rates.bf16 / 1e9:.1f}, tf32 {rates.tf32 / 1e9:.1f}, fp32 {rates.fp32 / 1e9:.1f} Tflop/s, "
          f"copy {rates.memory / 1e9:.2f} TB/s; share of the limit that encoding reaches:")  # fmt: skip
    for name, limit in limits.items():
        if name in encoders:
            print(f"  {name:26}{limit / statistics.median(encoders[name].times):8.0%}   (limit {limit:.3f} ms)")


def sweep_tiles(shape: Sizes, device: torch.device, rates: Rates) -> None:
    """The selection kernel alone, one step, with other tiles."""
    from thresher.train.kernels.cuda.correlate import correlate_top
    from thresher.train.kernels.cuda.plan import KEPT_PER_TILE, Tile, plan_correlation

    d_in, d_sae, _, batch = shape
    x, low = torch.randn(batch, d_in, device=device).bfloat16(), torch.randn(d_sae, d_in, device=device).bfloat16()
    limit = torch.zeros(batch, device=device)
    planned = plan_correlation(batch, d_in, d_sae, 2)
    for sizes in dict.fromkeys((tuple(planned), *TILES)):
        tile = Tile(*sizes)
        keys = torch.empty(batch, KEPT_PER_TILE, -(-d_sae // tile.atoms), dtype=torch.int32, device=device)
        try:
            times = time_work(lambda t=tile, keys=keys: correlate_top(x, low, limit, keys, t, takes_absolute=False), device, 10)
        except Exception as error:  # a tile that this card cannot hold
            print(f"  {sizes}: {type(error).__name__}")
            continue
        share = 2.0 * batch * d_sae * d_in / statistics.median(times) / rates.bf16
        print(f"  tile {sizes!s:24}{statistics.median(times):9.3f} ms {share:7.0%} of the product{' *' * (tile == planned)}")


def run_checks(device: torch.device, methods: list[Method]) -> bool:
    """Print every check; whether all hold."""
    holds = True
    for checks in (check_values(device, methods), check_running(device, methods)):
        for check in checks:
            holds &= check.holds
            is_law = check.limit < float("inf")
            mark, limit = ("ok " if check.holds else "BAD", f" (at most {check.limit:.0e})") if is_law else ("   ", "")
            print(f"{mark} {check.name}: {check.value:.2g}{limit}", flush=True)
    return holds


def main() -> None:
    """Check, measure, print; exit code 1 when a check fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="*", default=SHAPES)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--methods", nargs="*", default=METHODS)
    parser.add_argument("--tiles", action="store_true")
    parser.add_argument("--checks-only", action="store_true")
    parser.add_argument("--no-checks", action="store_true")
    parser.add_argument("--peers", action=argparse.BooleanOptionalAction, default=True)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("no CUDA device here; --device cpu with small --shapes shows that the script works")
    print(f"{torch.cuda.get_device_name(device) if device.type == 'cuda' else 'CPU'}, torch {torch.__version__}")
    methods = list_methods(device, arguments.methods)
    holds = True if arguments.no_checks else run_checks(device, methods)
    for text in () if arguments.checks_only else arguments.shapes:
        d_in, d_sae, k, batch = (int(part) for part in text.split(","))
        shape = (d_in, d_sae, k, batch)
        print(f"\n(d_in, d_sae, k, batch) = ({text})", flush=True)
        x, dictionary = draw_rows(*shape, device)
        steps, encoders = list(list_steps(shape, x, methods)), list(list_encoders(shape, x, dictionary, methods))
        if arguments.peers:
            steps += list_peer_steps(k, x, dictionary)
            encoders += list_peer_encoders(k, x, dictionary)
        print_table("training step", sweep(steps, device, arguments.rounds))
        encoded = sweep(encoders, device, arguments.rounds)
        print_table("encode", encoded)
        rates = measure_rates(shape, device)
        print_limits(shape, rates, encoded)
        if arguments.tiles and device.type == "cuda":
            sweep_tiles(shape, device, rates)
    sys.exit(0 if holds else 1)


if __name__ == "__main__":
    main()
