"""MP-SAE: matching pursuit as the encoder, one dictionary for both directions."""

import dataclasses
import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from thresher.config import config
from thresher.errors import ConfigError
from thresher.train.arch.base import Coder, Dictionary
from thresher.train.kernels import Codes, Method, Sign, count_active, mark_fired, pursue
from thresher.train.protocol import Stats


@config
class MatchingPursuit(Dictionary):
    """Matching-pursuit SAE (arXiv 2506.03093)."""

    kind: Literal["mp"] = "mp"
    """Which architecture this is."""
    k: int = 32
    """Atoms picked per row, repeats allowed; L0 counts different atoms and can be lower."""
    sign: Sign = "relu"
    """Pick the largest inner product if positive (`relu`), whatever its sign (`signed`), or in absolute value (`abs`)."""
    residual_tol: float | None = None
    """Stop a row when the norm of its residual is at most this fraction of the row's norm."""
    bias: bool = True
    """Learn a bias that is subtracted before the pursuit and added after it."""
    revive: float = 0.0
    """Weight of the pull of dead atoms towards the final residuals; 0 turns it off."""
    method: Method = "auto"
    """How the pursuit is computed; every method gives the same codes up to rounding."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.k <= self.d_sae:
            raise ConfigError(f"k={self.k}: pick between 1 and d_sae={self.d_sae} atoms")
        if self.residual_tol is not None and not 0 <= self.residual_tol < 1:
            raise ConfigError(f"residual_tol={self.residual_tol}: give a fraction of the row's norm, from 0 to below 1")
        if self.revive < 0:
            raise ConfigError(f"revive={self.revive}: a weight is not negative")

    def with_l0(self, target: float) -> "MatchingPursuit":
        """The same, set to reach `target` active atoms per row: as many steps, rounded up (repeats lower the L0)."""
        return dataclasses.replace(self, k=max(math.ceil(target), 1))


class MatchingPursuitSAE(Coder):
    """Encodes by pursuit over the decoder's own atoms, so that the residual of the pursuit is the error."""

    def __init__(self, settings: MatchingPursuit, d_in: int, generator: torch.Generator) -> None:
        super().__init__(d_in, settings, generator)
        self.settings = settings
        self.bias.requires_grad_(settings.bias)

    def encode(self, x: Float[Tensor, "row d_in"], k: int | None = None) -> Codes:
        """The picks of `k` steps, also more than in training; fewer steps give a prefix of them."""
        return self._pursue(x, self.dictionary, k or self.settings.k)[0]

    def loss(self, x: Float[Tensor, "row d_in"]) -> tuple[Float[Tensor, ""], Stats]:
        """Mean squared residual per dimension, less the pull on dead atoms.

        The pull is the recipe of overcomplete's documentation of MpSAE: the mean inner product of final residuals and
        dead atoms; here an atom is dead after `dead_after` rows, and the residual is a constant.
        """
        atoms = self.atoms()
        codes, residual = self._pursue(x, atoms, self.settings.k)
        loss = residual.square().mean()
        parts = {"loss": loss}
        if self.settings.revive > 0:
            dead = self.find_dead().to(x.dtype)
            pull = (residual.detach().mean(0) * atoms).sum(1)
            parts["pull"] = self.settings.revive * (pull * dead).sum() / dead.sum().clamp_min(1)
            loss = parts["loss"] = loss - parts["pull"]
        with torch.no_grad():
            l0, fired = count_active(codes), mark_fired(codes, self.d_sae)
        return loss, self.describe(x, residual, l0, fired, parts)

    def _pursue(self, x: Tensor, atoms: Tensor, k: int) -> tuple[Codes, Tensor]:
        settings = self.settings
        return pursue(x - self.bias, atoms, k, residual_tol=settings.residual_tol, sign=settings.sign, method=settings.method)
