"""Training that starts with more atoms per row than it ends with."""

import dataclasses
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, cast

from thresher.errors import ConfigError
from thresher.train.optimizer import OptimizerConfig
from thresher.train.protocol import SAE


def find_k(sae: SAE, settings: OptimizerConfig) -> float:
    """The k that training ends with. Raises ConfigError: the architecture has none, or `k_start` does not fit it."""
    architecture = getattr(sae, "settings", None)
    check_k_start(architecture, settings)
    return float(cast(Any, architecture).k)


def check_k_start(architecture: object, settings: OptimizerConfig) -> None:
    """Raises ConfigError when `k_start` is given and does not fit the config of an architecture."""
    if settings.k_start is None:
        return
    k, d_sae = getattr(architecture, "k", None), getattr(architecture, "d_sae", None)
    if k is None or d_sae is None:
        kind = getattr(architecture, "kind", type(architecture).__name__)
        raise ConfigError(f"k_start={settings.k_start}: {kind} has no k to anneal; leave k_start out")
    if not k <= settings.k_start <= d_sae:
        raise ConfigError(f"k_start={settings.k_start}: anneal from at least k={k} and at most d_sae={d_sae}")


def compute_k(settings: OptimizerConfig, k: float, done: int, n_iterations: int) -> float:
    """Atoms per row of the iteration after `done`: on a line from `k_start` to `k`, which is reached at `k_until`."""
    n_annealed = round(settings.k_until * n_iterations)
    if settings.k_start is None or done >= n_annealed:
        return k
    return settings.k_start + (k - settings.k_start) * done / n_annealed


@contextmanager
def at_k(sae: SAE, k: float) -> Generator[None, None, None]:
    """Let the module's `loss` work with another k (rounded where it counts atoms) while the block runs.

    Outside of it `encode`, evaluations and checkpoints have the k that was configured.
    """
    module: Any = sae
    configured = module.settings
    module.settings = dataclasses.replace(configured, k=max(round(k), 1) if isinstance(configured.k, int) else k)
    try:
        yield
    finally:
        module.settings = configured
