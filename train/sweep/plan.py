"""The members of a sweep: which groups there are, and the training that each of them is."""

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from thresher.errors import ConfigError
from thresher.train.arch import Architecture
from thresher.train.classical import Classical
from thresher.train.config import TrainConfig
from thresher.train.optimizer import OptimizerConfig
from thresher.train.sweep.config import SweepConfig


class Group(NamedTuple):
    """What is compared with other groups: one setting, trained with every seed."""

    name: str
    architecture: str
    """Its name in the configuration."""
    sae: Architecture
    """At its size, before its sparsity is set."""
    l0: float | None
    """Wanted L0; None keeps the sparsity as configured."""
    optimizer: OptimizerConfig
    lrs: tuple[float, ...]
    """Learning rates to choose from; one when there is nothing to choose."""


def list_groups(settings: SweepConfig) -> list[Group]:
    """All groups in the order of the configuration. A name holds the value of every axis of the grid that has values."""
    grid, base = settings.grid, settings.base.optimizer
    found: list[Group] = []
    for (name, sae), d_sae, l0 in itertools.product(settings.architectures.items(), grid.d_sae or (None,), grid.l0 or (None,)):
        parts = [name] + ([] if l0 is None else [f"l0={l0:g}"]) + ([] if d_sae is None else [f"d_sae={d_sae}"])
        at = "-".join(parts)
        sized = _resize(sae, d_sae, l0, at)
        # What is fitted once has no learning rate.
        lrs = (base.lr,) if isinstance(sae, Classical) else grid.lr or (base.lr,)
        if settings.search is not None or not grid.lr or isinstance(sae, Classical):
            found.append(Group(at, name, sized, l0, base, lrs))
        else:
            found += [Group(f"{at}-lr={lr:g}", name, sized, l0, base, (lr,)) for lr in lrs]
    for name, member in settings.members.items():
        optimizer = member.optimizer or base
        found.append(Group(name, name, member.sae, None, optimizer, (optimizer.lr,)))
    return found


def _resize(sae: Architecture, d_sae: int | None, l0: float | None, where: str) -> Architecture:
    if d_sae is None:
        return sae
    try:
        # Its default sparsity may be more than a small dictionary has atoms.
        shrunk = sae.with_l0(l0) if l0 is not None and d_sae < sae.d_sae else sae
        return dataclasses.replace(shrunk, d_sae=d_sae)
    except ConfigError as error:
        raise ConfigError(f"grid, {where}: {error}") from error


def set_l0(group: Group, asked: float | None) -> Architecture:
    """The group's architecture, set to reach `asked` active atoms per row; as configured for None. Raises ConfigError."""
    if asked is None:
        return group.sae
    try:
        return group.sae.with_l0(asked)
    except ConfigError as error:
        raise ConfigError(f"{group.name}: cannot be set to an L0 of {asked:g}: {error}") from error


def configure(settings: SweepConfig, group: Group, out: Path, *, lr: float, asked: float | None, seed: int) -> TrainConfig:
    """The training of one member: what `thresher train` would be told."""
    return dataclasses.replace(
        settings.base,
        sae=set_l0(group, asked),
        out=out,
        optimizer=dataclasses.replace(group.optimizer, lr=lr),
        init_seed=seed,
    )


def name_members(settings: SweepConfig, group: Group) -> Iterator[tuple[str, int]]:
    """The name of each member of a group, and its seed."""
    for seed in settings.seeds:
        yield f"{group.name}-seed={seed}", seed
