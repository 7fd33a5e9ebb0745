"""Gated SAE: one half of the encoder decides which atoms are active, the other how much; only the first is penalised."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from thresher.config import config
from thresher.train.arch.relu import PenalizedCoder, PenaltyFields
from thresher.train.kernels import Codes, pack
from thresher.train.protocol import Stats


@config
class Gated(PenaltyFields):
    """Gated SAE with tied encoder directions (arXiv 2404.16014); `l1` weighs the positive part of the gate."""

    kind: Literal["gated"] = "gated"
    """Which architecture this is."""


class GatedSAE(PenalizedCoder):
    """Active where gate = W (x - bias) + encoder_bias > 0, at relu(exp(log_gain) W (x - bias) + magnitude_bias).

    arXiv 2404.16014, eq. 5 to 7; W is the encoder.
    """

    def __init__(self, settings: Gated, d_in: int, generator: torch.Generator) -> None:
        super().__init__(settings, d_in, generator)
        self.log_gain = nn.Parameter(torch.zeros(settings.d_sae))
        self.magnitude_bias = nn.Parameter(torch.zeros(settings.d_sae))

    def encode(self, x: Float[Tensor, "row d_in"], k: int | None = None) -> Codes:
        """The positive magnitudes behind open gates, largest first; the `k` largest when `k` is given."""
        return pack(self.measure(self.preactivate(x)), k)

    def measure(self, gate: Float[Tensor, "row d_sae"]) -> Float[Tensor, "row d_sae"]:
        """Dense codes for the gate's values before the step."""
        magnitude = (gate - self.encoder_bias) * self.log_gain.exp() + self.magnitude_bias
        return torch.where(gate > 0, magnitude.relu(), 0)

    def loss(self, x: Float[Tensor, "row d_in"]) -> tuple[Float[Tensor, ""], Stats]:
        """(||x - x_hat||^2 + l1 ||relu(gate)||_1 + ||x - x_gate||^2) / d_in, mean over rows.

        x_gate decodes relu(gate) with a copy of the decoder that gets no gradient (arXiv 2404.16014, eq. 8).
        """
        gate = self.preactivate(x)
        activations, opened = self.measure(gate), gate.relu()
        residual = x - activations @ self.atoms() - self.bias
        auxiliary = (x - opened @ self.dictionary.detach() - self.bias.detach()).square().mean()
        sparsity = self.l1 * opened.sum(1).mean() / self.d_in
        loss = residual.square().mean() + sparsity + auxiliary
        is_active = activations.detach() > 0
        parts = {"loss": loss, "sparsity": sparsity, "aux": auxiliary, "l1": self.l1.clone()}
        return loss, self.describe(x, residual, is_active.sum(1), is_active.any(0), parts)
