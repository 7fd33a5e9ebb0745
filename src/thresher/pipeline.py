"""All three stages from one configuration: one harvest, any number of sparse autoencoders, one analysis."""

import dataclasses
import json
from collections.abc import Sequence
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
from thresher.train.run import TrainConfig


@config
class RunConfig:
    """Harvest, train and analyze; folders of the stages follow from `out`."""

    out: Path
    """Folder of the run: `store/`, `sae/<name>/` and `report/` come to stand in it."""
    harvest: HarvestConfig
    """The harvest; its `out` is `<out>/store` unless given."""
    train: dict[str, TrainConfig]
    """Sparse autoencoders by name, trained in this order; `store` and `out` follow from the run."""
    match_l0: str | None = None
    """Name of the one whose realised L0 on held-out rows the later ones are made to match."""
    analyze: AnalyzeConfig
    """The analysis; its `store`, `saes` and `out` follow from the run."""

    def __post_init__(self) -> None:
        if not self.train:
            raise ConfigError("train: name at least one sparse autoencoder")
        if self.match_l0 is not None and self.match_l0 not in self.train:
            raise ConfigError(f"match_l0={self.match_l0!r}: expected one of {', '.join(self.train)}")


def load(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run's configuration and fill in the folders that follow from `out`. Raises ConfigError."""
    values = read_values(path, overrides)
    out = values.get("out")
    if not isinstance(out, str):
        raise ConfigError(f"{path}: out: expected the folder of the run, found {out!r}")
    store, saes = f"{out}/store", {}
    _group(values, "harvest").setdefault("out", store)
    for name, member in _group(values, "train").items():
        if not isinstance(member, dict):
            raise ConfigError(f"{path}: train.{name}: expected the fields of a training, found {member!r}")
        saes[name] = f"{out}/sae/{name}"
        # The groups may be one YAML anchor: each gets its own copy.
        values["train"][name] = {"store": values["harvest"]["out"], "out": saes[name]} | member
    _group(values, "analyze").update({"store": values["harvest"]["out"], "saes": saes, "out": f"{out}/report"})
    return validate(RunConfig, values, str(path))


def demo_config() -> Path:
    """The configuration of `thresher demo`."""
    return Path(str(resources.files("thresher") / "configs" / "demo.yaml"))


def run(settings: RunConfig) -> Path:
    """Run the stages in order, skipping what is finished; returns the path of the report."""
    harvest.run(settings.harvest)
    target: float | None = None
    for name, member in settings.train.items():
        log(f"training {name}")
        matched = dataclasses.replace(member, sae=member.sae.with_l0(target)) if target is not None else member
        folder = train.run(matched)
        if name == settings.match_l0:
            target = _realised_l0(folder)
    return analyze.run(settings.analyze)


def _group(values: dict[str, Any], name: str) -> dict[str, Any]:
    group = values.setdefault(name, {})
    if not isinstance(group, dict):
        raise ConfigError(f"{name}: expected a group of fields, found {group!r}")
    return group


def _realised_l0(folder: Path) -> float:
    return float(json.loads((folder / "config.json").read_text())["evaluation"]["l0"])
