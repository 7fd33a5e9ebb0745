"""OMP-SAE: orthogonal matching pursuit as the encoder, one dictionary for both directions."""

import dataclasses
import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from thresher.config import config
from thresher.errors import ConfigError
from thresher.train.arch.base import Coder, Dictionary
from thresher.train.kernels import Codes, Sign, count_active, mark_fired, orthogonal_pursue
from thresher.train.protocol import Stats


@config
class OrthogonalPursuit(Dictionary):
    """Orthogonal-matching-pursuit SAE: the coefficients are the least-squares fit on the atoms picked (Pati et al. 1993)."""

    kind: Literal["omp"] = "omp"
    """Which architecture this is."""
    k: int = 32
    """Atoms picked per row, all different."""
    sign: Sign = "relu"
    """Pick the largest inner product if positive (`relu`), whatever its sign (`signed`), or in absolute value (`abs`). The
    fit may give an atom a negative coefficient in each case."""
    residual_tol: float | None = None
    """Stop a row when the norm of its residual is at most this fraction of the row's norm."""
    bias: bool = True
    """Learn a bias that is subtracted before the pursuit and added after it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.k <= self.d_sae:
            raise ConfigError(f"k={self.k}: pick between 1 and d_sae={self.d_sae} atoms")
        if self.residual_tol is not None and not 0 <= self.residual_tol < 1:
            raise ConfigError(f"residual_tol={self.residual_tol}: give a fraction of the row's norm, from 0 to below 1")

    def with_l0(self, target: float) -> "OrthogonalPursuit":
        """The same, set to reach `target` active atoms per row: as many steps, rounded up."""
        return dataclasses.replace(self, k=max(math.ceil(target), 1))


class OrthogonalPursuitSAE(Coder):
    """Encodes over the decoder's own atoms, so that the residual of the fit is the error."""

    def __init__(self, settings: OrthogonalPursuit, d_in: int, generator: torch.Generator) -> None:
        super().__init__(d_in, settings, generator)
        self.settings = settings
        self.bias.requires_grad_(settings.bias)

    def encode(self, x: Float[Tensor, "row d_in"], k: int | None = None) -> Codes:
        """The picks of `k` steps, also more than in training; fewer steps pick a prefix of them and fit it anew."""
        return self._pursue(x, self.dictionary, self.settings.k if k is None else k, check=True)[0]

    def loss(self, x: Float[Tensor, "row d_in"]) -> tuple[Float[Tensor, ""], Stats]:
        """Mean squared residual per dimension."""
        codes, residual = self._pursue(x, self.atoms(), self.settings.k, check=False)
        loss = residual.square().mean()
        with torch.no_grad():
            l0, fired = count_active(codes), mark_fired(codes, self.d_sae)
        return loss, self.describe(x, residual, l0, fired, {"loss": loss})

    def _pursue(self, x: Tensor, atoms: Tensor, k: int, *, check: bool) -> tuple[Codes, Tensor]:
        tol, sign = self.settings.residual_tol, self.settings.sign
        return orthogonal_pursue(x - self.bias, atoms, min(k, self.d_sae), residual_tol=tol, sign=sign, check=check)
