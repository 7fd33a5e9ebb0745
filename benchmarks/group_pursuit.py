"""Is a pursuit of groups of atoms, or one that looks from coarse to fine, worth an architecture? MP-SAE beside both.

1. Group pursuit: the dictionary is cut into groups of g atoms; a step takes the group that explains most of the residual and
   all its atoms at once, with the least-squares coefficients. k / g steps make as many active atoms as k steps of matching
   pursuit. All are trained alike, at several rates; the table has the best of each, in the same number of optimizer steps.
2. From coarse to fine: atoms are clustered (spherical k-means); by the angle between a residual and a centre, and that of the
   farthest atom of the cluster, no atom of a cluster can have more than a bound, so that a cluster below the best atom found
   need not be looked at. The share of inner products that an exact search so still needs; and what is lost by looking into the
   nearest clusters only.

    python benchmarks/group_pursuit.py [--store STORE] [--hook-points vision.embed text.embed] [--d-sae 512] [--k 8]

Without a store the rows are planted: sums of `--together` atoms, with values of either sign when these are several, of each of
`--active` groups of four correlated ones. With `--npy A.npy
B.npy` they are the rows of files, the last fifth held out.
"""

import argparse
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from timing import describe_machine
from torch import Tensor, nn
from torch.nn import functional

from thresher.data.store import open_store
from thresher.train.arch import MatchingPursuit, build
from thresher.train.arch.base import Coder, Dictionary
from thresher.train.evaluate import evaluate
from thresher.train.kernels import Codes, count_active, mark_fired, pursue
from thresher.train.learner import Learner
from thresher.train.normalize import Normalizer
from thresher.train.optimizer import OptimizerConfig
from thresher.train.protocol import SAE, Stats
from thresher.train.split import read_side

JITTER = 1e-4
"""Added to the diagonal of a group's Gram matrix: two atoms of a group may become parallel."""
BEAMS = (1, 2, 4, 8)


