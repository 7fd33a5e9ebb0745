"""Vision-language decoders of transformers: one sequence of an image and a text, whatever AutoModelForImageTextToText loads.

An item is a text with the image of its record in front; its rows are told apart by their kind, image or text. Where the
vision encoder gives one sequence per image (LLaVA, Gemma 3, PaliGemma), its hook points `vision.*` can be read too; where it
gives one for the whole image and one for each crop (LLaVA-NeXT, LLaVA-OneVision), they are those of the whole image.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor, nn

from thresher.config import config
from thresher.data.records import Modality
from thresher.errors import ConfigError
from thresher.harvest.adapters.base import Inputs
from thresher.harvest.adapters.hooks import HookedModel
from thresher.harvest.adapters.hub_models import (
    HubTextModel,
    build_decoder,
    describe_processor,
    find_blocks,
    find_context,
    identify,
    load_model,
    load_parts,
    place_model,
    tap_stream,
)
from thresher.harvest.adapters.pixels import PixelReader
from thresher.harvest.adapters.taps import Tower
from thresher.harvest.adapters.turns import TurnEncoder
from thresher.harvest.adapters.weights import torch_dtype


@config
class HFVisionLanguageModel(HubTextModel):
    """A decoder that reads images and texts in one sequence."""

    kind: Literal["hf-vlm"] = "hf-vlm"
    """Which family this is."""
    template: str | None = None
    """An item's sequence, with {image} and {text}; when not given, one turn of the user in the checkpoint's chat template,
    or {image}{text} where it has none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.template is not None and ("{text}" not in self.template or "{image}" not in self.template):
            raise ConfigError(
                f"template={self.template!r}: it needs {{image}} and {{text}}, for instance '{{image}}\\n{{text}}'"
            )


class HFVisionLanguage(HookedModel):
    """A vision-language decoder behind the interface of all models."""

    reads_pairs = True

    def __init__(self, settings: HFVisionLanguageModel, device: torch.device) -> None:
        model, (processor,) = load_model(settings, "AutoModelForImageTextToText"), load_parts(settings, "AutoProcessor")
        context = find_context(settings, model, processor.tokenizer)
        self._turns = TurnEncoder(processor, model.config, settings.template, context, torch_dtype(settings.precision))
        self.identity = identify(
            settings.kind,
            settings,
            model,
            preprocessing=describe_processor(processor.image_processor),
            text=self._turns.identity,
        )
        model, device = place_model(settings, model, device)
        encoder = _find_encoder(model)
        towers: dict[Modality, Tower] = {"text": build_decoder(model, lambda: self.prepare_texts(["a b"]))}
        if encoder is None:
            super().__init__(model, towers, device)
            return
        self.image_transform = pixels = PixelReader(processor.image_processor, encoder, torch_dtype(settings.precision))
        towers = {"image": self._image_tower(encoder), **towers}
        super().__init__(model, towers, device)
        pixels.measure(self)

    def prepare_texts(self, texts: Sequence[str]) -> Inputs:
        """The same as `prepare_pairs` without any image."""
        return self._turns([None] * len(texts), texts)

    def prepare_pairs(self, images: Sequence[Image.Image | None], texts: Sequence[str]) -> Inputs:
        """One sequence per text, with its image in front where it has one, padded on the right."""
        return self._turns(images, texts)

    def _image_tower(self, encoder: Any) -> Tower:
        def forward(inputs: Inputs) -> Tensor:
            return encoder(**inputs.tensors).last_hidden_state

        taps = tap_stream("vision", encoder, find_blocks(encoder, encoder.config))
        return Tower(forward, taps, lambda: self.prepare_images([Image.new("RGB", (64, 64))]))


def _find_encoder(model: Any) -> nn.Module | None:
    """The vision encoder when it is a model of its own with one sequence per image."""
    found = getattr(model.base_model, "vision_tower", None)
    return found if getattr(found, "main_input_name", None) == "pixel_values" and hasattr(found, "encoder") else None
