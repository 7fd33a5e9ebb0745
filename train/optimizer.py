"""Adam, its learning rate, and what surrounds a step."""

import math
from typing import Literal

import torch
from torch import nn

from thresher.config import config
from thresher.errors import ConfigError

Precision = Literal["fp32", "bf16"]
"""In which precision products of matrices are taken."""


@config
class OptimizerConfig:
    """Adam with warm-up, a constant phase and a decay, and what happens in and after each step.

    The default rate is warm-up, stable, decay (WSD); `decay_from` at the end of `warmup` makes the decay the whole rest.
    """

    lr: float = 1e-3
    """Learning rate of the constant phase."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of Adam's averages of the gradient and of its square."""
    warmup: float = 0.02
    """Fraction of the iterations in which the rate rises linearly from zero."""
    decay: Literal["none", "linear", "cosine", "sqrt"] = "linear"
    """How the rate falls at the end; `sqrt` is 1 - sqrt(progress) (arXiv 2405.18392), steep at first."""
    decay_from: float = 0.8
    """Fraction of the iterations after which it falls."""
    lr_end: float = 0.0
    """Fraction of `lr` that the rate falls to."""
    clip: float | None = 1.0
    """Largest norm of the gradient."""
    precision: Precision = "fp32"
    """`bf16` takes products of matrices in bfloat16 (autocast). Parameters, gradients, Adam and pursuits stay in float32."""
    micro_batches: int = 1
    """Parts that a batch goes through the module in, one after the other, to save memory; one optimizer step for all. The
    gradient is that of the whole batch, but for what an architecture decides over a batch (docs/training.md)."""
    ema: float | None = None
    """Decay of a moving average of the weights per iteration, such as 0.999: evaluations and the checkpoint then have the
    average. None when not given."""
    k_start: float | None = None
    """Atoms per row in the first iteration, for architectures with a `k`; falls linearly to the `k` of the architecture."""
    k_until: float = 0.5
    """Fraction of the iterations after which `k` is reached."""

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ConfigError(f"lr={self.lr}: a learning rate is positive")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"betas={self.betas}: each is from 0 to below 1")
        if not 0 <= self.warmup <= self.decay_from <= 1:
            raise ConfigError(f"warmup={self.warmup}, decay_from={self.decay_from}: 0 <= warmup <= decay_from <= 1")
        if not 0 <= self.lr_end <= 1:
            raise ConfigError(f"lr_end={self.lr_end}: give a fraction of lr={self.lr}, from 0 to 1")
        if self.clip is not None and self.clip <= 0:
            raise ConfigError(f"clip={self.clip}: a norm to clip at is positive")
        if self.micro_batches < 1:
            raise ConfigError(f"micro_batches={self.micro_batches}: give at least 1")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ConfigError(f"ema={self.ema}: a decay is between 0 and 1, such as 0.999")
        if self.k_start is not None and self.k_start <= 0:
            raise ConfigError(f"k_start={self.k_start}: start with at least the k that training ends with")
        if not 0 <= self.k_until <= 1:
            raise ConfigError(f"k_until={self.k_until}: give a fraction of the iterations, from 0 to 1")


def make_adam(module: nn.Module, settings: OptimizerConfig) -> torch.optim.Adam:
    """Adam over the parameters that want a gradient, fused where the device has it."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    is_fused = all(parameter.device.type in ("cpu", "cuda") for parameter in parameters)
    return torch.optim.Adam(parameters, lr=settings.lr, betas=settings.betas, fused=is_fused)


def compute_learning_rate(settings: OptimizerConfig, done: int, n_iterations: int) -> float:
    """Learning rate of the iteration after `done` of `n_iterations`."""
    n_warmup = round(settings.warmup * n_iterations)
    if done < n_warmup:
        return settings.lr * (done + 1) / n_warmup
    n_constant = round(settings.decay_from * n_iterations)
    if settings.decay == "none" or done < n_constant:
        return settings.lr
    progress = min((done - n_constant) / max(n_iterations - n_constant, 1), 1.0)
    left = {"linear": 1 - progress, "cosine": (1 + math.cos(math.pi * progress)) / 2, "sqrt": 1 - math.sqrt(progress)}
    return settings.lr * (settings.lr_end + (1 - settings.lr_end) * left[settings.decay])
