"""BatchTopK SAE: the k * batch largest encoder outputs of a batch; a threshold when a row stands alone."""

import dataclasses
from typing import Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from thresher.config import config
from thresher.errors import ConfigError
from thresher.train.arch.base import LinearCoder, LinearEncoder
from thresher.train.kernels import Codes, pack
from thresher.train.protocol import Stats

Fields = TypeVar("Fields", bound="BatchTopKFields")


@config
class BatchTopKFields(LinearEncoder):
    """Fields of the architectures that select over a batch."""

    k: float = 32
    """Atoms per row on average, at most d_sae; a fraction is allowed: the batch keeps round(k * rows) entries."""
    threshold_momentum: float = 0.99
    """How slowly the threshold that `encode` uses follows the smallest value kept in training batches."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.k <= self.d_sae:
            raise ConfigError(f"k={self.k}: keep more than 0 and at most d_sae={self.d_sae} atoms per row")
        if not 0 <= self.threshold_momentum < 1:
            raise ConfigError(f"threshold_momentum={self.threshold_momentum}: give a number from 0 to below 1")

    def with_l0(self: Fields, target: float) -> Fields:
        """The same, set to reach `target` active atoms per row: on average over a batch."""
        return dataclasses.replace(self, k=target)


@config
class BatchTopK(BatchTopKFields):
    """BatchTopK SAE with AuxK (arXiv 2412.06410)."""

    kind: Literal["batch_topk"] = "batch_topk"
    """Which architecture this is."""


class BatchTopKSAE(LinearCoder):
    """Trains with the largest outputs of the batch; encodes by a threshold, so that a code depends on its row only."""

    threshold: Tensor

    def __init__(self, settings: BatchTopKFields, d_in: int, generator: torch.Generator) -> None:
        super().__init__(d_in, settings, generator)
        self.settings = settings
        self.register_buffer("threshold", torch.zeros(()))

    def encode(self, x: Float[Tensor, "row d_in"], k: int | None = None) -> Codes:
        """The positive outputs that reach the threshold, largest first; the `k` largest of them when `k` is given."""
        activations = self.preactivate(x).relu()
        return pack(torch.where(activations >= self.threshold, activations, 0), k)

    def loss(self, x: Float[Tensor, "row d_in"]) -> tuple[Float[Tensor, ""], Stats]:
        """Mean squared error per dimension plus AuxK."""
        given, target = self.divide(x)
        preactivations = self.preactivate(given)
        kept, smallest = self.select(preactivations)
        residual, error = self.reconstruct(x, kept)
        aux = self.auxiliary(given, residual, preactivations, self.settings)
        loss = error + aux
        parts = {"loss": loss, "aux": aux, "threshold": self.threshold.clone(), "smallest_kept": smallest}
        return loss, self.describe(target, residual, (kept > 0).sum(1), (kept > 0).any(0), parts)

    def select(self, preactivations: Tensor) -> tuple[Tensor, Tensor]:
        """Dense activations with all but the round(k * rows) largest of the batch at zero; the smallest one kept.

        The smallest is infinite when nothing is kept.
        """
        activations, n_parts = preactivations.relu(), self.batch.n_parts
        n_kept = min(round(self.settings.k * activations.shape[0] * n_parts), activations.numel() * n_parts)
        values, places = activations.flatten().topk(min(n_kept, activations.numel()), sorted=False)
        values = self.batch.keep_largest(values, n_kept)
        kept = torch.zeros_like(activations).flatten().scatter(0, places, values).view_as(activations)
        positive = torch.where(values > 0, values, torch.inf).detach()
        return kept, self.batch.minimum(torch.cat([positive, positive.new_full((1,), torch.inf)]).amin())

    def reconstruct(self, x: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
        """The residual and the error to minimise."""
        given, target = self.divide(x)
        residual = target - kept @ self.atoms() - self.offset(given)
        return residual, residual.square().mean()

    def observe(self, stats: Stats) -> None:
        """Let the threshold follow the smallest value kept; the first batch sets it."""
        super().observe(stats)
        smallest, momentum = stats.parts["smallest_kept"], self.settings.threshold_momentum
        followed = torch.where(self.threshold > 0, torch.lerp(smallest, self.threshold, momentum), smallest)
        self.threshold.copy_(torch.where(smallest.isfinite(), followed, self.threshold))
