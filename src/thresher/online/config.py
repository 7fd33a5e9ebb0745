"""What a training straight from a model is told."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from thresher.config import config, read_values, validate
from thresher.errors import ConfigError
from thresher.harvest.run import HarvestConfig
from thresher.train.aligned import Aligned
from thresher.train.config import NOT_WRITTEN, TrainConfig
from thresher.train.fitting import is_fitted_once


@config
class OnlineConfig:
    """Harvest and train at once, without a store; `harvest.device` and `train.device` may be two devices."""

    harvest: HarvestConfig
    """Model and source. `out` is not used, and `hook_points` are those of the training unless given."""
    train: TrainConfig
    """The training. `store` is not used. `stream.pool_rows` bounds what is held in memory: when the whole harvest fits, it is
    harvested once, and the result is that of a training on its store. When it does not, the harvest goes on beside the
    training and starts again at its end; the budget is then given in `rows`."""

    def __post_init__(self) -> None:
        if isinstance(self.train.sae, Aligned) or is_fitted_once(self.train):
            raise ConfigError(f"train.sae.kind={self.train.sae.kind}: is trained on a store; harvest to one first")
        if self.train.parallel.dictionary_shards > 1:
            raise ConfigError("train.parallel: a training straight from a model is one process; harvest to a store first")


def load(path: Path, overrides: Sequence[str] = ()) -> OnlineConfig:
    """Read a configuration and fill in what follows. Raises ConfigError."""
    return complete(read_values(path, overrides), str(path))


def complete(given: Mapping[str, Any], where: str) -> OnlineConfig:
    """The configuration from plain values, with what follows from others filled in. Raises ConfigError."""
    values = copy.deepcopy(dict(given))
    for name in ("harvest", "train"):
        if not isinstance(values.get(name), dict):
            raise ConfigError(f"{where}: {name}: expected a group of fields, found {values.get(name)!r}")
    values["harvest"] = {"out": NOT_WRITTEN, "hook_points": values["train"].get("hook_points", ())} | values["harvest"]
    values["train"] = {"store": NOT_WRITTEN} | values["train"]
    return validate(OnlineConfig, values, where)
