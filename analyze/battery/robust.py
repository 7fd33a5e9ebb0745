"""Level 5: do other seeds find the same atoms?"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from thresher.analyze.battery.judge import Stability
from thresher.analyze.metrics.stability import draw_null, match_dictionaries, match_signed_dictionaries
from thresher.config import to_dict
from thresher.errors import AnalysisError
from thresher.train.checkpoint import TrainedSAE, load_sae

MOST_ATOMS = 8192
"""Atoms that are matched one to one; above, those of most energy."""
INCIDENTAL = ("seed", "init_seed", "out", "device", "log_every", "evaluate_every", "evaluate_rows", "checkpoint_every", "cache")
"""Fields of a training that make no other kind of dictionary."""


def find_seeds(name: str, saes: Mapping[str, TrainedSAE]) -> list[str]:
    """Names of the other dictionaries that differ from `name` by seed alone."""
    kind = describe_kind(saes[name])
    return [other for other, trained in saes.items() if other != name and describe_kind(trained) == kind]


def describe_kind(trained: TrainedSAE) -> dict[str, Any]:
    """What is the same for all seeds of one training."""
    return {key: value for key, value in to_dict(trained.config).items() if key not in INCIDENTAL} | {"d_in": trained.d_in}


def open_seeds(name: str, trained: TrainedSAE, folders: Sequence[Path]) -> list[TrainedSAE]:
    """The further checkpoints given for a dictionary. Raises CheckpointError, and AnalysisError when one is of another kind."""
    found = [load_sae(folder) for folder in folders]
    for folder, other in zip(folders, found, strict=True):
        mine, theirs = describe_kind(trained), describe_kind(other)
        differing = [key for key in mine if mine[key] != theirs.get(key)]
        if differing:
            raise AnalysisError(
                f"battery.seeds.{name}: {folder} differs from it not by seed alone but in {', '.join(differing)}; give "
                "checkpoints of the same training with another seed"
            )
    return found


def measure_stability(
    dictionary: Float[np.ndarray, "feature d_in"],
    others: Sequence[Float[np.ndarray, "_ d_in"]],
    energy: Float[np.ndarray, " feature"],
    seed: int,
    *,
    is_signed: Bool[np.ndarray, ""] | bool,
) -> Stability | None:
    """Mean matched cosine of each alive atom over the other seeds, and what random dictionaries of the size give; None without
    other seeds. Atoms of no energy, and above 8192 atoms those of less energy, are NaN.
    """
    if not others:
        return None
    kept = np.flatnonzero(energy > 0)
    kept = np.sort(kept[np.argsort(-energy[kept], kind="stable")[:MOST_ATOMS]])
    match = match_signed_dictionaries if is_signed else match_dictionaries
    found = np.full((len(others), len(dictionary)), np.nan)
    null = np.full(len(dictionary), np.nan)
    if len(kept):
        for line, other in enumerate(others):
            found[line, kept] = match(dictionary[kept], other).cosine
        sizes = {len(other) for other in others}
        width = dictionary.shape[1]
        drawn = [draw_null(len(kept), width, 1, seed, n_other=size, signed=bool(is_signed)).mean for size in sorted(sizes)]
        null[kept] = np.mean(drawn)
    return Stability(found.mean(axis=0), null, len(others))


def describe_stability(found: Stability | None) -> dict[str, Any]:
    """Mean over the alive atoms of the matched cosine, beside that with random dictionaries; plain values."""
    if found is None:
        return {"n": 0, "stability": None}
    known = np.isfinite(found.cosine)
    means = {"value": found.cosine[known].mean(), "by_chance": found.null[known].mean()} if known.any() else {}
    return {
        "n": found.n_seeds,
        "stability": {"value": None, "by_chance": None} | means | {"n": int(known.sum()), "unit": "atoms"},
    }
