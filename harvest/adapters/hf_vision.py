"""Vision backbones of transformers: ViT, DINOv2 and DINOv3 with their registers, whatever AutoModel reads images with."""

from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from thresher.config import config
from thresher.errors import ModelError
from thresher.harvest.adapters.base import Inputs
from thresher.harvest.adapters.hooks import HookedModel
from thresher.harvest.adapters.hub_models import (
    HubModel,
    describe_processor,
    find_blocks,
    identify,
    load_model,
    load_parts,
    place_model,
    tap_stream,
)
from thresher.harvest.adapters.pixels import PixelReader
from thresher.harvest.adapters.taps import Tower, tap_field
from thresher.harvest.adapters.weights import torch_dtype


@config
class HFVisionModel(HubModel):
    """A vision backbone: whatever AutoModel loads that reads pixels and gives a last hidden state."""

    kind: Literal["hf-vision"] = "hf-vision"
    """Which family this is."""


class HFVision(HookedModel):
    """A vision backbone behind the interface of all models; its output is the pooled vector, or the last hidden state."""

    def __init__(self, settings: HFVisionModel, device: torch.device) -> None:
        model = load_model(settings, "AutoModel")
        if getattr(model, "main_input_name", "pixel_values") != "pixel_values":
            raise ModelError(
                f"{settings.name}: model type {model.config.model_type!r} reads {model.main_input_name}, not pixels"
            )
        (processor,) = load_parts(settings, "AutoImageProcessor")
        self.identity = identify(settings.kind, settings, model, preprocessing=describe_processor(processor))
        model, device = place_model(settings, model, device)
        self.image_transform = pixels = PixelReader(processor, model, torch_dtype(settings.precision))

        def forward(inputs: Inputs) -> Tensor:
            found: Any = model(**inputs.tensors)
            pooled = getattr(found, "pooler_output", None)
            return found.last_hidden_state if pooled is None else pooled.flatten(1)

        taps = tap_stream("vision", model, find_blocks(model, model.config))
        if "vision.final" not in taps:
            taps["vision.final"] = tap_field(model, "last_hidden_state")
        taps["vision.pooled"] = tap_field(model, "pooler_output")
        blank = Image.new("RGB", (64, 64))
        super().__init__(model, {"image": Tower(forward, taps, lambda: self.prepare_images([blank]))}, device)
        pixels.measure(self)
