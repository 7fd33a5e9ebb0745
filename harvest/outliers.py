"""Rows with an unusually large norm: kept, left out, or scaled down, the same whatever stands beside them in a batch."""

import fnmatch
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from thresher.config import config
from thresher.data.store import open_store
from thresher.errors import ConfigError


@config
class Outliers:
    """What becomes of activations whose Euclidean norm is above a bound; NaN and infinity are `on_nonfinite`'s matter."""

    action: Literal["drop", "clip"]
    """`drop` leaves the row out at every hook point that shares its rows (all layers of a tower), `clip` scales the
    activation down to the bound, at that hook point only. Both are counted, and stand in the status of the item."""
    above: float | dict[str, float]
    """The bound; or one for each name or glob of hook points, others have none."""
    reference: Path | None = None
    """A store of the same model: `above` then counts multiples of the median norm that the hook point has there. A first
    harvest with a `limit` makes one."""

    def __post_init__(self) -> None:
        bounds = self.above if isinstance(self.above, dict) else {"above": self.above}
        for name, bound in bounds.items():
            if not bound > 0:
                raise ConfigError(f"outliers.above: {name}={bound}: a norm above 0")


def find_bounds(settings: Outliers | None, hook_points: Sequence[str]) -> dict[str, float]:
    """Hook point -> largest norm; hook points without a bound are missing.

    Raises ConfigError: a pattern that fits no hook point, a reference that lacks one; StoreError: no such store.
    """
    if settings is None:
        return {}
    patterns = settings.above if isinstance(settings.above, dict) else {"*": settings.above}
    for pattern in patterns:
        if not fnmatch.filter(hook_points, pattern):
            raise ConfigError(f"outliers.above: {pattern!r} fits none of {', '.join(hook_points)}")
    found = {
        name: float(bound) for pattern, bound in reversed(patterns.items()) for name in fnmatch.filter(hook_points, pattern)
    }
    bounds = {name: found[name] for name in hook_points if name in found}
    return bounds if settings.reference is None else _scale(settings.reference, bounds)


def _scale(reference: Path, bounds: Mapping[str, float]) -> dict[str, float]:
    store = open_store(reference)
    missing = [name for name in bounds if name not in store.hook_points or not store.rows(name)]
    if missing:
        raise ConfigError(f"outliers.reference={reference}: no rows of {missing[0]}; it has {', '.join(store.hook_points)}")
    return {name: bound * store.moments(name).norm_quantiles[0.5] for name, bound in bounds.items()}


def find_outliers(activations: Float[Tensor, "row d"], bound: float) -> Bool[Tensor, " row"]:
    """Marks the rows whose Euclidean norm, in float32, is above the bound."""
    return torch.linalg.vector_norm(activations, dim=1, dtype=torch.float32) > bound


def clip_rows(activations: Float[Tensor, "row d"], bound: float, rows: Bool[Tensor, " row"]) -> Float[Tensor, "row d"]:
    """The activations with the marked rows scaled down to the bound, in their own type."""
    norms = torch.linalg.vector_norm(activations[rows], dim=1, keepdim=True, dtype=torch.float32)
    clipped = activations.clone()
    clipped[rows] = (activations[rows].float() * (bound / norms)).to(activations.dtype)
    return clipped
