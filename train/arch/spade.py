"""SpaDE: a code is the projection of negative distances to prototypes onto the simplex."""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from thresher.config import config
from thresher.train.arch.base import Coder
from thresher.train.arch.relu import PenaltyFields, follow_l0
from thresher.train.arch.simplex import project_on_simplex
from thresher.train.kernels import Codes, pack
from thresher.train.protocol import Stats


@config
class Spade(PenaltyFields):
    """SpaDE (arXiv 2503.01822): sparsemax of distances; `l1` weighs the distances of a row to its prototypes."""

    kind: Literal["spade"] = "spade"
    """Which architecture this is."""
    l1: float = 1e-3
    """Weight of sum_i z_i ||x - w_i||^2 beside the squared error of the row; where it starts when `l0` is given."""


class SpadeSAE(Coder):
    """z = sparsemax(-sharpness ||x - w_i||^2), x_hat = sum_i z_i size_i d_i, with unit-norm atoms d_i and learned sizes.

    Coefficients are z_i size_i. Nothing is added to x_hat: it lies in the convex hull of the atoms at their sizes.
    """

    l1: Tensor
    l1_base: Tensor

    def __init__(self, settings: Spade, d_in: int, generator: torch.Generator) -> None:
        """Start prototypes at the atoms at their sizes, normally distributed, and sharpness at 1 / (2 d_in)."""
        super().__init__(d_in, settings, generator)
        self.settings = settings
        self.bias.requires_grad_(False)
        sizes = torch.randn(settings.d_sae, d_in, generator=generator).norm(dim=1)
        self.log_size = nn.Parameter(sizes.log())
        self.prototypes = nn.Parameter(self.dictionary.detach() * sizes[:, None])
        self.raw_sharpness = nn.Parameter(torch.tensor(math.log(math.expm1(1 / (2 * d_in)))))
        self.register_buffer("l1_base", torch.tensor(float(settings.l1)))
        self.register_buffer("l1", torch.tensor(float(settings.l1)))

    def encode(self, x: Float[Tensor, "row d_in"], k: int | None = None) -> Codes:
        """The coefficients above zero, largest first; the `k` largest when `k` is given."""
        return pack(self.weigh(x)[0] * self.log_size.exp(), k)

    def weigh(self, x: Float[Tensor, "row d_in"]) -> tuple[Float[Tensor, "row d_sae"], Float[Tensor, "row"]]:
        """Weights z of the prototypes, which sum to 1, and sum_i z_i ||x - w_i||^2.

        One product of matrices: ||x||^2 shifts all distances of a row alike, which sparsemax does not see.
        """
        sharpness = functional.softplus(self.raw_sharpness)
        closeness = functional.linear(2 * x, self.prototypes, -self.prototypes.square().sum(1))
        weights = project_on_simplex(sharpness * closeness)
        return weights, x.square().sum(1) - (weights * closeness).sum(1)

    def loss(self, x: Float[Tensor, "row d_in"]) -> tuple[Float[Tensor, ""], Stats]:
        """(||x - x_hat||^2 + l1 sum_i z_i ||x - w_i||^2) / d_in, mean over rows (arXiv 2503.01822, section 4)."""
        weights, distance = self.weigh(x)
        activations = weights * self.log_size.exp()
        residual = x - activations @ self.atoms()
        locality = self.l1 * distance.mean() / self.d_in
        loss = residual.square().mean() + locality
        is_active = activations.detach() > 0
        parts = {"loss": loss, "locality": locality, "l1": self.l1.clone()}
        return loss, self.describe(x, residual, is_active.sum(1), is_active.any(0), parts)

    def observe(self, stats: Stats) -> None:
        """Set the weight of the distances so that L0 moves to the wanted one."""
        super().observe(stats)
        follow_l0(self.l1, self.l1_base, stats, self.settings)
