"""Training to the sparsity that another dictionary has reached."""

import dataclasses
from pathlib import Path

from thresher.errors import CheckpointError, ConfigError
from thresher.train.checkpoint import read_description
from thresher.train.config import TrainConfig
from thresher.train.run import run


def run_matched(config: TrainConfig, matched: Path) -> Path:
    """Train to the realised L0 on held-out rows of the checkpoint in `matched`; a refusal says where the setting came from."""
    target = float(read_description(matched)["evaluation"]["l0"])
    try:
        return run(dataclasses.replace(config, sae=config.sae.with_l0(target)))
    except (ConfigError, CheckpointError) as error:
        because = f"match_l0={matched.name}: train.{config.out.name}.sae is set to its L0, {target:.4g}"
        raise type(error)(f"{error}\n({because})") from error
