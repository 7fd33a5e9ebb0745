"""K-Deep-Simplex and weighted-l1 sparse coding: unrolled coding with a penalty on the distances to the atoms used."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from thresher.config import config
from thresher.errors import ConfigError
from thresher.train.arch.base import Coder
from thresher.train.arch.relu import PenaltyFields, follow_l0
from thresher.train.arch.simplex import project_on_simplex
from thresher.train.kernels import Codes, pack
from thresher.train.protocol import Stats


@config
class DistanceWeighted(PenaltyFields):
    """Sparse coding with l1 weights ||x - a_j||^2, unrolled (K-Deep-Simplex, arXiv 2012.02134; WLSC, 2402.10213)."""

    kind: Literal["kds"] = "kds"
    """Which architecture this is."""
    l1: float = 0.5
    """Weight of sum_j z_j ||x - a_j||^2 beside half the squared error of the row; where it starts when `l0` is given."""
    constraint: Literal["simplex", "positive"] = "simplex"
    """What codes must be: non-negative with sum 1 (K-Deep-Simplex), or non-negative (weighted l1)."""
    unrolled: int = 15
    """Iterations of accelerated projected gradient descent that encode a row. Training keeps [row, d_sae] of each."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.unrolled < 1:
            raise ConfigError(f"unrolled={self.unrolled}: take at least one iteration")


class DistanceWeightedSAE(Coder):
    """Minimises 1/2 ||x - z A||^2 + l1 sum_j z_j ||x - a_j||^2 over z; trains A and the step through the iterations.

    Rows of A are unit-norm atoms at learned sizes; coefficients are z_j size_j. Nothing is added to z A.
    """

    l1: Tensor
    l1_base: Tensor

    def __init__(self, settings: DistanceWeighted, d_in: int, generator: torch.Generator) -> None:
        """Start sizes at sqrt(d_in), the norm of a normalised row, and the step at 1 / sigma_max(A)^2."""
        super().__init__(d_in, settings, generator)
        self.settings = settings
        self.bias.requires_grad_(False)
        self.log_size = nn.Parameter(torch.full((settings.d_sae,), float(d_in)).log() / 2)
        atoms = self.dictionary.detach()
        largest = torch.linalg.eigvalsh(atoms.T @ atoms if settings.d_sae > d_in else atoms @ atoms.T)[-1]
        self.log_step = nn.Parameter(-(largest * d_in).log())
        self.register_buffer("l1_base", torch.tensor(float(settings.l1)))
        self.register_buffer("l1", torch.tensor(float(settings.l1)))

    def encode(self, x: Float[Tensor, "row d_in"], k: int | None = None) -> Codes:
        """The coefficients above zero, largest first; the `k` largest when `k` is given."""
        size = self.log_size.exp()
        return pack(self.unroll(x, self.dictionary * size[:, None])[0] * size, k)

    def unroll(
        self, x: Float[Tensor, "row d_in"], points: Float[Tensor, "d_sae d_in"]
    ) -> tuple[Float[Tensor, "row d_sae"], Float[Tensor, "row d_sae"]]:
        """Weights z of the points after the iterations, and ||x - a_j||^2. Momentum t / (t + 3) (arXiv 2012.02134)."""
        products = x @ points.T
        distances = (x.square().sum(1, keepdim=True) - 2 * products + points.square().sum(1)).relu()
        constant, step = self.l1 * distances - products, self.log_step.exp()
        weights = ahead = torch.zeros_like(products)
        for t in range(self.settings.unrolled):
            gradient = constant if t == 0 else ahead @ points @ points.T + constant
            before, weights = weights, self._project(ahead - step * gradient)
            ahead = weights + t / (t + 3) * (weights - before)
        return weights, distances

    def loss(self, x: Float[Tensor, "row d_in"]) -> tuple[Float[Tensor, ""], Stats]:
        """(1/2 ||x - x_hat||^2 + l1 sum_j z_j ||x - a_j||^2) / d_in, mean over rows."""
        atoms, size = self.atoms(), self.log_size.exp()
        weights, distances = self.unroll(x, atoms * size[:, None])
        activations = weights * size
        residual = x - activations @ atoms
        locality = self.l1 * (weights * distances).sum(1).mean() / self.d_in
        loss = residual.square().mean() / 2 + locality
        is_active = activations.detach() > 0
        parts = {"loss": loss, "locality": locality, "l1": self.l1.clone()}
        return loss, self.describe(x, residual, is_active.sum(1), is_active.any(0), parts)

    def observe(self, stats: Stats) -> None:
        """Set the weight of the distances so that L0 moves to the wanted one."""
        super().observe(stats)
        follow_l0(self.l1, self.l1_base, stats, self.settings)

    def _project(self, z: Tensor) -> Tensor:
        return project_on_simplex(z) if self.settings.constraint == "simplex" else z.relu()