class GroupPursuitSAE(Coder):
    """Each step takes the group of `size` atoms with the largest projection of the residual, whole."""

    def __init__(self, settings: Dictionary, d_in: int, generator: torch.Generator, size: int, n_steps: int) -> None:
        super().__init__(d_in, settings, generator)
        self.size, self.n_steps = size, n_steps

    def encode(self, x: Float[Tensor, "row d_in"], k: int | None = None) -> Codes:
        """The atoms of the chosen groups with their coefficients, of either sign."""
        with torch.no_grad():
            return self._pursue(x - self.bias, self.dictionary, self.n_steps if k is None else k // self.size)[0]

    def loss(self, x: Float[Tensor, "row d_in"]) -> tuple[Float[Tensor, ""], Stats]:
        """Mean squared residual per dimension."""
        codes, residual = self._pursue(x - self.bias, self.atoms(), self.n_steps)
        loss = residual.square().mean()
        with torch.no_grad():
            return loss, self.describe(x, residual, count_active(codes), mark_fired(codes, self.d_sae), {"loss": loss})

    def _pursue(self, residual: Tensor, atoms: Tensor, n_steps: int) -> tuple[Codes, Tensor]:
        groups = atoms.view(-1, self.size, self.d_in)
        gram = groups @ groups.mT + JITTER * torch.eye(self.size, device=atoms.device)
        with torch.no_grad():
            # |L^-1 D r| is the norm of the projection onto the span of the group's atoms D, with L L^T = D D^T.
            whitened = torch.linalg.solve_triangular(torch.linalg.cholesky(gram), groups, upper=False).flatten(0, 1)
        inverse, offsets = torch.linalg.inv(gram), torch.arange(self.size, device=atoms.device)
        indices: list[Tensor] = []
        values: list[Tensor] = []
        for _ in range(n_steps):
            with torch.no_grad():
                energy = functional.linear(residual, whitened).square().view(len(residual), -1, self.size).sum(2)
                best = energy.argmax(1)
            chosen = groups.index_select(0, best)
            correlations = torch.einsum("rgd,rd->rg", chosen, residual)
            value = torch.einsum("rgh,rh->rg", inverse.index_select(0, best), correlations)
            residual = residual - torch.einsum("rgd,rg->rd", chosen, value)
            indices.append(best[:, None] * self.size + offsets)
            values.append(value)
        return Codes(torch.cat(indices, 1), torch.cat(values, 1)), residual


class Rows(NamedTuple):
    """Normalised training rows, and raw held-out ones."""

    training: Tensor
    held_out: Tensor
    normalizer: Normalizer


class Trained(NamedTuple):
    """One dictionary and what it came to."""

    sae: SAE
    r2: float
    l0: float
    dead: float
    lr: float
    step_ms: float
    """CPU time of a training step, median."""


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", type=Path)
    parser.add_argument("--npy", type=Path, nargs="*", default=[])
    parser.add_argument("--hook-points", nargs="*", default=["vision.embed", "text.embed"])
    parser.add_argument("--d-sae", type=int, default=512)
    parser.add_argument("--k", type=int, default=8)
    parser.add_argument("--sizes", type=int, nargs="*", default=[2, 4])
    parser.add_argument("--iterations", type=int, default=500)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--lr", type=float, nargs="*", default=[0.003, 0.01, 0.03])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--clusters", type=int, nargs="*", default=[16, 64])
    parser.add_argument("--active", type=int, default=4)
    parser.add_argument("--together", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print(describe_machine())
    rows = read_rows(asked)
    print(
        f"{len(rows.training)} training rows of width {rows.training.shape[1]}, {len(rows.held_out)} held out; {vars(asked)}\n"
    )
    print("| pursuit | steps | lr | R2 held out | L0 | dead | CPU ms per training step |\n|---|---|---|---|---|---|---|")
    first: SAE | None = None
    for name, size, sign in [
        ("mp", 1, "relu"),
        ("mp, either sign", 1, "abs"),
        *((f"groups of {g}", g, "") for g in asked.sizes),
    ]:
        best = [
            max((train(rows, asked, size, sign, lr, seed) for lr in asked.lr), key=lambda one: one.r2) for seed in asked.seeds
        ]
        first = first or best[0].sae
        numbers = [np.mean([getattr(one, key) for one in best]) for key in ("r2", "l0", "dead", "step_ms")]
        spread = f" (+- {np.ptp([one.r2 for one in best]) / 2:.4f})" if len(best) > 1 else ""
        r2, l0, dead, step = numbers
        print(f"| {name} | {asked.k // size} | {best[0].lr:g} | {r2:.4f}{spread} | {l0:.2f} | {dead:.3f} | {step:.1f} |")
    assert first is not None
    compare_searches(first, rows, asked.k, asked.clusters)


def train(rows: Rows, asked: argparse.Namespace, size: int, sign: str, lr: float, seed: int) -> Trained:
    """Fit one dictionary and measure it."""
    d_in, generator = rows.training.shape[1], torch.Generator().manual_seed(seed)
    if size == 1:
        sae = build(MatchingPursuit(d_sae=asked.d_sae, k=asked.k, sign=sign), d_in, seed)
    else:
        sae = GroupPursuitSAE(Dictionary(d_sae=asked.d_sae), d_in, generator, size, asked.k // size)
    learner = Learner(sae, OptimizerConfig(lr=lr), asked.iterations)
    order = torch.Generator().manual_seed(seed + 1)
    times: list[float] = []
    for _ in range(asked.iterations):
        x = rows.training[torch.randint(len(rows.training), (asked.batch,), generator=order)]
        started = time.process_time()
        learner.step(x)
        times.append(1e3 * (time.process_time() - started))
    found = evaluate(sae, rows.normalizer, {"rows": [rows.held_out]})["pooled"]
    return Trained(sae, found.r2, found.l0, found.dead, lr, float(np.median(times)))


def compare_searches(sae: SAE, rows: Rows, k: int, clusters: Sequence[int]) -> None:
    """How much of a dictionary an exact search from coarse to fine looks at, and what an inexact one loses."""
    x = rows.normalizer.normalize(rows.held_out[:2000], 0)
    atoms = sae.dictionary.detach()
    bias = sae.bias.detach() if isinstance(sae.bias, nn.Parameter) else 0
    exact = pursue(x - bias, atoms, k)[1].square().sum(1).mean()
    print(
        "\n| clusters | inner products of an exact search, of all | excess error looking into the nearest "
        + " | ".join(map(str, BEAMS))
        + " |"
    )
    print("|" + "---|" * (2 + len(BEAMS)))
    for n in (n for n in clusters if n < len(atoms)):
        centres, owner = cluster(atoms, n)
        share = np.mean([count_needed(x - bias, atoms, centres, owner, step) for step in range(k)])
        lost = [float(pursue_nearest(x - bias, atoms, centres, owner, k, beam) / exact - 1) for beam in BEAMS]
        print(f"| {n} | {share:.2f} | " + " | ".join(f"{each:+.1%}" for each in lost) + " |")


def cluster(atoms: Tensor, n: int, rounds: int = 30) -> tuple[Tensor, Tensor]:
    """Centres of a spherical k-means, and for each atom its cluster."""
    centres = atoms[torch.randperm(len(atoms), generator=torch.Generator().manual_seed(0))[:n]]
    for _ in range(rounds):
        owner = (atoms @ centres.T).argmax(1)
        sums = torch.zeros_like(centres).index_add_(0, owner, atoms)
        centres = torch.where(sums.any(1, keepdim=True), functional.normalize(sums, dim=1), centres)
    return centres, (atoms @ centres.T).argmax(1)


def count_needed(x: Tensor, atoms: Tensor, centres: Tensor, owner: Tensor, step: int) -> float:
    """Share of the inner products that the exact choice of a step needs, centres included, when clusters come best first."""
    residual = pursue(x, atoms, step)[1] if step else x
    directions = functional.normalize(residual, dim=1)
    angle = torch.acos((directions @ centres.T).clamp(-1, 1))
    reach = torch.zeros(len(centres)).scatter_reduce(0, owner, torch.acos((atoms * centres[owner]).sum(1).clamp(-1, 1)), "amax")
    bound = torch.cos((angle - reach).clamp(0, math.pi))
    best = (directions @ atoms.T).amax(1, keepdim=True)
    sizes = torch.bincount(owner, minlength=len(centres)).float()
    # A search that looks at the cluster of the highest bound first sees every cluster whose bound is above the best atom.
    return float(((bound > best) * sizes).sum(1).mean() / len(atoms)) + len(centres) / len(atoms)


def pursue_nearest(x: Tensor, atoms: Tensor, centres: Tensor, owner: Tensor, k: int, beam: int) -> Tensor:
    """Mean squared residual of a pursuit that in each step looks into the `beam` clusters with the nearest centres only."""
    residual = x
    for _ in range(k):
        near = (residual @ centres.T).topk(min(beam, len(centres)), dim=1).indices
        is_seen = torch.zeros(len(x), len(centres), dtype=torch.bool).scatter(1, near, value=True)[:, owner]
        value, index = (residual @ atoms.T).masked_fill(~is_seen, -torch.inf).max(1)
        residual = residual - value.relu()[:, None] * atoms[index]
    return residual.square().sum(1).mean()


def read_rows(asked: argparse.Namespace) -> Rows:
    """The rows that were asked for, normalised to mean zero and norm sqrt(d_in) on average."""
    if asked.store is not None:
        store = open_store(asked.store)
        sides = [
            torch.cat([x for name in asked.hook_points for x in read_side(store, name, side, holdout=0.3, seed=0)])
            for side in ("training", "held_out")
        ]
    elif asked.npy:
        parts = [torch.from_numpy(np.load(path)).float() for path in asked.npy]
        cuts = [len(part) * 4 // 5 for part in parts]
        sides = [torch.cat([part[:cut] for part, cut in zip(parts, cuts, strict=True)])]
        sides.append(torch.cat([part[cut:] for part, cut in zip(parts, cuts, strict=True)]))
    else:
        sides = plant(asked.active, asked.together)
    mean = sides[0].mean(0, keepdim=True)
    scale = math.sqrt(mean.shape[1]) / (sides[0] - mean).norm(dim=1).square().mean().sqrt()
    normalizer = Normalizer(False, mean, scale[None])
    return Rows(normalizer.normalize(sides[0], 0), sides[1], normalizer)


def plant(active: int, together: int, n: int = 12_000, d_in: int = 64, n_groups: int = 64, size: int = 4) -> list[Tensor]:
    """Sums of atoms of a few groups; atoms of a group share a direction (cosine about 0.5)."""
    generator = torch.Generator().manual_seed(9)
    shared = torch.randn(n_groups, 1, d_in, generator=generator)
    atoms = functional.normalize(shared + torch.randn(n_groups, size, d_in, generator=generator), dim=2)
    groups = torch.rand(n, n_groups, generator=generator).topk(active, dim=1).indices
    members = torch.rand(*groups.shape, size, generator=generator).topk(together, dim=2).indices
    values = 1 + torch.rand(members.shape, generator=generator)
    if together > 1:
        values = values * (2 * torch.randint(2, values.shape, generator=generator) - 1)
    x = (atoms[groups[:, :, None], members] * values[..., None]).sum((1, 2))
    return [x[: n * 4 // 5], x[n * 4 // 5 :]]


if __name__ == "__main__":
    main()
