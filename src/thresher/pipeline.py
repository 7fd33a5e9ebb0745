"""All three stages from one configuration: one harvest, any number of sparse autoencoders, one analysis."""

import copy
import fnmatch
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from thresher.analyze import run as analyze
from thresher.analyze.run import AnalyzeConfig
from thresher.config import config, read_values, validate
from thresher.errors import ConfigError
from thresher.harvest import run as harvest
from thresher.harvest.run import HarvestConfig
from thresher.progress import log
from thresher.train import run as train
from thresher.train.matched import run_matched
from thresher.train.run import TrainConfig


@config
class RunConfig:
    """Harvest, train and analyze; folders of the stages follow from `out`."""

    out: Path
    """Folder of the run: `store/`, `sae/<name>/` and `report/` come to stand in it."""
    harvest: HarvestConfig
    """The harvest; its `out` is `<out>/store` unless given."""
    train: dict[str, TrainConfig]
    """Sparse autoencoders by name, trained in this order; `store` and `out` follow from the run unless given."""
    match_l0: str | None = None
    """Name of the one whose realised L0 on held-out rows the later ones are made to match."""
    analyze: AnalyzeConfig
    """The analysis; its `store`, `saes` and `out` follow from the run unless given."""

    def __post_init__(self) -> None:
        if not self.train:
            raise ConfigError("train: name at least one sparse autoencoder")
        for name, member in self.train.items():
            self._check_hook_points(name, member)
        if self.match_l0 is None:
            return
        if self.match_l0 not in self.train:
            raise ConfigError(f"match_l0={self.match_l0!r}: expected one of {', '.join(self.train)}")
        if self.match_l0 == list(self.train)[-1]:
            raise ConfigError(
                f"match_l0={self.match_l0!r}: nothing is trained after it that could be matched to it; put it before the "
                "others, or leave match_l0 out"
            )

    def _check_hook_points(self, name: str, member: TrainConfig) -> None:
        """Refuse, before hours of harvest, a training on what the harvest will not hold."""
        patterns = self.harvest.hook_points
        for wanted in member.hook_points if member.store == self.harvest.out else ():
            if not any(fnmatch.fnmatchcase(wanted, pattern) for pattern in patterns):
                known = ", ".join(patterns)
                raise ConfigError(f"train.{name}.hook_points: {wanted!r} is none of harvest.hook_points ({known}); mend either")


def load(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run's configuration and fill in the folders that follow from `out`. Raises ConfigError."""
    return complete(read_values(path, overrides), str(path))


def complete(given: Mapping[str, Any], where: str) -> RunConfig:
    """The configuration of a run from plain values, with the folders that follow from `out`. Raises ConfigError."""
    values = copy.deepcopy(dict(given))
    out = values.get("out")
    if not values.get("train"):
        raise ConfigError(f"{where}: train: name at least one sparse autoencoder, for instance train.mp")
    if not isinstance(out, str):
        raise ConfigError(f"{where}: out: expected the folder of the run, found {out!r}")
    store, saes = f"{out}/store", {}
    _group(values, "harvest").setdefault("out", store)
    for name, member in _group(values, "train").items():
        if not isinstance(member, dict):
            raise ConfigError(f"{where}: train.{name}: expected the fields of a training, found {member!r}")
        # The groups may be one YAML anchor: each gets its own copy.
        values["train"][name] = {"store": values["harvest"]["out"], "out": f"{out}/sae/{name}"} | member
        saes[name] = values["train"][name]["out"]
    follow = {"store": values["harvest"]["out"], "saes": saes, "out": f"{out}/report"}
    values["analyze"] = follow | _group(values, "analyze")
    return validate(RunConfig, values, where)


def demo_config() -> Path:
    """The configuration of `thresher demo`."""
    return Path(str(resources.files("thresher") / "configs" / "demo.yaml"))


def run(settings: RunConfig) -> Path:
    """Run the stages in order, skipping what is finished; returns the path of the report."""
    harvest.run(settings.harvest)
    matched: Path | None = None
    for name, member in settings.train.items():
        log(f"training {name}")
        folder = train.run(member) if matched is None else run_matched(member, matched)
        if name == settings.match_l0:
            matched = folder
    return analyze.run(settings.analyze)


def _group(values: dict[str, Any], name: str) -> dict[str, Any]:
    group = values.setdefault(name, {})
    if not isinstance(group, dict):
        raise ConfigError(f"{name}: expected a group of fields, found {group!r}")
    return group
