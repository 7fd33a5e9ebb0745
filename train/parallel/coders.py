"""Architectures whose dictionary is split over several processes: matching pursuit and TopK."""

from collections.abc import Mapping
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from thresher.errors import ConfigError
from thresher.train.arch import Architecture, MatchingPursuit, TopK
from thresher.train.arch.base import Coder, Dictionary, LinearCoder
from thresher.train.arch.batch import pick_directions
from thresher.train.arch.mp import FEW, WEAK
from thresher.train.kernels import Codes, Nested, Rule, count_active, mark_fired, sparse_decode
from thresher.train.parallel.group import spread_over
from thresher.train.parallel.pursuit import find_codes, pursue_sharded
from thresher.train.parallel.shard import Shard, draw_atoms
from thresher.train.protocol import Stats

SPLIT = frozenset({"dictionary", "idle", "encoder", "encoder_bias"})
"""Tensors with a row per atom, of which each process has its own; it has all of every other tensor."""


class ShardedCoder(Coder):
    """A stretch of the atoms of a dictionary. `encode`, `decode`, `loss` and `observe` are calls of all its processes.

    Codes have the indices of the whole dictionary and are the same in all; `dictionary` and the atoms of `Stats.fired` are
    those of this process. Started from the same seed it has the atoms of the whole dictionary.
    """

    def prepare(self, d_in: int, shard: Shard, generator: torch.Generator) -> None:
        """Draw the own atoms, in the place of those that the constructor has drawn."""
        self.shard = shard
        atoms = draw_atoms(shard.n_atoms, d_in, generator, shard.first, shard.stop)
        self.dictionary.data.copy_(functional.normalize(atoms, dim=1))

    @property
    def d_sae(self) -> int:
        """Number of atoms of the whole dictionary."""
        return self.shard.n_atoms

    def decode(self, codes: Codes) -> Float[Tensor, "row d_in"]:
        """Sum of the atoms weighted by their values, plus the bias."""
        return self.shard.sum(sparse_decode(self.shard.own(codes), self.dictionary)) + self.bias

    @torch.no_grad()
    def describe(self, x: Tensor, residual: Tensor, l0: Tensor, fired: Tensor, parts: Mapping[str, Tensor]) -> Stats:
        """See `Coder`; `fired` are the own atoms."""
        stats = super().describe(x, residual, l0, fired, parts)
        dead = self.shard.sum(self.find_dead().sum().float()) / self.d_sae
        return stats._replace(parts={**stats.parts, "dead": dead})

    def mark_fired(self, codes: Codes) -> Tensor:
        """The own atoms with a non-zero coefficient anywhere in this process's rows."""
        return mark_fired(self.shard.own(codes), self.shard.n_own)


class ShardedPursuitSAE(ShardedCoder):
    """See `MatchingPursuitSAE`: the same losses, codes and updates."""

    def __init__(self, settings: MatchingPursuit, d_in: int, shard: Shard, generator: torch.Generator) -> None:
        super().__init__(d_in, _for_own(settings, shard), torch.Generator())
        self.prepare(d_in, shard, generator)
        self.settings = settings
        self.bias.requires_grad_(settings.bias)

    @property
    def k(self) -> int:
        """Steps in training."""
        return self.settings.k

    def encode(self, x: Float[Tensor, "row d_in"], k: int | None = None) -> Codes:
        """The picks of `k` steps."""
        found = find_codes(x - self.bias, self.dictionary, self.shard, self._rule(k))
        return Codes(found.indices, found.values)

    def encode_nested(self, x: Float[Tensor, "row d_in"], k_max: int) -> Nested:
        """The codes of up to `k_max` steps with the norms of the error that each number of them leaves."""
        found = find_codes((x - self.bias).detach(), self.dictionary, self.shard, self._rule(k_max))
        return Nested(Codes(found.indices, found.values), found.norms)

    def loss(self, x: Float[Tensor, "row d_in"]) -> tuple[Float[Tensor, ""], Stats]:
        """Mean squared residual per dimension, less `revive` times the pull on dead atoms."""
        settings = self.settings
        atoms = self.atoms() if settings.gradient == "tangent" else self.dictionary
        codes, residual = pursue_sharded(x - self.bias, atoms, self.shard, self._rule(None))
        loss = residual.square().mean()
        parts = {"loss": loss}
        if settings.revive > 0:
            parts["pull"] = settings.revive * self._pull(codes, residual, atoms)
            loss = parts["loss"] = loss - parts["pull"]
        with torch.no_grad():
            stats = self.describe(x, residual, count_active(codes), self.mark_fired(codes), parts)
            if settings.redraw:
                stats = stats._replace(kept=pick_directions(residual, settings.redraw, self.batch))
        return loss, stats

    def observe(self, stats: Stats) -> None:
        """Redraw dead atoms."""
        super().observe(stats)
        if stats.kept is not None:
            self._redraw(stats.kept)

    def _pull(self, codes: Codes, residual: Tensor, atoms: Tensor) -> Tensor:
        """See `MatchingPursuitSAE`."""
        if self.settings.revive_when == "idle":
            dead, residual = self.find_dead(), residual.detach()
        else:
            strong = torch.where(codes.values.detach().abs() >= WEAK, codes.values.detach(), 0)
            dead = ~self.batch.any(self.mark_fired(Codes(codes.indices, strong)))
            dead = dead & (self.shard.sum(dead.sum()) > FEW)
        n_dead = self.shard.sum(dead.sum().to(residual.dtype)).clamp_min(1)
        mean = spread_over(self.batch.mean(residual.mean(0)), self.shard.group)
        return self.shard.sum(((atoms @ mean) * dead).sum()) / n_dead

    @torch.no_grad()
    def _redraw(self, directions: Tensor) -> None:
        idle, atoms = self.shard.join(self.idle).topk(directions.shape[0])
        is_replaced = (idle >= self.dead_after) & directions.any(1)
        is_replaced &= (atoms >= self.shard.first) & (atoms < self.shard.stop)
        places = atoms[is_replaced] - self.shard.first
        self.dictionary[places] = directions[is_replaced]
        self.idle[places] = 0

    def _rule(self, k: int | None) -> Rule:
        settings = self.settings
        return Rule(settings.k if k is None else k, settings.residual_tol, settings.sign, reselect=True)


