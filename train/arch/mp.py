"""MP-SAE: matching pursuit as the encoder, one dictionary for both directions."""

import dataclasses
import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from thresher.config import config
from thresher.errors import ConfigError
from thresher.train.arch.base import Coder, Dictionary, remove_radial_gradient
from thresher.train.arch.batch import pick_directions
from thresher.train.arch.dropout import AtomDropout
from thresher.train.arch.reuse import LastPrepared
from thresher.train.kernels import (
    Codes,
    Method,
    Nested,
    Prepared,
    Sign,
    choose_installed,
    count_active,
    mark_fired,
    pursue,
    pursue_nested,
)
from thresher.train.protocol import Stats

BATCHES_PER_DICTIONARY = 8
"""A batch that is encoded is taken to be one of so many at the same dictionary when the method is chosen. By its size alone,
so that equal batches always get equal bits: one row is not worth a Gram matrix, a pass over a store is."""

NOTHING_PREPARED = ("residual", "reference")
"""Methods that derive nothing from a dictionary."""
WEAK, FEW = 1e-2, 10
"""With `revive_when="batch"`: a coefficient below `WEAK` does not count, and up to `FEW` dead atoms are left alone."""


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
    gradient: Literal["tangent", "raw"] = "tangent"
    """What the optimizer sees of the dictionary's gradient: the part that is tangent to the unit spheres of the atoms, or
    all of it, as where atoms are scaled back without a gradient (overcomplete); Adam then also adapts to radial parts."""
    dropout: float = 0.0
    """Share of the atoms, drawn anew for each training batch, that sits it out; encoding always uses all of them."""
    revive: float = 0.0
    """Weight of the pull of dead atoms towards the final residuals; 0 turns it off."""
    revive_when: Literal["idle", "batch"] = "idle"
    """Which atoms are pulled. `idle`: those that have not fired for `dead_after` rows. `batch`: those without a coefficient of
    0.01 or more in the batch, when there are more than 10 of them (overcomplete's documentation of MpSAE)."""
    redraw: int = 0
    """Dead atoms (not fired for `dead_after` rows) per batch, at most, that become directions of large final residuals; 0
    turns it off. Of 2048 atoms fitted to Zipf-sparse rows without noise, 92 % were dead at the end without revival, 91 and 86 %
    with a pull of 0.01 on `idle` and `batch` atoms, 3 % with `redraw=64`, for 0.3 times the error (three seeds)."""
    method: Method = "auto"
    """How the pursuit is computed; every method gives the same codes up to rounding."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.k <= self.d_sae:
            raise ConfigError(f"k={self.k}: pick between 1 and d_sae={self.d_sae} atoms")
        if self.residual_tol is not None and not 0 <= self.residual_tol < 1:
            raise ConfigError(f"residual_tol={self.residual_tol}: give a fraction of the row's norm, from 0 to below 1")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout={self.dropout}: give the share of atoms to leave out, from 0 to below 1")
        if self.revive < 0:
            raise ConfigError(f"revive={self.revive}: a weight is not negative")
        if not 0 <= self.redraw <= self.d_sae:
            raise ConfigError(f"redraw={self.redraw}: redraw between 0 and d_sae={self.d_sae} atoms per batch")
        if self.redraw and self.hull is not None:
            raise ConfigError(f"redraw={self.redraw}: redrawn atoms leave the hull; give redraw=0 beside it")

    def with_l0(self, target: float) -> "MatchingPursuit":
        """The same, set to reach `target` active atoms per row: as many steps, rounded up (repeats lower the L0)."""
        return dataclasses.replace(self, k=max(math.ceil(target), 1))


class MatchingPursuitSAE(Coder):
    """Encodes by pursuit over the decoder's own atoms, so that the residual of the pursuit is the error."""

    def __init__(self, settings: MatchingPursuit, d_in: int, generator: torch.Generator) -> None:
        super().__init__(d_in, settings, generator)
        self.settings = settings
        self.bias.requires_grad_(settings.bias)
        self.dropout = AtomDropout(settings.dropout, settings.d_sae, generator) if settings.dropout > 0 else None
        self._prepared = LastPrepared()

    def encode(self, x: Float[Tensor, "row d_in"], k: int | None = None) -> Codes:
        """The picks of `k` steps, also more than in training; fewer steps give a prefix of them.

        What the method derives from the dictionary is kept until the dictionary changes or is trained. Raises
        ValueError for rows that are not finite and for atoms without unit norm.
        """
        k = self.settings.k if k is None else k
        method, prepared = self._prepare_encoding(x, k)
        return self._pursue(x, self.dictionary, k, method=method, prepared=prepared)[0]

    @property
    def k(self) -> int:
        """Steps in training."""
        return self.settings.k

    def encode_nested(self, x: Float[Tensor, "row d_in"], k_max: int) -> Nested:
        """The codes of up to `k_max` steps with the norms of the error that each number of them leaves."""
        method, prepared = self._prepare_encoding(x, k_max)
        tol, sign = self.settings.residual_tol, self.settings.sign
        return pursue_nested(
            x - self.bias, self.dictionary, k_max, residual_tol=tol, sign=sign, method=method, prepared=prepared
        )

    def loss(self, x: Float[Tensor, "row d_in"]) -> tuple[Float[Tensor, ""], Stats]:
        """Mean squared residual per dimension, less `revive` times the pull on dead atoms."""
        codes, residual = self._pursue_trained(x)
        loss = residual.square().mean()
        parts = {"loss": loss}
        if self.settings.revive > 0:
            parts["pull"] = self.settings.revive * self._pull(codes, residual)
            loss = parts["loss"] = loss - parts["pull"]
        with torch.no_grad():
            l0, fired = count_active(codes), mark_fired(codes, self.d_sae)
            stats = self.describe(x, residual, l0, fired, parts)
            if self.settings.redraw:
                stats = stats._replace(kept=pick_directions(residual, self.settings.redraw, self.batch))
            return loss, stats

    def observe(self, stats: Stats) -> None:
        """Redraw dead atoms, and go on to the next choice of atoms that sit out."""
        super().observe(stats)
        if stats.kept is not None:
            self._redraw(stats.kept)
        if self.dropout is not None:
            self.dropout.advance()

    def _pull(self, codes: Codes, residual: Tensor) -> Tensor:
        """Mean inner product of final residuals and dead atoms, which is that of the mean residual with them.

        With `idle` the residual is a constant, so that only dead atoms move; with `batch` it is not, as where the recipe
        comes from.
        """
        if self.settings.revive_when == "idle":
            dead, residual = self.find_dead(), residual.detach()
        else:
            strong = torch.where(codes.values.detach().abs() >= WEAK, codes.values.detach(), 0)
            dead = ~self.batch.any(mark_fired(Codes(codes.indices, strong), self.d_sae))
            dead = dead & (dead.sum() > FEW)
        dead = dead.to(residual.dtype)
        atoms = self.atoms() if self.settings.gradient == "tangent" else self.dictionary
        return ((atoms @ self.batch.mean(residual.mean(0))) * dead).sum() / dead.sum().clamp_min(1)

    @torch.no_grad()
    def _redraw(self, directions: Tensor) -> None:
        """Put `directions` in the place of the atoms that have been idle longest, where those are dead."""
        idle, atoms = self.idle.topk(directions.shape[0])
        is_replaced = (idle >= self.dead_after) & directions.any(1)
        self.dictionary.index_copy_(
            0, atoms, torch.where(is_replaced[:, None], directions, self.dictionary.index_select(0, atoms))
        )
        self.idle.index_copy_(0, atoms, torch.where(is_replaced, 0, idle))

    def _pursue_trained(self, x: Tensor) -> tuple[Codes, Tensor]:
        """The pursuit of a training batch, over the atoms that take part in it, with the gradient that is wanted."""
        settings, atoms = self.settings, self.dictionary
        taking_part = None
        if self.dropout is not None and self.training:
            taking_part = self.dropout.draw(atoms.device)
            atoms = atoms.index_select(0, taking_part)
        if settings.gradient == "tangent":
            atoms = remove_radial_gradient(atoms)
        method = self._choose(x.shape[0], x, atoms, settings.k)
        prepared = None if method in NOTHING_PREPARED else self._prepared.renew(atoms, method)
        codes, residual = self._pursue(x, atoms, settings.k, method=method, prepared=prepared, check=False)
        if taking_part is not None:
            codes = Codes(torch.where(codes.values != 0, taking_part[codes.indices], 0), codes.values)
        return codes, residual

    def _prepare_encoding(self, x: Tensor, k: int) -> tuple[Method, Prepared | None]:
        method = self._choose(BATCHES_PER_DICTIONARY * x.shape[0], x, self.dictionary, k)
        return method, None if method in NOTHING_PREPARED else self._prepared.find(self.dictionary, method)

    def _pursue(
        self,
        x: Tensor,
        atoms: Tensor,
        k: int,
        *,
        method: Method,
        prepared: Prepared | None = None,
        check: bool = True,
    ) -> tuple[Codes, Tensor]:
        tol, sign = self.settings.residual_tol, self.settings.sign
        return pursue(x - self.bias, atoms, k, residual_tol=tol, sign=sign, method=method, prepared=prepared, check=check)

    def _choose(self, rows: int, x: Tensor, atoms: Tensor, k: int) -> Method:
        if self.settings.method != "auto":
            return self.settings.method
        return choose_installed(rows, x, atoms, k)
