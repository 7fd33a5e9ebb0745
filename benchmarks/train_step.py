"""One training step of each architecture, and of matching pursuit as dense autograd writes it, in alternation.

Prints CPU time (process time, all threads) so that a busy machine disturbs it less than wall time would:

    python benchmarks/train_step.py [d_in,d_sae,k,batch ...] [--rounds 15] [--threads 1]
"""

import argparse
import itertools
import statistics
from collections.abc import Callable

import torch
from timing import alternate
from torch import Tensor, nn
from torch.nn import functional

from thresher.train.arch import (
    AbsTopK,
    BatchTopK,
    DistanceWeighted,
    Gated,
    JumpRelu,
    MatchingPursuit,
    Matryoshka,
    NestedTopK,
    OrthogonalPursuit,
    PAnneal,
    Relu,
    Spade,
    TopK,
    build,
)
from thresher.train.loop import fit
from thresher.train.optimizer import OptimizerConfig, make_adam

SHAPES = ("128,1024,8,1024", "512,4096,16,1024")


class DensePursuit(nn.Module):
    """MP-SAE with dense one-hot codes and plain autograd through every step, as common implementations have it."""

    def __init__(self, d_in: int, d_sae: int, k: int) -> None:
        super().__init__()
        self.dictionary = nn.Parameter(functional.normalize(torch.randn(d_sae, d_in), dim=1))
        self.k = k

    def loss(self, x: Tensor) -> Tensor:
        """Mean squared residual; a [row, d_sae] one-hot and two full products per step."""
        residual = x
        for _ in range(self.k):
            values, picks = (residual @ self.dictionary.T).max(1)
            code = functional.one_hot(picks, self.dictionary.shape[0]).to(x.dtype) * values[:, None]
            residual = residual - code @ self.dictionary
        return residual.square().mean()


def make_dense_step(d_in: int, d_sae: int, k: int, batches: Callable[[], Tensor]) -> Callable[[], None]:
    """A step of `DensePursuit` with the same optimizer, clipping and projection as ours."""
    module = DensePursuit(d_in, d_sae, k)
    optimizer = make_adam(module, OptimizerConfig())

    def step() -> None:
        optimizer.zero_grad()
        module.loss(batches()).backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            functional.normalize(module.dictionary, dim=1, out=module.dictionary.data)

    return step


def make_step(config: object, d_in: int, batches: Callable[[], Tensor]) -> Callable[[], None]:
    """One iteration of the loop as training runs it."""
    sae = build(config, d_in, 0)
    optimizer = make_adam(sae, OptimizerConfig())
    steps = fit(sae, iter(batches, None), optimizer, learning_rate=lambda _: 1e-3, clip=1.0)
    return lambda: next(steps) and None


def make_configs(d_sae: int, k: int) -> dict[str, object]:
    """Every architecture at one size."""
    return {
        "mp": MatchingPursuit(d_sae=d_sae, k=k),
        "mp, residual form": MatchingPursuit(d_sae=d_sae, k=k, method="residual"),
        "omp": OrthogonalPursuit(d_sae=d_sae, k=k),
        "topk": TopK(d_sae=d_sae, k=k),
        "batch_topk": BatchTopK(d_sae=d_sae, k=float(k)),
        "matryoshka": Matryoshka(d_sae=d_sae, k=float(k)),
        "relu": Relu(d_sae=d_sae, l0=float(k)),
        "jumprelu": JumpRelu(d_sae=d_sae, l0=float(k)),
        "gated": Gated(d_sae=d_sae, l0=float(k)),
        "abs_topk": AbsTopK(d_sae=d_sae, k=k),
        "p_anneal": PAnneal(d_sae=d_sae, l0=float(k), anneal_from=0, anneal_until=1),
        "msae": NestedTopK(d_sae=d_sae, k=k),
        "spade": Spade(d_sae=d_sae, l0=float(k)),
        "kds": DistanceWeighted(d_sae=d_sae, l0=float(k)),
    }


def measure(d_in: int, d_sae: int, k: int, batch: int, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of CPU per step of each, in rounds that visit all of them."""
    generator = torch.Generator().manual_seed(0)
    atoms = functional.normalize(torch.randn(d_sae, d_in, generator=generator), dim=1)

    def draw() -> Tensor:
        chosen = torch.randint(d_sae, (batch, k), generator=generator)
        return atoms[chosen].sum(1) * (d_in / k) ** 0.5

    # Drawn before the clock runs.
    stock = itertools.cycle([draw() for _ in range(4)])

    def batches() -> Tensor:
        return next(stock)

    configs = make_configs(d_sae, k)
    steps = {name: make_step(config, d_in, batches) for name, config in configs.items()}
    steps["mp, dense autograd"] = make_dense_step(d_in, d_sae, k, batches)
    return {name: taken.cpu for name, taken in alternate(steps, rounds).items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*", default=SHAPES)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"torch {torch.__version__}, {arguments.threads} thread(s), CPU ms per step, median of {arguments.rounds} rounds")
    for shape in arguments.shapes:
        taken = measure(*(int(part) for part in shape.split(",")), arguments.rounds)
        medians = {name: statistics.median(times) for name, times in taken.items()}
        print(f"\n(d_in, d_sae, k, batch) = ({shape})\n{'':22}{'ms':>9}{'min':>9}{'of topk':>9}{'dense mp is':>13}")
        for name, median in medians.items():
            ratio, speed = median / medians["topk"], medians["mp, dense autograd"] / median
            print(f"{name:22}{median:9.1f}{min(taken[name]):9.1f}{ratio:9.2f}{speed:12.1f}x")


if __name__ == "__main__":
    main()
