"""MSAE: one encoder and one dictionary that reconstruct at k, 2 k, 4 k, ... atoms per row."""

import dataclasses
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from thresher.config import config
from thresher.errors import ConfigError
from thresher.train.arch.base import Dictionary, LinearCoder
from thresher.train.arch.selection import find_topk
from thresher.train.kernels import Codes
from thresher.train.protocol import Stats


@config
class NestedTopK(Dictionary):
    """Matryoshka SAE over nested numbers of atoms (arXiv 2502.20578; the idea is also that of HierarchicalTopK, 2505.24473).

    Not to be confused with `matryoshka`, whose prefixes of the dictionary are nested.
    """

    kind: Literal["msae"] = "msae"
    """Which architecture this is."""
    k: int = 64
    """The smallest number of atoms per row, which doubles up to d_sae; codes have so many unless asked for more."""
    weights: Literal["uniform", "reverse"] = "uniform"
    """How much each number counts: all the same, or L, L - 1, ..., 1 from the smallest to the largest of L numbers."""
    error: Literal["relative", "absolute"] = "relative"
    """What is averaged over rows: squared error by the squared norm of the row, or squared error per dimension."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.k <= self.d_sae:
            raise ConfigError(f"k={self.k}: keep between 1 and d_sae={self.d_sae} atoms")

    def with_l0(self, target: float) -> "NestedTopK":
        """The same, set to reach `target` active atoms per row: the smallest k, rounded."""
        return dataclasses.replace(self, k=max(round(target), 1))

    def list_ks(self) -> tuple[int, ...]:
        """The nested numbers of atoms per row: k, 2 k, 4 k, ... below d_sae, and d_sae."""
        doublings = (self.d_sae // self.k).bit_length()
        return (*(k for i in range(doublings) if (k := self.k * 2**i) < self.d_sae), self.d_sae)


class NestedTopKSAE(LinearCoder):
    """Sums the errors of the k largest positive outputs for nested k; the last k, d_sae, is a plain ReLU."""

    def __init__(self, settings: NestedTopK, d_in: int, generator: torch.Generator) -> None:
        super().__init__(d_in, settings, generator)
        self.settings = settings

    def encode(self, x: Float[Tensor, "row d_in"], k: int | None = None) -> Codes:
        """The `k` largest positive outputs, largest first; with `k=d_sae` all of them."""
        k = min(k or self.settings.k, self.d_sae)
        return self.activate(x, find_topk(x - self.bias, self.encoder, self.encoder_bias, k))

    def loss(self, x: Float[Tensor, "row d_in"]) -> tuple[Float[Tensor, ""], Stats]:
        """Weighted mean of the errors at each k. The statistics are those of the smallest k.

        arXiv 2502.20578, eq. 3. Outputs are sorted once, and what each k adds is decoded once: a product of matrices per k.
        """
        residuals, smallest = self.reconstruct(x)
        n = len(residuals)
        weights = range(n, 0, -1) if self.settings.weights == "reverse" else [1] * n
        errors = [self._measure(residual, x) for residual in residuals]
        loss = sum((w * e for w, e in zip(weights, errors, strict=True)), start=x.new_zeros(())) / sum(weights)
        is_active = smallest.detach() > 0
        parts = {"loss": loss, "reconstruction_all": residuals[-1].square().mean()}
        return loss, self.describe(x, residuals[0], is_active.sum(1), is_active.any(0), parts)

    def reconstruct(self, x: Float[Tensor, "row d_in"]) -> tuple[list[Tensor], Tensor]:
        """The residuals at each k, and the dense codes of the smallest."""
        ks, atoms = self.settings.list_ks(), self.atoms()
        activations = self.preactivate(x).relu()
        values, indices = activations.topk(ks[-2] if len(ks) > 1 else 0, dim=1)
        added = [
            torch.zeros_like(activations).scatter(1, indices[:, start:stop], values[:, start:stop])
            for start, stop in pairwise((0, *ks[:-1]))
        ]
        added.append(activations.scatter(1, indices, 0))
        residuals = [x - self.bias - added[0] @ atoms]
        for part in added[1:]:
            residuals.append(residuals[-1] - part @ atoms)
        return residuals, added[0]

    def _measure(self, residual: Tensor, x: Tensor) -> Tensor:
        if self.settings.error == "absolute":
            return residual.square().mean()
        return (residual.square().sum(1) / x.square().sum(1).clamp_min(torch.finfo(x.dtype).tiny)).mean()
