"""Two-tower models of transformers: CLIP, SigLIP, SigLIP 2, AIMv2, ALIGN and what else embeds images and texts alike."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor, nn

from thresher.config import config
from thresher.data.records import Modality
from thresher.errors import ModelError
from thresher.harvest.adapters.base import Inputs
from thresher.harvest.adapters.hooks import HookedModel
from thresher.harvest.adapters.hub_models import (
    HubModel,
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
from thresher.harvest.adapters.layouts import label_texts
from thresher.harvest.adapters.pixels import PixelReader
from thresher.harvest.adapters.pooling import find_dependence, find_rule
from thresher.harvest.adapters.taps import Tap, Tower, tap_field, tap_input, tap_output
from thresher.harvest.adapters.tokens import Encoded, TextEncoder
from thresher.harvest.adapters.weights import torch_dtype

PADDED = ("siglip", "siglip2")
"""Model types that were trained on texts padded to the context, padding attended to."""


@config
class HFClipModel(HubModel):
    """A two-tower model of transformers: whatever AutoModel loads that embeds images and texts."""

    kind: Literal["hf-clip"] = "hf-clip"
    """Which family this is."""


class HFClip(HookedModel):
    """A two-tower model of transformers behind the interface of all models."""

    def __init__(self, settings: HFClipModel, device: torch.device) -> None:
        model = load_model(settings, "AutoModel")
        vision, text = _find_towers(settings, model)
        processor, tokenizer = load_parts(settings, "AutoImageProcessor", "AutoTokenizer")
        is_padded = model.config.model_type in PADDED
        self._encode = TextEncoder(
            tokenizer, find_context(settings, text, tokenizer), pad="context" if is_padded else "longest"
        )
        # SigLIP never sees its padding; SigLIP 2 does what the tokenizer of the checkpoint asks for.
        names: Sequence[str] = tokenizer.model_input_names
        self._is_masked = model.config.model_type != "siglip" and "attention_mask" in names
        self.identity = identify(
            settings.kind, settings, model, preprocessing=describe_processor(processor), text=self._encode.identity
        )
        if model.config.model_type == "aimv2":
            # In transformers 5.23 its texts attend to what follows, not to what precedes only, wherever the mask could be
            # left to the kernel; eager attention is always given one.
            text.set_attn_implementation("eager")
        model, device = place_model(settings, model, device)
        # Pixels [item, 3, height, width], or patches with their mask (NaFlex).
        self.image_transform = pixels = PixelReader(processor, vision, torch_dtype(settings.precision))
        self._rule = None
        super().__init__(model, self._build_towers(model, vision, text), device)
        pixels.measure(self)
        if "text.0" in self.hook_points:
            last = [name for name in self.hook_points if name.startswith("text.") and name[5:].isdigit()][-1]
            eos = getattr(model.config.get_text_config(), "eos_token_id", None)
            self._rule = find_rule(self._encode, lambda found: find_dependence(self, self._inputs(found), last), eos)

    def prepare_texts(self, texts: Sequence[str]) -> Inputs:
        """Token ids [item, position] and, but for SigLIP, the mask of padding."""
        return self._inputs(self._encode(texts))

    def _inputs(self, found: Encoded) -> Inputs:
        tensors = {"input_ids": found.ids}
        if self._is_masked:
            tensors["attention_mask"] = found.valid.to(torch.int64)
        hidden = ~found.valid if self._is_masked else None
        return Inputs("text", tensors, label_texts(found, self._rule(found) if self._rule else None, hidden))

    def _build_towers(self, model: Any, vision: nn.Module, text: nn.Module) -> dict[Modality, Tower]:
        def embed_image(inputs: Inputs) -> Tensor:
            return read_features(model.get_image_features(**inputs.tensors))

        def embed_text(inputs: Inputs) -> Tensor:
            return read_features(model.get_text_features(**inputs.tensors))

        image_end = _tap_end("vision", vision, getattr(model, "visual_projection", getattr(model, "vision_projection", None)))
        text_end = _tap_end("text", text, getattr(model, "text_projection", None))
        image_taps = tap_stream("vision", vision, find_blocks(vision, model.config.vision_config)) | image_end
        text_taps = tap_stream("text", text, find_blocks(text, model.config.get_text_config())) | text_end
        return {
            "image": Tower(embed_image, image_taps, lambda: self.prepare_images([Image.new("RGB", (64, 64))])),
            "text": Tower(embed_text, text_taps, lambda: self.prepare_texts(["a"])),
        }


def _find_towers(settings: HFClipModel, model: Any) -> tuple[Any, Any]:
    """The vision and the text tower. Raises ModelError when the model does not embed both."""
    found = [getattr(model, name, None) for name in ("vision_model", "text_model")]
    if not hasattr(model, "get_image_features") or not all(isinstance(tower, nn.Module) for tower in found):
        raise ModelError(
            f"{settings.name}: model type {model.config.model_type!r} has no pair of towers for images and texts; "
            "for a language model use kind hf-causal-lm or hf-encoder, for images alone hf-vision, for both in one "
            "sequence hf-vlm"
        )
    return found[0], found[1]


def _tap_end(name: str, tower: nn.Module, projection: nn.Module | None) -> dict[str, Tap]:
    """What a tower pools and the joint embedding; the same thing where no projection follows."""
    if projection is None or isinstance(projection, nn.Identity):
        pooled = tap_field(tower, "pooler_output")
        return {f"{name}.pooled": pooled, f"{name}.embed": pooled}
    return {f"{name}.pooled": tap_input(projection), f"{name}.embed": tap_output(projection)}
