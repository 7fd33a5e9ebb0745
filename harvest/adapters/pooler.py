"""From token states to one vector per text, and what a checkpoint's sentence-transformers files say about it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from thresher.errors import ModelError
from thresher.harvest.adapters.layouts import find_last

Pooling = Literal["cls", "mean", "last"]

_MODES: Mapping[str, Pooling] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last",
}


class Recipe(NamedTuple):
    """How a sentence encoder makes its embedding."""

    pooling: Pooling
    normalize: bool


class Pooler(nn.Module):
    """The vector of each text: its first token, the mean of its tokens, or its last one."""

    def __init__(self, pooling: Pooling) -> None:
        super().__init__()
        self.pooling = pooling

    def forward(
        self, states: Float[Tensor, "item position d"], valid: Bool[Tensor, "item position"]
    ) -> Float[Tensor, "item d"]:
        """Pool the states of what is not padding; a text without any token gives zeros under the mean."""
        if self.pooling == "mean":
            weights = valid.to(states.dtype)[..., None]
            return (states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
        place = find_last(valid) if self.pooling == "last" else torch.zeros_like(valid[:, 0], dtype=torch.int64)
        return states[torch.arange(len(states), device=states.device), place]


class Head(nn.Module):
    """The embedding of a pooled vector: itself, or itself with unit norm."""

    def __init__(self, *, normalize: bool) -> None:
        super().__init__()
        self.normalize = normalize

    def forward(self, pooled: Float[Tensor, "item d"]) -> Float[Tensor, "item d"]:
        """The embedding; always a tensor of its own, so that replacing it does not touch the pooled vector."""
        return functional.normalize(pooled, dim=-1) if self.normalize else pooled.clone()


def read_recipe(place: str, revision: str | None) -> Recipe | None:
    """What modules.json and the files it names say; None when the checkpoint has no such file.

    Raises ModelError for steps that are not known here.
    """
    modules = _read(place, "modules.json", revision)
    if modules is None:
        return None
    kinds = {str(module["type"]).rpartition(".")[2]: str(module["path"]) for module in modules}
    unknown = set(kinds) - {"Transformer", "Pooling", "Normalize"}
    if unknown:
        raise ModelError(
            f"{place}: its embedding goes through {', '.join(sorted(unknown))}, which is not known here; "
            "set model.pooling (and model.normalize) to read it without"
        )
    settings: Any = _read(place, f"{kinds['Pooling']}/config.json", revision) if "Pooling" in kinds else None
    return Recipe(_find_pooling(place, settings or {}), "Normalize" in kinds)


def _find_pooling(place: str, settings: Mapping[str, Any]) -> Pooling:
    modes = [mode for key, mode in _MODES.items() if settings.get(key)]
    named = {"cls": "cls", "mean": "mean", "lasttoken": "last"}.get(str(settings.get("pooling_mode")))
    others = [key for key, value in settings.items() if key.startswith("pooling_mode_") and value and key not in _MODES]
    found = [*modes, *([named] if named else [])]
    if len(found) != 1 or others:
        raise ModelError(
            f"{place}: pools by {', '.join([*found, *others]) or 'nothing named'}; set model.pooling to cls, mean or last"
        )
    return found[0]  # pyright: ignore[reportReturnType] - one of the three


def _read(place: str, name: str, revision: str | None) -> Any:
    from transformers.utils import cached_file  # pyright: ignore[reportPrivateImportUsage] - exported by name

    path = cached_file(
        place,
        name,
        revision=revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if path is None else json.loads(Path(path).read_text(encoding="utf-8"))