class ShardedTopKSAE(ShardedCoder, LinearCoder):
    """See `TopKSAE`: the same losses, codes and updates."""

    def __init__(self, settings: TopK, d_in: int, shard: Shard, generator: torch.Generator) -> None:
        super().__init__(d_in, _for_own(settings, shard), torch.Generator())
        self.prepare(d_in, shard, generator)
        self.encoder.data.copy_(self.dictionary.data)
        self.settings = settings

    def encode(self, x: Float[Tensor, "row d_in"], k: int | None = None) -> Codes:
        """The `k` largest positive outputs, largest first."""
        indices, scores = self.shard.merge_topk(self.preactivate(x), self.settings.k if k is None else k)
        values = scores.relu()
        return Codes(torch.where(values > 0, indices, 0), values)

    def loss(self, x: Float[Tensor, "row d_in"]) -> tuple[Float[Tensor, ""], Stats]:
        """Mean squared error per dimension plus AuxK."""
        with torch.no_grad():
            preactivations = self.preactivate(x)
            indices, scores = self.shard.merge_topk(preactivations, self.settings.k)
        # What leads to the encoder is used in parts: its gradient is the sum of those of all processes.
        centered = spread_over(x - self.bias, self.shard.group)
        codes = self._activate(centered, indices, torch.ones_like(indices, dtype=torch.bool))
        residual = x - self.shard.sum(sparse_decode(codes, self.atoms())) - self.bias
        aux = self._auxiliary(centered, residual, preactivations)
        loss = residual.square().mean() + aux
        with torch.no_grad():
            fired = mark_fired(codes, self.shard.n_own)
            return loss, self.describe(x, residual, (scores > 0).sum(1), fired, {"loss": loss, "aux": aux})

    def _activate(self, centered: Tensor, indices: Tensor, is_wanted: Tensor) -> Codes:
        """The own ones of the chosen atoms that are wanted, counted within the shard, with their positive outputs."""
        is_own = (indices >= self.shard.first) & (indices < self.shard.stop) & is_wanted
        codes = self.activate_centered(centered, torch.where(is_own, indices - self.shard.first, 0))
        return Codes(codes.indices, torch.where(is_own, codes.values, 0))

    def _auxiliary(self, centered: Tensor, residual: Tensor, preactivations: Tensor) -> Tensor:
        """See `LinearCoder`; the dead atoms are those of all processes."""
        settings, dead, target = self.settings, self.find_dead(), residual.detach()
        n_dead = self.shard.sum(dead.sum())
        if settings.aux == 0 or target.shape[0] == 0 or (dead.device.type == "cpu" and not bool(n_dead)):
            return residual.new_zeros(())
        aux_k = min(settings.aux_k or max(self.d_in // 2, 1), self.d_sae)
        indices, scores = self.shard.merge_topk(preactivations.masked_fill(~dead, -torch.inf), aux_k)
        codes = self._activate(centered, indices, scores > -torch.inf)
        missed = (target - self.shard.sum(sparse_decode(codes, self.atoms()))).square().sum()
        whole = self.batch.mean(target.square().sum())
        return settings.aux * self.batch.mean(missed) / whole.clamp_min(torch.finfo(target.dtype).tiny) * (n_dead > 0)


def check_shards(architecture: Architecture, n_shards: int) -> None:
    """Raises ConfigError when an architecture, or a field of it, cannot be split over so many processes."""
    if n_shards == 1:
        return
    where = f"parallel.dictionary_shards={n_shards}"
    if not isinstance(architecture, MatchingPursuit | TopK):
        raise ConfigError(f"{where}: only dictionaries of mp and topk can be split, sae.kind is {architecture.kind}")
    if architecture.d_sae < n_shards:
        raise ConfigError(f"{where}: d_sae={architecture.d_sae} atoms cannot be split over so many processes")
    if architecture.hull is not None:
        raise ConfigError(f"{where}: a hull needs the whole dictionary in one process; leave sae.hull out")
    if isinstance(architecture, MatchingPursuit) and architecture.dropout > 0:
        raise ConfigError(f"{where}: dropout of atoms is not split; give sae.dropout=0")
    if isinstance(architecture, MatchingPursuit) and architecture.method not in ("auto", "residual"):
        raise ConfigError(f"{where}: a split pursuit computes products anew at each step; give sae.method=auto")
    if isinstance(architecture, TopK) and architecture.selection != "full":
        raise ConfigError(f"{where}: a split selection is made in full precision; give sae.selection=full")


def build_shard(architecture: Architecture, d_in: int, seed: int, shard: Shard) -> ShardedPursuitSAE | ShardedTopKSAE:
    """This process's part of what `build` makes. Raises ConfigError when it cannot be split."""
    check_shards(architecture, shard.group.size)
    generator = torch.Generator().manual_seed(seed)
    if isinstance(architecture, MatchingPursuit):
        return ShardedPursuitSAE(architecture, d_in, shard, generator)
    return ShardedTopKSAE(cast(TopK, architecture), d_in, shard, generator)


def _for_own(settings: Dictionary, shard: Shard) -> Dictionary:
    return Dictionary(d_sae=shard.n_own, dead_after=settings.dead_after)
