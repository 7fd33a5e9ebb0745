"""Vision-language decoders of transformers: one sequence of an image and a text, whatever AutoModelForImageTextToText loads.

An item is a text with the image of its record in front; its rows are told apart by their kind, image or text. The vision
encoder's hook points `vision.*` can be read too; where it gives one sequence for the whole image and one for each crop
(LLaVA-NeXT, LLaVA-OneVision, Idefics 3, SmolVLM), they are those of the whole image. Qwen's encoders have all images in one
row: positions count patches of an image in the order of the encoder, and row and column say where each is.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from thresher.config import config
from thresher.data.records import Modality
from thresher.errors import ConfigError, ModelError
from thresher.harvest.adapters.base import HookPoint, ImageTransform, Inputs
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
    read_features,
    tap_stream,
)
from thresher.harvest.adapters.pixels import PixelReader
from thresher.harvest.adapters.taps import Tower
from thresher.harvest.adapters.turns import TurnEncoder
from thresher.harvest.adapters.vlm_images import CropReader, PatchRowReader
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
        self._vision = vision = _find_vision(model, processor.image_processor, torch_dtype(settings.precision))
        towers: dict[Modality, Tower] = {"text": build_decoder(model, lambda: self.prepare_texts(["a b"]))}
        if vision is None:
            super().__init__(model, towers, device)
            return
        self.image_transform = vision.read
        super().__init__(model, {"image": self._image_tower(vision.encoder), **towers}, device)
        if isinstance(vision.read, PixelReader):
            vision.read.measure(self)

    def prepare_texts(self, texts: Sequence[str]) -> Inputs:
        """The same as `prepare_pairs` without any image."""
        return self._turns([None] * len(texts), texts)

    def prepare_pairs(self, images: Sequence[Image.Image | None], texts: Sequence[str]) -> Inputs:
        """One sequence per text, with its image in front where it has one, padded on the right."""
        return self._turns(images, texts)

    def resolve(self, patterns: Sequence[str], modalities: Sequence[Modality]) -> tuple[HookPoint, ...]:
        """The hook points that names and globs stand for; see `Adapter.resolve`."""
        points = super().resolve(patterns, modalities)
        reader = self._vision and self._vision.read
        if isinstance(reader, PatchRowReader) and reader.window is not None:
            early = next((point.name for point in points if point.modality == "image" and ".patch_embed" in point.name), None)
            if early is not None:
                raise ModelError(f"hook point {early}: its patches are not yet in the order of windows; read vision.start")
        return points

    def _image_tower(self, encoder: Any) -> Tower:
        def forward(inputs: Inputs) -> Tensor:
            output = encoder(**inputs.tensors)
            # Of patches in one row, what the decoder gets: merged by fours.
            return read_features(output) if inputs.packing is not None else output.last_hidden_state

        taps = tap_stream("vision", encoder, find_blocks(encoder, encoder.config))
        return Tower(forward, taps, lambda: self.prepare_images([Image.new("RGB", (64, 64))]))


class _Vision(NamedTuple):
    """The vision encoder of a decoder and what prepares images for it."""

    encoder: Any
    read: ImageTransform


PATCH_ROWS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
"""How the types of models begin whose patches stand in an order that is known here."""


def _find_vision(model: Any, processor: Any, dtype: torch.dtype) -> _Vision | None:
    """The vision encoder when it is a model of its own whose patches can be told apart."""
    base: Any = model.base_model
    tower, crops, rows = (getattr(base, name, None) for name in ("vision_tower", "vision_model", "visual"))
    if tower is not None and getattr(tower, "main_input_name", "") == "pixel_values" and hasattr(tower, "encoder"):
        return _Vision(tower, PixelReader(processor, tower, dtype))
    if crops is not None and hasattr(processor, "do_image_splitting"):
        return _Vision(crops, CropReader(processor, crops, dtype))
    if rows is not None and str(model.config.model_type).startswith(PATCH_ROWS):
        return _Vision(rows, PatchRowReader(processor, rows, dtype))
    return None
