"""Checkpoints of MSAE (arXiv 2502.20578): one `.pth` with `model`, `mean_center`, `scaling_factor`, its settings in its name.

`12288_768_TopKReLU_64_RW_False_False_0.0_<data>.pth` is 12288 latents of 768 inputs, TopK with ReLU and k = 64 (of a nested one
the smallest k), not tied, inputs not normalised, no soft cap. Newer ones hold `model_config` and `preprocessing` instead.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from thresher.errors import CheckpointError
from thresher.train.exchange.files import Reading, take, to_plain
from thresher.train.exchange.pickles import read_attributes
from thresher.train.exchange.plain import Kind, Plain, bring_to_unit_norm

NAME = re.compile(
    r"(?P<latents>\d+)_(?P<inputs>\d+)_(?P<activation>[A-Za-z]+)(?:_(?P<number>\d+))?(?:_[URF]W)?"
    r"_(?P<tied>True|False)_(?P<normalize>True|False)_(?P<cap>[\d.]+)(?:_|$)"
)
ACTIVATIONS: Mapping[str, Kind] = {"ReLU": "relu", "TopKReLU": "topk", "TopK": "topk", "JumpReLU": "jumprelu"}


def read(tensors: Mapping[str, Tensor], settings: Mapping[str, Any], path: Path, k: int | None) -> Reading:
    """Read tensors and settings; `k` instead of the one that it was saved with (nested ones work at each).

    With y = (x - mean) scale the encoder E (y - p) + l is scale (E (x - mean - p / scale) + l / scale).
    Raises CheckpointError for an activation function that looks at a batch, and for inputs normalised by row.
    """
    activation, number, is_normalized, cap = _describe(settings, path)
    if activation not in ACTIVATIONS or is_normalized:
        what = "normalised inputs" if is_normalized else f"activation {activation!r}"
        raise CheckpointError(
            f"{path}: {what} have no counterpart here; it can be {', '.join(ACTIVATIONS)}, without `normalize`"
        )
    names = ["encoder", "latent_bias", "pre_bias"]
    encoder, encoder_bias, bias = (each.double() for each in take(tensors, names, path))
    dictionary = take(tensors, ["decoder"], path)[0] if "decoder" in tensors else encoder.T.float()
    mean, scale = _read_preprocessing(settings, len(bias), path)
    kind = ACTIVATIONS[activation]
    threshold = take(tensors, ["activation.log_threshold"], path)[0].double().exp() if kind == "jumprelu" else None
    plain = Plain(
        kind=kind,
        dictionary=dictionary.contiguous(),
        bias=(mean + bias / scale).float(),
        encoder=encoder.T.float().contiguous(),
        encoder_bias=(encoder_bias / scale).float(),
        threshold=None if threshold is None else (threshold / scale).float(),
        k=(k or number) if kind == "topk" else None,
        code_scale=scale,
        origin={"format": "msae", "file": path.name, "config": to_plain(settings), "activation": activation, "k": k or number},
    )
    if kind == "topk" and not plain.k:
        raise CheckpointError(f"{path}: TopK, but neither its name nor its settings say k; say it with --k")
    lost = [f"latent_soft_cap={cap}: codes are squeezed below it there, and are not here"] if cap > 0 else []
    lost += ["TopK without ReLU: negative ones of the k largest are 0 here"] if activation == "TopK" else []
    return Reading(bring_to_unit_norm(plain)[0], lost)


def _describe(settings: Mapping[str, Any], path: Path) -> tuple[str, int | None, bool, float]:
    """Activation, its number, whether inputs are normalised by row, soft cap: of `model_config`, else of the name."""
    if isinstance(settings.get("activation"), str):
        name, _, number = str(settings["activation"]).partition("_")
        nested = settings.get("nesting_list")
        smallest = min(nested) if isinstance(nested, list) and nested else int(number or 0) or None
        return name, smallest, bool(settings.get("normalize")), float(settings.get("latent_soft_cap", 0.0))
    if (found := NAME.match(path.name)) is None:
        raise CheckpointError(
            f"{path}: a checkpoint of MSAE says in its name how it encodes, as 12288_768_TopKReLU_64_RW_False_False_0.0_x.pth; "
            "give it the name back that it had"
        )
    number = found["number"] if found["activation"] != "ReLU" else None
    cap = re.match(r"[\d.]*\d", found["cap"])
    return found["activation"], int(number) if number else None, found["normalize"] == "True", float(cap[0] if cap else 0)


def _read_preprocessing(settings: Mapping[str, Any], width: int, path: Path) -> tuple[Tensor, float]:
    """What is subtracted from a row, and what it is multiplied by after that."""
    found = read_attributes(settings.get("preprocessing")) or settings
    mean, scale = found.get("mean_center", 0.0), found.get("scaling_factor", 1.0)
    if not isinstance(mean, Tensor | float | int) or not isinstance(scale, Tensor | float | int):
        raise CheckpointError(f"{path}: mean_center and scaling_factor are {type(mean).__name__} and {type(scale).__name__}")
    mean, scale = torch.as_tensor(mean).double(), float(scale)
    if mean.numel() not in (1, width) or not scale > 0:
        raise CheckpointError(
            f"{path}: mean_center of {mean.numel()} numbers, scaling_factor {scale}: expected {width}, and above 0"
        )
    return mean.reshape(-1).expand(width).clone(), scale
