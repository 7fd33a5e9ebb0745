"""Training to the sparsity that another dictionary has reached."""

import dataclasses
from pathlib import Path
from typing import Any

from thresher.config import to_dict
from thresher.errors import CheckpointError, ConfigError
from thresher.progress import log
from thresher.train.checkpoint import read_description
from thresher.train.config import TrainConfig
from thresher.train.run import run
from thresher.train.sweep.target import Tried, ask_next, is_reached

TOLERANCE = 0.03
"""Relative deviation from the wanted L0 on held-out rows above which a dictionary is trained again."""
CORRECTIONS = 2
"""How often at most."""


def run_matched(config: TrainConfig, matched: Path) -> Path:
    """Train to the realised L0 on held-out rows of the checkpoint in `matched`; a refusal says where the setting came from.

    An L0 that is steered in training can end off: held-out rows are other rows, and are counted in other proportions of hook
    points than batches have. A training that ends more than `TOLERANCE` off is set aside, as `<out>.off-target-<n>`, and
    done again with a corrected setting. Raises CheckpointError where what was set aside is of another training.
    """
    wanted = asked = float(read_description(matched)["evaluation"]["l0"])
    tried: list[Tried] = []
    for attempt in range(CORRECTIONS + 1):
        aside = config.out.with_name(f"{config.out.name}.off-target-{attempt + 1}")
        try:
            sae = config.sae.with_l0(asked)
            if not aside.exists():
                run(dataclasses.replace(config, sae=sae))
        except (ConfigError, CheckpointError) as error:
            because = f"match_l0={matched.name}: train.{config.out.name}.sae is set to its L0, {wanted:.4g}"
            raise type(error)(f"{error}\n({because})") from error
        tried.append(Tried(asked, _read_l0(aside, to_dict(sae)) if aside.exists() else _read_l0(config.out)))
        asked = ask_next(tried, wanted, float(sae.d_sae))
        # A k that is a whole number is already the nearest one.
        is_final = attempt == CORRECTIONS or isinstance(getattr(sae, "k", None), int)
        if is_final or is_reached(tried[-1].reached, wanted, TOLERANCE):
            break
        if not aside.exists():
            log(f"train: {config.out} ended at L0 {tried[-1].reached:.3g} of {wanted:.3g}; trains again, set to {asked:.3g}")
            config.out.rename(aside)
    return config.out


def _read_l0(folder: Path, expected: dict[str, Any] | None = None) -> float:
    """Realised L0 of a checkpoint. Raises CheckpointError when its architecture is not the expected one."""
    description = read_description(folder)
    if expected is not None and description["architecture"] != expected:
        raise CheckpointError(f"{folder}: was set aside by a training with other settings; delete it")
    return float(description["evaluation"]["l0"])
