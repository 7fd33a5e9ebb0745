"""Vision backbones of timm."""

import difflib
from collections.abc import Mapping
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from thresher.config import config
from thresher.errors import ConfigError, ModelError
from thresher.harvest.adapters.base import Inputs, Precision
from thresher.harvest.adapters.hooks import HookedModel
from thresher.harvest.adapters.sublayers import tap_blocks
from thresher.harvest.adapters.taps import Tap, Tower, tap_input, tap_output
from thresher.harvest.adapters.timm_towers import describe_patches, find_norm
from thresher.harvest.adapters.transforms import PatchTransform
from thresher.harvest.adapters.weights import (
    LOAD_ERRORS,
    NO_HUB,
    find_model,
    fingerprint_weights,
    shorten_reason,
    to_plain,
    torch_dtype,
)

RANDOM = "random"
HUB = "hf-hub:"
LOCAL = "local-dir:"


@config
class TimmModel:
    """A vision backbone of timm, without its classifier."""

    kind: Literal["timm"] = "timm"
    """Which family this is."""
    name: str
    """Architecture as in `timm.list_models()`, with the tag of its weights (vit_base_patch14_reg4_dinov2.lvd142m),
    `hf-hub:<owner>/<name>`, or `local-dir:<folder>` with config.json and model.safetensors."""
    weights: str | None = None
    """A file of weights for an architecture's name, or `random` for untrained ones, a control; the pretrained weights of
    the name when not given."""
    image_size: int | None = None
    """Side of the images in pixels; the model's own when not given."""
    precision: Precision = "float32"
    """What the model computes in."""
    seed: int = 0
    """Draws the weights when `weights` is `random`."""

    def __post_init__(self) -> None:
        if self.weights is not None and self.name.startswith((HUB, LOCAL)):
            raise ConfigError(f"weights={self.weights!r}: {self.name} brings its own weights; leave it out")


class TimmVision(HookedModel):
    """A timm model behind the interface of all models; its output is what it hands to a classifier."""

    def __init__(self, settings: TimmModel, device: torch.device) -> None:
        from timm.data import create_transform, resolve_model_data_config  # pyright: ignore[reportPrivateImportUsage]

        model = _load(settings)
        if settings.image_size is not None and hasattr(model, "set_input_size"):
            model.set_input_size(img_size=settings.image_size)
        preprocessing: dict[str, Any] = resolve_model_data_config(model)
        if settings.image_size is not None:
            preprocessing["input_size"] = (3, settings.image_size, settings.image_size)
        transform: Any = create_transform(**preprocessing, is_training=False)
        dtype = torch_dtype(settings.precision)
        self.identity: Mapping[str, Any] = {
            "kind": settings.kind,
            "name": settings.name,
            "pretrained": settings.weights,
            "precision": settings.precision,
            "weights": fingerprint_weights(model),
            "preprocessing": to_plain(preprocessing),
        }
        model = model.eval().requires_grad_(requires_grad=False).to(device=device, dtype=dtype)
        has_summary = getattr(model, "global_pool", "") == "token"
        self.image_transform = PatchTransform(transform, dtype, *describe_patches(model), has_summary=has_summary)
        blank = Image.new("RGB", (64, 64))

        def forward(inputs: Inputs) -> Tensor:
            return model(inputs.tensors["pixels"])

        super().__init__(model, {"image": Tower(forward, _tap(model), lambda: self.prepare_images([blank]))}, device)


def _tap(model: Any) -> dict[str, Tap]:
    before, norm = getattr(model, "norm_pre", getattr(model, "pos_drop", None)), find_norm(model)
    start = {"vision.start": tap_input(before)} if before is not None else {}
    final = {"vision.final": tap_output(norm)} if norm is not None else {}
    return start | tap_blocks("vision", list(getattr(model, "blocks", ()))) | final | {"vision.pooled": tap_output(model)}


def _load(settings: TimmModel) -> Any:
    """The model without its classifier. Raises ModelError when it cannot be had."""
    import timm

    name, is_pretrained = settings.name, settings.weights is None
    if name.startswith(HUB):
        copy = find_model(name.removeprefix(HUB))
        name = name if copy == name.removeprefix(HUB) else f"{LOCAL}{copy}"
    elif not name.startswith(LOCAL) and name.partition(".")[0] not in timm.list_models():
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise ModelError(f"timm has no architecture {name!r}; nearest: {', '.join(near) or 'none'}")
    path = settings.weights if settings.weights != RANDOM else None
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            return timm.create_model(name, num_classes=0, pretrained=is_pretrained, checkpoint_path=path or "")
    except LOAD_ERRORS as error:
        raise ModelError(f"timm cannot load {settings.name!r}: {shorten_reason(error)}; {NO_HUB}") from error
