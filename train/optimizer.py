"""Adam and its learning rate."""

import math
from typing import Literal

import torch
from torch import nn

from thresher.config import config
from thresher.errors import ConfigError


@config
class OptimizerConfig:
    """Adam with warm-up, a constant phase and a decay to zero."""

    lr: float = 1e-3
    """Learning rate of the constant phase."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of Adam's averages of the gradient and of its square."""
    warmup: float = 0.02
    """Fraction of the iterations in which the rate rises linearly from zero."""
    decay: Literal["none", "linear", "cosine"] = "linear"
    """How the rate falls to zero at the end."""
    decay_from: float = 0.8
    """Fraction of the iterations after which it falls."""
    clip: float | None = 1.0
    """Largest norm of the gradient."""

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ConfigError(f"lr={self.lr}: a learning rate is positive")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"betas={self.betas}: each is from 0 to below 1")
        if not 0 <= self.warmup <= self.decay_from <= 1:
            raise ConfigError(f"warmup={self.warmup}, decay_from={self.decay_from}: 0 <= warmup <= decay_from <= 1")
        if self.clip is not None and self.clip <= 0:
            raise ConfigError(f"clip={self.clip}: a norm to clip at is positive")


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
    return settings.lr * (1 - progress if settings.decay == "linear" else (1 + math.cos(math.pi * progress)) / 2)
