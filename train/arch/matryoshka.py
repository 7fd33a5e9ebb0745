"""Matryoshka SAE: every prefix of the dictionary reconstructs on its own; selection as in BatchTopK."""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from thresher.config import config
from thresher.errors import ConfigError
from thresher.train.arch.batch_topk import BatchTopKFields, BatchTopKSAE
from thresher.train.protocol import Stats

PARETO_SHAPE = 0.5


@config
class Matryoshka(BatchTopKFields):
    """Matryoshka SAE (arXiv 2503.17547) over BatchTopK codes."""

    kind: Literal["matryoshka"] = "matryoshka"
    """Which architecture this is."""
    prefixes: int | tuple[float, ...] = 5
    """Nested dictionaries per batch: a number of them, drawn anew each batch, or fixed fractions of d_sae."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.prefixes, int):
            if not 0 < self.prefixes <= self.d_sae:
                raise ConfigError(f"prefixes={self.prefixes}: draw between 1 and d_sae={self.d_sae}")
            return
        is_rising = all(a < b for a, b in zip((0.0, *self.prefixes), self.prefixes, strict=False))
        if not self.prefixes or not is_rising or self.prefixes[-1] != 1 or self.prefixes[0] * self.d_sae < 1:
            raise ConfigError(f"prefixes={self.prefixes}: give rising fractions of d_sae={self.d_sae} that end with 1")


class MatryoshkaSAE(BatchTopKSAE):
    """Sums the reconstruction errors of nested prefixes of the dictionary, the whole one among them."""

    def __init__(self, settings: Matryoshka, d_in: int, generator: torch.Generator) -> None:
        super().__init__(settings, d_in, generator)
        self.prefixes = settings.prefixes
        self.seed = int(torch.randint(2**31, (), generator=generator))
        self.n_batches = 0

    def reconstruct(self, x: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
        """The residual of the whole dictionary and the mean of the errors of all prefixes."""
        atoms = self.atoms()
        residual = x - self.bias
        error = residual.new_zeros(())
        start = 0
        stops = self.draw_prefixes()
        for stop in stops:
            residual = residual - kept[:, start:stop] @ atoms[start:stop]
            error = error + residual.square().mean()
            start = stop
        return residual, error / len(stops)

    def draw_prefixes(self) -> tuple[int, ...]:
        """Sizes of the nested dictionaries for the current batch, rising, the last one d_sae.

        Drawn without replacement from a Pareto law of shape 0.5 cut off at d_sae, by (seed, batches seen).
        """
        if not isinstance(self.prefixes, int):
            return tuple(round(fraction * self.d_sae) for fraction in self.prefixes)
        sizes = np.arange(1, self.d_sae)
        weight = sizes**-PARETO_SHAPE - (sizes + 1.0) ** -PARETO_SHAPE
        random = np.random.default_rng([self.seed, self.n_batches])
        drawn = random.choice(sizes, self.prefixes - 1, replace=False, p=weight / weight.sum()) if len(sizes) else sizes
        return (*sorted(drawn.tolist()), self.d_sae)

    def observe(self, stats: Stats) -> None:
        """Go on to the next draw of prefixes."""
        super().observe(stats)
        self.n_batches += 1

    def get_extra_state(self) -> Tensor:
        """Where the draws of prefixes are; kept on the host, so that slicing by them never waits."""
        return torch.tensor([self.seed, self.n_batches])

    def set_extra_state(self, state: Tensor) -> None:
        """Go on with the draws where `state` was taken."""
        self.seed, self.n_batches = (int(number) for number in state)
