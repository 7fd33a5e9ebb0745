"""Rows and dictionaries that the benchmarks of pursuit run on."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from thresher.train.arch import MatchingPursuit, build
from thresher.train.loop import fit
from thresher.train.optimizer import OptimizerConfig, make_adam


class Shape(NamedTuple):
    """Sizes of one comparison."""

    d_in: int
    d_sae: int
    k: int
    batch: int

    def __str__(self) -> str:
        return f"d_in {self.d_in}, d_sae {self.d_sae}, k {self.k}, batch {self.batch}"


def plant_rows(shape: Shape) -> tuple[Tensor, Tensor]:
    """Sparse combinations of unit atoms with noise, and a dictionary near those atoms, as late in a training."""
    generator = torch.Generator().manual_seed(0)
    atoms = functional.normalize(torch.randn(shape.d_sae, shape.d_in, generator=generator), dim=1)
    x = torch.zeros(shape.batch, shape.d_in)
    for _ in range(shape.k):
        chosen = torch.randint(shape.d_sae, (shape.batch,), generator=generator)
        x += atoms[chosen] * torch.rand(shape.batch, 1, generator=generator)
    x += 0.01 * torch.randn(shape.batch, shape.d_in, generator=generator)
    return x, functional.normalize(atoms + 0.02 * torch.randn(shape.d_sae, shape.d_in, generator=generator), dim=1)


def load_rows(path: Path) -> Tensor:
    """Activations from a .npy file, [row, d_in] or [hook, row, d_in]: centred by hook, then scaled to mean norm 1."""
    loaded = torch.from_numpy(np.load(path).astype(np.float32))
    if loaded.ndim not in (2, 3):
        raise ValueError(f"{path}: has shape {list(loaded.shape)}, expected [row, d_in] or [hook, row, d_in]")
    x = (loaded - loaded.mean(-2, keepdim=True)).flatten(0, -2)
    return x / x.norm(dim=1).mean()


def train_dictionary(x: Tensor, shape: Shape, iterations: int) -> Tensor:
    """A dictionary fitted to the rows by our own training of MP-SAE, in random batches."""
    settings = MatchingPursuit(d_sae=shape.d_sae, k=shape.k, bias=False)
    sae = build(settings, shape.d_in, 0)
    generator = torch.Generator().manual_seed(0)
    batches = (x[torch.randint(len(x), (min(256, len(x)),), generator=generator)] for _ in range(iterations))
    for _ in fit(sae, batches, make_adam(sae, OptimizerConfig()), learning_rate=lambda _: 3e-3, clip=1.0):
        pass
    return sae.dictionary.detach().clone()
