"""AbsTopK SAE: the k encoder outputs of each row that are largest in absolute value, with their signs."""

import dataclasses
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from thresher.config import config
from thresher.errors import ConfigError
from thresher.train.arch.base import LinearCoder, LinearEncoder
from thresher.train.kernels import Codes, mark_fired, sparse_decode, sparse_encode
from thresher.train.protocol import Stats


@config
class AbsTopK(LinearEncoder):
    """AbsTopK SAE (arXiv 2510.00404): hard thresholding, so that an atom serves in both directions; with AuxK."""

    kind: Literal["abs_topk"] = "abs_topk"
    """Which architecture this is."""
    k: int = 32
    """Atoms per row."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.k <= self.d_sae:
            raise ConfigError(f"k={self.k}: keep between 1 and d_sae={self.d_sae} atoms")

    def with_l0(self, target: float) -> "AbsTopK":
        """The same, set to reach `target` active atoms per row: k rounded."""
        return dataclasses.replace(self, k=max(round(target), 1))


class AbsTopKSAE(LinearCoder):
    """Keeps the `k` outputs of each row that are largest in absolute value. Coefficients may be negative."""

    def __init__(self, settings: AbsTopK, d_in: int, generator: torch.Generator) -> None:
        super().__init__(d_in, settings, generator)
        self.settings = settings

    def encode(self, x: Float[Tensor, "row d_in"], k: int | None = None) -> Codes:
        """The `k` outputs that are largest in absolute value, in that order."""
        k = min(k or self.settings.k, self.d_sae)
        return self.activate(x, self.preactivate(x).detach().abs().topk(k, dim=1).indices)

    def activate(self, x: Float[Tensor, "row d_in"], indices: Tensor) -> Codes:
        """The encoder's outputs at the chosen atoms only, whatever their signs."""
        bias = self.encoder_bias.index_select(0, indices.flatten()).view_as(indices)
        values = sparse_encode(x - self.bias, self.encoder, indices) + bias
        return Codes(torch.where(values != 0, indices, 0), values)

    def loss(self, x: Float[Tensor, "row d_in"]) -> tuple[Float[Tensor, ""], Stats]:
        """Mean squared error per dimension plus AuxK, for which dead atoms too are chosen by absolute value."""
        with torch.no_grad():
            sizes = self.preactivate(x).abs()
        codes = self.activate(x, sizes.topk(self.settings.k, dim=1).indices)
        residual = x - sparse_decode(codes, self.atoms()) - self.bias
        aux = self.auxiliary(x, residual, sizes, self.settings)
        loss = residual.square().mean() + aux
        with torch.no_grad():
            l0, fired = (codes.values != 0).sum(1), mark_fired(codes, self.d_sae)
        return loss, self.describe(x, residual, l0, fired, {"loss": loss, "aux": aux})
