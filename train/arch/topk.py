"""TopK SAE: the k largest encoder outputs of each row."""

import dataclasses
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from thresher.config import config
from thresher.errors import ConfigError
from thresher.train.arch.base import LinearCoder, LinearEncoder
from thresher.train.kernels import Codes, mark_fired, sparse_decode
from thresher.train.protocol import Stats


@config
class TopK(LinearEncoder):
    """TopK SAE with AuxK (arXiv 2406.04093)."""

    kind: Literal["topk"] = "topk"
    """Which architecture this is."""
    k: int = 32
    """Atoms per row."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.k <= self.d_sae:
            raise ConfigError(f"k={self.k}: keep between 1 and d_sae={self.d_sae} atoms")

    def with_l0(self, target: float) -> "TopK":
        """The same, set to reach `target` active atoms per row: k rounded."""
        return dataclasses.replace(self, k=max(round(target), 1))


class TopKSAE(LinearCoder):
    """Keeps the `k` largest positive encoder outputs of each row. Its gradients are sparse like its codes."""

    def __init__(self, settings: TopK, d_in: int, generator: torch.Generator) -> None:
        super().__init__(d_in, settings, generator)
        self.settings = settings

    def encode(self, x: Float[Tensor, "row d_in"], k: int | None = None) -> Codes:
        """The `k` largest positive outputs, largest first."""
        with torch.no_grad():
            indices = self.preactivate(x).topk(min(k or self.settings.k, self.d_sae), dim=1).indices
        return self.activate(x, indices)

    def loss(self, x: Float[Tensor, "row d_in"]) -> tuple[Float[Tensor, ""], Stats]:
        """Mean squared error per dimension plus AuxK."""
        with torch.no_grad():
            preactivations = self.preactivate(x)
            indices = preactivations.topk(self.settings.k, dim=1).indices
        codes = self.activate(x, indices)
        residual = x - sparse_decode(codes, self.atoms()) - self.bias
        aux = self.auxiliary(x, residual, preactivations, self.settings)
        loss = residual.square().mean() + aux
        with torch.no_grad():
            l0, fired = (codes.values > 0).sum(1), mark_fired(codes, self.d_sae)
        return loss, self.describe(x, residual, l0, fired, {"loss": loss, "aux": aux})
