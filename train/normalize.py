"""What is done to activations before a dictionary sees them, and how it is undone."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from thresher.config import config
from thresher.data.mixing import Balance, weigh
from thresher.data.readable import Readable
from thresher.errors import ConfigError, StoreError
from thresher.train.split import name_nonfinite, read_side


@config
class NormalizeConfig:
    """First the rows, then the centre, then the scale."""

    rows: Literal["as_is", "unit", "layer"] = "as_is"
    """`unit` divides every row by its norm first; a reconstruction is then a unit-norm row too, lengths are not kept. `layer`
    subtracts each row's own mean before that, which is a layer norm over the root of d_in - 1."""
    center: Literal["none", "joint", "per_modality", "per_hook_point"] = "joint"
    """Subtract nothing, one mean over all hook points (weighted as the stream weighs them), or a mean of each modality's or
    each hook point's own.

    The own means take most of the gap between modalities away before a dictionary can show it."""
    scale: Literal["none", "one", "sqrt_d_in"] = "sqrt_d_in"
    """Scale to this root-mean-square norm: one scale for all hook points, or one for each that has a centre of its own."""
    statistics_rows: int = 1 << 20
    """Training rows per hook point that means and norms are taken from, spread evenly over the store."""

    def __post_init__(self) -> None:
        if self.statistics_rows < 1:
            raise ConfigError(f"statistics_rows={self.statistics_rows}: take at least one row")


LAYER_EPSILON = 1e-5
"""Added to a row's standard deviation by `layer`, as SAELens does."""


class Normalizer(NamedTuple):
    """An affine map per hook point, after an optional division of each row by its norm."""

    is_unit: bool
    """Rows are brought to unit norm first."""
    mean: Float[Tensor, "hook_point d_in"]
    """What is subtracted."""
    scale: Float[Tensor, "hook_point"]
    """What the centred rows are multiplied by."""
    widths: tuple[int, ...] = ()
    """Of hook points whose rows stand side by side, each with its own map (and norm); `mean` is then filled up with zeros,
    and there is one `group`, 0. Empty where each row is of one hook point."""
    is_centred: bool = False
    """Rows lose their own mean before they are brought to unit norm."""

    def normalize(self, x: Float[Tensor, "row d_in"], group: int | Int[Tensor, "row"]) -> Float[Tensor, "row d_in"]:
        """Raw activations as the dictionary sees them; `group` is the index of the hook point, of all rows or of each."""
        if self.widths:
            return torch.cat([each.normalize(part, 0) for each, part in self._divide(x)], dim=1)
        return (self.target(x) - self.mean[group]) * self.scale[group, None]

    def invert(self, x: Float[Tensor, "row d_in"], group: int | Int[Tensor, "row"]) -> Float[Tensor, "row d_in"]:
        """The activations (unit-norm ones if `is_unit`) that `normalize` turns into `x`."""
        if self.widths:
            return torch.cat([each.invert(part, 0) for each, part in self._divide(x)], dim=1)
        return x / self.scale[group, None] + self.mean[group]

    def target(self, x: Float[Tensor, "row d_in"]) -> Float[Tensor, "row d_in"]:
        """What a reconstruction is compared with: the rows themselves, or at unit norm if `is_unit`."""
        if self.widths:
            return torch.cat([each.target(part) for each, part in self._divide(x)], dim=1)
        if self.is_centred:
            centred = x - x.mean(dim=1, keepdim=True)
            return centred / (torch.linalg.vector_norm(centred, dim=1, keepdim=True) + _layer_floor(x.shape[1]))
        return functional.normalize(x, dim=1) if self.is_unit else x

    def restore(self, x_hat: Float[Tensor, "*row d_in"], x: Float[Tensor, "*row d_in"]) -> Float[Tensor, "*row d_in"]:
        """Reconstructions with the length, and the mean, that `target` took from the rows `x`."""
        if not self.is_unit:
            return x_hat
        mean = x.mean(dim=-1, keepdim=True) if self.is_centred else torch.zeros_like(x[..., :1])
        return x_hat * torch.linalg.vector_norm(x - mean, dim=-1, keepdim=True) + mean

    def select(self, blocks: Sequence[int]) -> "Normalizer":
        """That of some of the hook points side by side."""
        index = list(blocks)
        return self._replace(mean=self.mean[index], scale=self.scale[index], widths=tuple(self.widths[i] for i in index))

    def to(self, device: torch.device) -> "Normalizer":
        """The same on another device."""
        return self._replace(mean=self.mean.to(device), scale=self.scale.to(device))

    def _divide(self, x: Tensor) -> Iterator[tuple["Normalizer", Tensor]]:
        """Each hook point's own normaliser and columns."""
        for index, (width, part) in enumerate(zip(self.widths, x.split(list(self.widths), dim=1), strict=True)):
            own = self.mean[index : index + 1, :width], self.scale[index : index + 1]
            yield Normalizer(self.is_unit, *own, is_centred=self.is_centred), part


