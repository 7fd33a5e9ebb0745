"""ReLU SAE with an L1 penalty, whose weight may follow a wanted L0."""

import dataclasses
import math
from statistics import NormalDist
from typing import Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from thresher.config import config
from thresher.errors import ConfigError
from thresher.train.arch.base import Dictionary, LinearCoder
from thresher.train.kernels import Codes, pack
from thresher.train.protocol import Stats

Fields = TypeVar("Fields", bound="PenaltyFields")


@config
class PenaltyFields(Dictionary):
    """Fields of the architectures that a penalty on positive encoder outputs makes sparse."""

    l1: float = 1.0
    """Weight of the penalty on a code, its L1 norm, beside the squared error of its row; where it starts when `l0` is given."""
    l0: float | None = None
    """Wanted L0; the weight then grows while L0 is above it and shrinks while below."""
    l0_rate: float = 0.03
    """Largest lasting change of the weight per batch, relative, reached when L0 is off by a factor of e or more. Too small,
    the weight lags behind what training changes, and L0 ends off target; too large for a slow training, L0 swings."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.l1 < 0 or (self.l0 is not None and self.l1 == 0):
            raise ConfigError(f"l1={self.l1}: a weight is not negative, and positive when it has to follow l0={self.l0}")
        if self.l0 is not None and not 0 < self.l0 <= self.d_sae:
            raise ConfigError(f"l0={self.l0}: want more than 0 and at most d_sae={self.d_sae}")
        if not 0 < self.l0_rate < 1:
            raise ConfigError(f"l0_rate={self.l0_rate}: give a number between 0 and 1")

    def with_l0(self: Fields, target: float) -> Fields:
        """The same, set to reach `target` active atoms per row: by an adaptive penalty."""
        return dataclasses.replace(self, l0=target)


@config
class Relu(PenaltyFields):
    """ReLU SAE with an L1 penalty (arXiv 2309.08600), unit-norm atoms."""

    kind: Literal["relu"] = "relu"
    """Which architecture this is."""


class PenalizedCoder(LinearCoder):
    """A linear encoder beside the weight `l1` of a penalty, which follows the wanted L0 where one is given."""

    l1: Tensor
    l1_base: Tensor

    def __init__(self, settings: PenaltyFields, d_in: int, generator: torch.Generator) -> None:
        super().__init__(d_in, settings, generator)
        self.settings = settings
        if settings.l0 is not None:
            nn.init.constant_(self.encoder_bias, -_level_exceeded_by(settings.l0 / self.d_sae))
        self.register_buffer("l1_base", torch.tensor(float(settings.l1)))
        self.register_buffer("l1", torch.tensor(float(settings.l1)))

    def observe(self, stats: Stats) -> None:
        """Set the weight so that L0 moves to the wanted one."""
        super().observe(stats)
        follow_l0(self.l1, self.l1_base, stats, self.settings)


def follow_l0(l1: Tensor, l1_base: Tensor, stats: Stats, settings: PenaltyFields) -> None:
    """Change the weight of a penalty in place so that L0 moves to the wanted one, if one is given.

    A proportional-integral rule in logarithms: l1_base follows by at most exp(l0_rate) per batch, and l1 differs from it
    by the present excess (at most a factor of e), without which L0 swings around the target (measured).
    """
    if settings.l0 is not None:
        excess = (stats.parts["l0"].clamp_min(1e-3).log() - math.log(settings.l0)).clamp(-1, 1)
        l1_base.mul_((settings.l0_rate * excess).exp())
        l1.copy_(l1_base * excess.exp())


class ReluSAE(PenalizedCoder):
    """Every positive encoder output is active; the penalty makes few of them positive."""

    def encode(self, x: Float[Tensor, "row d_in"], k: int | None = None) -> Codes:
        """The positive outputs, largest first; the `k` largest when `k` is given."""
        return pack(self.preactivate(x).relu(), k)

    def loss(self, x: Float[Tensor, "row d_in"]) -> tuple[Float[Tensor, ""], Stats]:
        """(||x - x_hat||^2 + l1 ||z||_1) / d_in, mean over rows."""
        given, target = self.divide(x)
        activations = self.preactivate(given).relu()
        residual = target - activations @ self.atoms() - self.offset(given)
        sparsity = self.l1 * activations.sum(1).mean() / target.shape[1]
        loss = residual.square().mean() + sparsity
        is_active = activations.detach() > 0
        parts = {"loss": loss, "sparsity": sparsity, "l1": self.l1.clone()}
        return loss, self.describe(target, residual, is_active.sum(1), is_active.any(0), parts)


def _level_exceeded_by(share: float) -> float:
    """Level that this share of the initial encoder outputs exceeds, when rows have mean square 1: they are about normal.

    Started there instead of at half of all atoms, training needs far fewer rows (planted data with 6 active atoms, L0 8,
    600 iterations: FVU 0.22 instead of 0.80).
    """
    return NormalDist().inv_cdf(1 - min(share, 0.5))
