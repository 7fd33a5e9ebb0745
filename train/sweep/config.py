"""What a sweep is told."""

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any

from thresher.config import config, read_values, validate
from thresher.errors import ConfigError
from thresher.train.arch import Architecture
from thresher.train.config import TrainConfig
from thresher.train.optimizer import OptimizerConfig

NAME = re.compile(r"[A-Za-z0-9_.+-]+")


@config
class GridConfig:
    """What varies. Every architecture is trained with every combination; an axis without values stays as configured."""

    l0: tuple[float, ...] = ()
    """Wanted active atoms per row: sets `k` of the architectures that have one and steers the penalty of the others."""
    d_sae: tuple[int, ...] = ()
    """Dictionary sizes."""
    lr: tuple[float, ...] = ()
    """Learning rates: candidates among which `search` chooses, or all of them when there is no search."""

    def __post_init__(self) -> None:
        for name in ("l0", "d_sae", "lr"):
            values = getattr(self, name)
            if any(value <= 0 for value in values) or len(set(values)) < len(values):
                raise ConfigError(f"{name}={list(values)}: give positive values, each once")


@config
class MemberConfig:
    """One dictionary with settings of its own, trained as given, without a search."""

    sae: Architecture
    """The architecture, by its `kind`."""
    optimizer: OptimizerConfig | None = None
    """Adam and its learning rate; those of `base` when not given."""


@config
class SearchConfig:
    """Successive halving over the learning rates of each architecture, at equal realised L0 (arXiv 1502.07943)."""

    rungs: tuple[float, ...] = (0.1, 0.3)
    """Budgets of the rungs, as fractions of that of `base`; the shape of the learning-rate schedule shrinks with them."""
    keep: float = 0.5
    """Share of the learning rates that goes on to the next rung, rounded up; the best of the last rung is taken."""
    l0_tries: int = 3
    """Trainings per rung at most until a candidate's realised L0 is near enough to the wanted one."""
    l0_tolerance: float = 0.1
    """Relative deviation that is near enough in a rung; candidates beyond it rank behind all others."""

    def __post_init__(self) -> None:
        if not self.rungs or any(not 0 < rung <= 1 for rung in self.rungs) or sorted(self.rungs) != list(self.rungs):
            raise ConfigError(f"rungs={list(self.rungs)}: give rising fractions of the budget, above 0 and at most 1")
        if not 0 < self.keep < 1:
            raise ConfigError(f"keep={self.keep}: keep a share between 0 and 1")
        if self.l0_tries < 1:
            raise ConfigError(f"l0_tries={self.l0_tries}: each rung trains at least once")
        if not 0 < self.l0_tolerance < 1:
            raise ConfigError(f"l0_tolerance={self.l0_tolerance}: give a number between 0 and 1")


@config
class SweepConfig:
    """Train many dictionaries on one pass over the data, and compare them at equal L0, rows and optimizer steps."""

    out: Path
    """Folder of the sweep: `members/<name>/`, the tables and `sweep.json` come to stand in it."""
    base: TrainConfig
    """What all members share: store, hook points, stream, normalisation, budget, seed of the stream. `sae` may be left away."""
    architectures: dict[str, Architecture] = field(default_factory=dict[str, Architecture])
    """Architectures by name, for the grid; `base.sae` alone when neither these nor `members` are given."""
    grid: GridConfig = GridConfig()
    """What varies."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the initial dictionary; every combination is trained with each. The order of rows is that of `base.seed`."""
    members: dict[str, MemberConfig] = field(default_factory=dict[str, MemberConfig])
    """Further members by name, for what does not vary freely; each with every seed."""
    search: SearchConfig | None = None
    """How the learning rate is chosen for each architecture and size; every rate of the grid is trained when not given."""
    l0_tolerance: float = 0.05
    """Relative deviation from the wanted L0 on held-out rows above which a member is marked as off target."""
    corrections: int = 1
    """How often members that ended off target are trained again in full with a corrected setting."""

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"seeds={list(self.seeds)}: give at least one, each once")
        for name in (*self.architectures, *self.members):
            if not NAME.fullmatch(name):
                raise ConfigError(f"{name!r}: a name becomes a folder; use letters, digits and . _ + -")
        both = sorted(self.architectures.keys() & self.members.keys())
        if both:
            raise ConfigError(f"members.{both[0]}: also the name of one of `architectures`; choose another")
        if not 0 < self.l0_tolerance < 1:
            raise ConfigError(f"l0_tolerance={self.l0_tolerance}: give a number between 0 and 1")
        if self.corrections < 0:
            raise ConfigError(f"corrections={self.corrections}: at least 0")
        for name in ("patience", "go_back_to", "wandb", "profile"):
            if getattr(self.base, name) is not None:
                raise ConfigError(f"base.{name}: not in a sweep, whose members take equal steps at once; leave it away")
        if not self.architectures and self.grid != GridConfig():
            raise ConfigError("grid: varies `architectures`, of which none is given; members are trained as given")


def load(path: Path, overrides: Sequence[str] = ()) -> SweepConfig:
    """Read the configuration of a sweep and fill in what follows from other fields. Raises ConfigError."""
    return complete(read_values(path, overrides), str(path))


def complete(given: Mapping[str, Any], where: str) -> SweepConfig:
    """The configuration of a sweep from plain values. Raises ConfigError."""
    values = copy.deepcopy(dict(given))
    base = values.get("base")
    if not isinstance(base, dict):
        raise ConfigError(f"{where}: base: expected the fields of a training, found {base!r}")
    if "out" in base:
        raise ConfigError(f"{where}: base.out: the folders of the members follow from the sweep's `out`; leave it away")
    named = values.get("architectures") or {}
    members = values.get("members") or {}
    if not named and not members and "sae" not in base:
        raise ConfigError(f"{where}: architectures: name at least one, for instance architectures.mp")
    if not named and not members:
        kind = base["sae"].get("kind") if isinstance(base["sae"], dict) else None
        named = values["architectures"] = {str(kind): base["sae"]}
    # Every member has its own; what stands here is not trained.
    base.setdefault("sae", {"kind": "mp"})
    base["out"] = values.get("out")
    return validate(SweepConfig, values, where)