def shape_rows(settings: NormalizeConfig) -> Normalizer:
    """A normaliser that does with rows what the settings say, and neither centres nor scales."""
    return Normalizer(settings.rows != "as_is", torch.zeros(1, 1), torch.ones(1), is_centred=settings.rows == "layer")


def _layer_floor(width: int) -> float:
    """A standard deviation is a norm over the root of the width less one."""
    return LAYER_EPSILON * math.sqrt(max(width - 1, 1))


class _Moments(NamedTuple):
    """Of the training rows of one hook point, in float64."""

    n_rows: int
    mean: Tensor
    square: float
    """Mean squared norm."""


def measure(
    store: Readable,
    hook_points: Sequence[str],
    settings: NormalizeConfig,
    *,
    holdout: float,
    seed: int,
    balance: Balance,
    weights: Mapping[str, float] | None = None,
) -> Normalizer:
    """Fit a normaliser to training rows only: one pass over at most `statistics_rows` of each hook point.

    The store's own moments are not used, because they include the held-out rows and rows that are not at unit norm. Of
    several stores each counts by its rows within a hook point. Raises StoreError when a hook point has no training rows,
    rows that are not finite, or rows that are all equal.
    """
    moments = [_measure(store, name, settings, holdout, seed) for name in hook_points]
    rows = {name: each.n_rows for name, each in zip(hook_points, moments, strict=True)}
    shares = [float(weight) for weight in weigh(rows, balance, weights or {})]
    modalities = [store.hook_points[name].modality for name in hook_points]
    groups = {"per_hook_point": list(hook_points), "per_modality": modalities}.get(settings.center, ["all"] * len(hook_points))
    means = _average([each.mean for each in moments], shares, groups)
    if settings.center == "none":
        means = [torch.zeros_like(mean) for mean in means]
    # E|x - m|^2 = E|x|^2 - 2 <m, E x> + |m|^2
    squares = [each.square - 2 * mean @ each.mean + mean @ mean for each, mean in zip(moments, means, strict=True)]
    squares = _average(squares, shares, groups)
    wanted = {"none": None, "one": 1.0, "sqrt_d_in": float(means[0].shape[0]) ** 0.5}[settings.scale]
    for name, square in zip(hook_points, squares, strict=True):
        if wanted is not None and not square > 0:
            raise StoreError(f"{store.path}: {name}: all its training rows are equal: they cannot be scaled; use scale: none")
    norms = torch.stack([square.sqrt() for square in squares])
    scale = torch.ones_like(norms) if wanted is None else wanted / norms
    return shape_rows(settings)._replace(mean=torch.stack(means).float(), scale=scale.float())


def _average(values: Sequence[Tensor], shares: Sequence[float], groups: Sequence[str]) -> list[Tensor]:
    """For each value the weighted mean of those of its group."""
    means: dict[str, Tensor] = {}
    for name in dict.fromkeys(groups):
        members = [index for index, group in enumerate(groups) if group == name]
        total = sum(shares[index] for index in members)
        means[name] = torch.stack([shares[index] / total * values[index] for index in members]).sum(0)
    return [means[group] for group in groups]


def _measure(store: Readable, hook_point: str, settings: NormalizeConfig, holdout: float, seed: int) -> _Moments:
    total = torch.zeros(store.hook_points[hook_point].width, dtype=torch.float64)
    n_rows, square = 0, 0.0
    rows = read_side(store, hook_point, "training", holdout=holdout, seed=seed, at_most=settings.statistics_rows)
    for chunk in rows:
        x = shape_rows(settings).target(chunk).double()
        n_rows += x.shape[0]
        total += x.sum(0)
        square += float(x.square().sum())
    if n_rows == 0:
        raise StoreError(f"{store.path}: {hook_point}: no training rows with holdout={holdout}; harvest more, hold out fewer")
    if not math.isfinite(square):
        raise StoreError(
            f"{store.path}: {hook_point}: activations that are not finite: {name_nonfinite(store, hook_point)}; harvest again "
            "with on_nonfinite: drop, or in float32; of imported arrays leave such rows out"
        )
    return _Moments(n_rows, total / n_rows, square / n_rows)
