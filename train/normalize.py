"""What is done to activations before a dictionary sees them, and how it is undone."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from thresher.config import config
from thresher.data.store import Store
from thresher.data.stream import Balance
from thresher.errors import ConfigError, StoreError
from thresher.train.split import read_side


@config
class NormalizeConfig:
    """First the rows, then the centre, then the scale."""

    rows: Literal["as_is", "unit"] = "as_is"
    """`unit` divides every row by its norm first; a reconstruction is then a unit-norm row too, lengths are not kept."""
    center: Literal["none", "joint", "per_hook_point"] = "joint"
    """Subtract nothing, one mean over all hook points (weighted as the stream's `balance`), or each hook point's own mean.

    The own means take most of the gap between modalities away before a dictionary can show it."""
    scale: Literal["none", "one", "sqrt_d_in"] = "sqrt_d_in"
    """Scale to this root-mean-square norm: one scale for all hook points, with `per_hook_point` centres each its own."""
    statistics_rows: int = 1 << 20
    """Training rows per hook point that means and norms are taken from, spread evenly over the store."""

    def __post_init__(self) -> None:
        if self.statistics_rows < 1:
            raise ConfigError(f"statistics_rows={self.statistics_rows}: take at least one row")


class Normalizer(NamedTuple):
    """An affine map per hook point, after an optional division of each row by its norm."""

    is_unit: bool
    """Rows are brought to unit norm first."""
    mean: Float[Tensor, "hook_point d_in"]
    """What is subtracted."""
    scale: Float[Tensor, "hook_point"]
    """What the centred rows are multiplied by."""

    def normalize(self, x: Float[Tensor, "row d_in"], group: int | Int[Tensor, "row"]) -> Float[Tensor, "row d_in"]:
        """Raw activations as the dictionary sees them; `group` is the index of the hook point, of all rows or of each."""
        return (self.target(x) - self.mean[group]) * self.scale[group, None]

    def invert(self, x: Float[Tensor, "row d_in"], group: int | Int[Tensor, "row"]) -> Float[Tensor, "row d_in"]:
        """The activations (unit-norm ones if `is_unit`) that `normalize` turns into `x`."""
        return x / self.scale[group, None] + self.mean[group]

    def target(self, x: Float[Tensor, "row d_in"]) -> Float[Tensor, "row d_in"]:
        """What a reconstruction is compared with: the rows themselves, or at unit norm if `is_unit`."""
        return functional.normalize(x, dim=1) if self.is_unit else x

    def to(self, device: torch.device) -> "Normalizer":
        """The same on another device."""
        return Normalizer(self.is_unit, self.mean.to(device), self.scale.to(device))


class _Moments(NamedTuple):
    """Of the training rows of one hook point, in float64."""

    n_rows: int
    mean: Tensor
    square: float
    """Mean squared norm."""


def measure(
    store: Store, hook_points: Sequence[str], settings: NormalizeConfig, *, holdout: float, seed: int, balance: Balance
) -> Normalizer:
    """Fit a normaliser to training rows only: one pass over at most `statistics_rows` of each hook point.

    The store's own moments are not used, because they include the held-out rows and rows that are not at unit norm.
    Raises StoreError when a hook point has no training rows, rows that are not finite, or rows that are all equal.
    """
    moments = [_measure(store, name, settings, holdout, seed) for name in hook_points]
    total = sum(each.n_rows for each in moments)
    weights = [1 / len(moments) if balance == "equal" else each.n_rows / total for each in moments]
    joint = torch.stack([weight * each.mean for weight, each in zip(weights, moments, strict=True)]).sum(0)
    zero = torch.zeros_like(joint)
    means = [{"none": zero, "joint": joint, "per_hook_point": each.mean}[settings.center] for each in moments]
    # E|x - m|^2 = E|x|^2 - 2 <m, E x> + |m|^2
    squares = [each.square - 2 * mean @ each.mean + mean @ mean for each, mean in zip(moments, means, strict=True)]
    if settings.center != "per_hook_point":
        squares = [torch.stack([weight * square for weight, square in zip(weights, squares, strict=True)]).sum()] * len(means)
    wanted = {"none": None, "one": 1.0, "sqrt_d_in": float(joint.shape[0]) ** 0.5}[settings.scale]
    for name, square in zip(hook_points, squares, strict=True):
        if wanted is not None and not square > 0:
            raise StoreError(f"{store.path}: {name}: all its training rows are equal: they cannot be scaled; use scale: none")
    norms = torch.stack([square.sqrt() for square in squares])
    scale = torch.ones_like(norms) if wanted is None else wanted / norms
    return Normalizer(settings.rows == "unit", torch.stack(means).float(), scale.float())


def _measure(store: Store, hook_point: str, settings: NormalizeConfig, holdout: float, seed: int) -> _Moments:
    total = torch.zeros(store.hook_points[hook_point].width, dtype=torch.float64)
    n_rows, square = 0, 0.0
    rows = read_side(store, hook_point, "training", holdout=holdout, seed=seed, at_most=settings.statistics_rows)
    for chunk in rows:
        x = (functional.normalize(chunk, dim=1) if settings.rows == "unit" else chunk).double()
        n_rows += x.shape[0]
        total += x.sum(0)
        square += float(x.square().sum())
    if n_rows == 0:
        raise StoreError(f"{store.path}: {hook_point}: no training rows with holdout={holdout}; harvest more, hold out fewer")
    if not math.isfinite(square):
        raise StoreError(
            f"{store.path}: {hook_point}: activations that are not finite; harvest again with on_nonfinite: drop, or in float32"
        )
    return _Moments(n_rows, total / n_rows, square / n_rows)
