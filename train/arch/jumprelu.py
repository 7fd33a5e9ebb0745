"""JumpReLU SAE: a learned threshold per atom, trained through straight-through estimators."""

import dataclasses
import math
from typing import Any, Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from thresher.config import config
from thresher.errors import ConfigError
from thresher.train.arch.base import Dictionary, LinearCoder
from thresher.train.kernels import Codes, pack
from thresher.train.protocol import Stats

Fields = TypeVar("Fields", bound="JumpReluFields")


@config
class JumpReluFields(Dictionary):
    """Fields of the architectures with a threshold per atom and a penalty on L0."""

    sparsity: float = 1.0
    """Weight, beside the squared error per dimension, of L0 / d_in or, when `l0` is given, of (L0 / l0 - 1)^2."""
    l0: float | None = None
    """Wanted L0."""
    threshold: float = 1.0
    """Where the thresholds start, in units of an encoder output (about 1 when rows have norm sqrt(d_in))."""
    bandwidth: float = 1.0
    """Width of the kernel that estimates the derivative of the step, in the same units."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sparsity < 0:
            raise ConfigError(f"sparsity={self.sparsity}: a weight is not negative")
        if self.l0 is not None and not 0 < self.l0 <= self.d_sae:
            raise ConfigError(f"l0={self.l0}: want more than 0 and at most d_sae={self.d_sae}")
        if self.threshold <= 0 or self.bandwidth <= 0:
            raise ConfigError(f"threshold={self.threshold}, bandwidth={self.bandwidth}: both must be positive")

    def with_l0(self: Fields, target: float) -> Fields:
        """The same, set to reach `target` active atoms per row: by a penalty on the deviation."""
        return dataclasses.replace(self, l0=target)


@config
class JumpRelu(JumpReluFields):
    """JumpReLU SAE with an L0 penalty (arXiv 2407.14435)."""

    kind: Literal["jumprelu"] = "jumprelu"
    """Which architecture this is."""


class JumpReluSAE(LinearCoder):
    """An encoder output is active, at its full value, when it exceeds its atom's threshold."""

    def __init__(self, settings: JumpReluFields, d_in: int, generator: torch.Generator) -> None:
        super().__init__(d_in, settings, generator)
        self.settings = settings
        self.log_threshold = nn.Parameter(torch.full((settings.d_sae,), math.log(settings.threshold)))

    def encode(self, x: Float[Tensor, "row d_in"], k: int | None = None) -> Codes:
        """The outputs above their thresholds, largest first; the `k` largest when `k` is given."""
        return pack(jump(self.preactivate(x), self.log_threshold.exp(), self.settings.bandwidth), k)

    def loss(self, x: Float[Tensor, "row d_in"]) -> tuple[Float[Tensor, ""], Stats]:
        """Mean squared error per dimension plus the penalty on L0."""
        settings, threshold = self.settings, self.log_threshold.exp()
        given, target = self.divide(x)
        preactivations = self.preactivate(given)
        activations = jump(preactivations, threshold, settings.bandwidth)
        residual = target - activations @ self.atoms() - self.offset(given)
        l0 = self.batch.mean(step(preactivations, threshold, settings.bandwidth).sum(1).mean())
        sparsity = settings.sparsity * (l0 / target.shape[1] if settings.l0 is None else (l0 / settings.l0 - 1).square())
        loss = residual.square().mean() + sparsity
        is_active = activations.detach() > 0
        parts = {"loss": loss, "sparsity": sparsity}
        return loss, self.describe(target, residual, is_active.sum(1), is_active.any(0), parts)


def jump(z: Float[Tensor, "row d_sae"], threshold: Float[Tensor, "d_sae"], bandwidth: float) -> Float[Tensor, "row d_sae"]:
    """z where z > threshold, else 0. Pseudo-derivative for the threshold: -(threshold / bandwidth) K((z - threshold) /
    bandwidth) with K = 1 on [-1/2, 1/2] (arXiv 2407.14435, eq. 11)."""
    return _Jump.apply(z, threshold, bandwidth)  # pyright: ignore[reportReturnType]


def step(z: Float[Tensor, "row d_sae"], threshold: Float[Tensor, "d_sae"], bandwidth: float) -> Float[Tensor, "row d_sae"]:
    """1 where z > threshold, else 0. Pseudo-derivative for the threshold: -K((z - threshold) / bandwidth) / bandwidth;
    none for z (arXiv 2407.14435, eq. 12)."""
    return _Step.apply(z, threshold, bandwidth)  # pyright: ignore[reportReturnType]


class _Jump(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(z, threshold)
        ctx.bandwidth = bandwidth
        return torch.where(z > threshold, z, 0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        (gradient,) = gradients
        z, threshold = ctx.saved_tensors
        at_jump = _kernel(z, threshold, ctx.bandwidth)
        return torch.where(z > threshold, gradient, 0), -threshold * (gradient * at_jump).sum(0), None


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(z, threshold)
        ctx.bandwidth = bandwidth
        return (z > threshold).to(z.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, None]:
        (gradient,) = gradients
        z, threshold = ctx.saved_tensors
        return None, -(gradient * _kernel(z, threshold, ctx.bandwidth)).sum(0), None


def _kernel(z: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """The rectangle kernel over the bandwidth: 1 / bandwidth within half a bandwidth of the threshold."""
    return ((z - threshold).abs() < bandwidth / 2).to(z.dtype) / bandwidth
