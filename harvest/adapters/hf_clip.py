"""Two-tower models of transformers: CLIP and SigLIP."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor

from thresher.config import config
from thresher.errors import ModelError
from thresher.harvest.adapters.base import Inputs, Precision
from thresher.harvest.adapters.hooks import HookedModel, Tower
from thresher.harvest.adapters.layouts import label_patches, label_texts
from thresher.harvest.adapters.tokens import TextEncoder
from thresher.harvest.adapters.taps import Tap, tap_field, tap_output
from thresher.harvest.adapters.weights import NO_HUB, fingerprint_weights, plain_log, to_plain, torch_dtype
from thresher.hub import local_copy

TYPES = ("clip", "siglip")
"""`model_type` of the models this file knows."""

PREPROCESSING = ("size", "crop_size", "image_mean", "image_std", "resample", "rescale_factor")


@config
class HFClipModel:
    """A CLIP or SigLIP of transformers."""

    kind: Literal["hf-clip"] = "hf-clip"
    """Which family this is."""
    name: str
    """Hub id (<owner>/<name>) or folder, with model, tokenizer and image processor."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    precision: Precision = "float32"
    """What the model computes in."""


class HFClip(HookedModel):
    """A two-tower model of transformers behind the interface of all models."""

    def __init__(self, settings: HFClipModel, device: torch.device) -> None:
        model, self._processor, tokenizer = _load(settings)
        self._is_siglip = model.config.model_type == "siglip"
        context = int(model.config.text_config.max_position_embeddings)
        # SigLIP was trained on texts padded to the context, and reads its last position; CLIP is causal.
        self._encode = TextEncoder(tokenizer, context, pad="context" if self._is_siglip else "longest")
        self._text_config = model.config.text_config
        vision = model.config.vision_config
        self._n_prefix = 0 if self._is_siglip else 1
        self._grid = (vision.image_size // vision.patch_size, vision.image_size // vision.patch_size)
        self._dtype = torch_dtype(settings.precision)
        self.identity: Mapping[str, Any] = {
            "kind": settings.kind,
            "name": settings.name,
            "revision": getattr(model.config, "_commit_hash", None) or settings.revision,
            "precision": settings.precision,
            "weights": fingerprint_weights(model),
            "preprocessing": _describe(self._processor),
            "text": self._encode.identity,
        }
        model = model.eval().requires_grad_(requires_grad=False).to(device)
        super().__init__(model, {"image": self._vision_tower(model), "text": self._text_tower(model)}, device)

    def prepare_images(self, images: Sequence[Image.Image]) -> Inputs:
        """Pixels [item, 3, height, width] by the model's image processor."""
        pixels = self._processor(images=list(images), return_tensors="pt")["pixel_values"].to(self._dtype)
        layout = label_patches([self._grid] * len(images), n_cls=self._n_prefix)
        return Inputs("image", {"pixel_values": pixels}, layout)

    def prepare_texts(self, texts: Sequence[str]) -> Inputs:
        """Token ids [item, position] and, for CLIP, the mask of padding; SigLIP attends to padding as it was trained to."""
        found = self._encode(texts)
        tensors = {"input_ids": found.ids}
        if not self._is_siglip:
            tensors["attention_mask"] = found.valid.to(torch.int64)
        hidden = None if self._is_siglip else ~found.valid
        return Inputs("text", tensors, label_texts(found, self._find_summary(found.ids), hidden))

    def _find_summary(self, ids: Int[Tensor, "item position"]) -> Int[Tensor, " item"]:
        """The position that the text model pools: last for SigLIP; for CLIP the first EOS, or by the rule of old
        configurations, whose eos_token_id is 2, the largest token id."""
        if self._is_siglip:
            return torch.full((len(ids),), ids.shape[1] - 1)
        eos = self._text_config.eos_token_id
        return ids.argmax(dim=-1) if eos == 2 else (ids == eos).int().argmax(dim=-1)

    def _vision_tower(self, model: Any) -> Tower:
        tower = model.vision_model
        taps: dict[str, Tap] = {f"vision.{i}": tap_output(block) for i, block in enumerate(tower.encoder.layers)}
        taps["vision.pooled"] = tap_field(tower, "pooler_output")
        taps["vision.embed"] = taps["vision.pooled"] if self._is_siglip else tap_output(model.visual_projection)

        def forward(inputs: Inputs) -> Tensor:
            return _features(model.get_image_features(**inputs.tensors))

        return Tower(forward, taps, lambda: self.prepare_images([Image.new("RGB", (64, 64))]))

    def _text_tower(self, model: Any) -> Tower:
        tower = model.text_model
        taps: dict[str, Tap] = {f"text.{i}": tap_output(block) for i, block in enumerate(tower.encoder.layers)}
        taps["text.pooled"] = tap_field(tower, "pooler_output")
        taps["text.embed"] = taps["text.pooled"] if self._is_siglip else tap_output(model.text_projection)

        def forward(inputs: Inputs) -> Tensor:
            return _features(model.get_text_features(**inputs.tensors))

        return Tower(forward, taps, lambda: self.prepare_texts(["a"]))


@plain_log()
def _load(settings: HFClipModel) -> tuple[Any, Any, Any]:
    """Model, image processor and tokenizer. Raises ModelError when anything of it cannot be had or is of another type."""
    # Takes seconds, and the configuration of this family is needed without it.
    from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer

    place: Any = local_copy(settings.name)
    options: dict[str, Any] = {"revision": settings.revision} if settings.revision else {}
    try:
        found = AutoConfig.from_pretrained(place, **options)
        if found.model_type not in TYPES:
            raise ModelError(f"{settings.name}: model type {found.model_type!r}; kind hf-clip knows {', '.join(TYPES)}")
        model = AutoModel.from_pretrained(place, dtype=torch_dtype(settings.precision), **options)
        return (
            model,
            AutoImageProcessor.from_pretrained(place, **options),
            AutoTokenizer.from_pretrained(place, **options),
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(f"transformers cannot load {settings.name!r}: {error}; {NO_HUB}") from error


def _features(output: Any) -> Tensor:
    """Joint embeddings: transformers gives them as a tensor or, in later versions, as `pooler_output`."""
    return output if isinstance(output, Tensor) else output.pooler_output


def _describe(processor: Any) -> dict[str, Any]:
    """The settings of an image processor that decide pixels."""
    values: dict[str, Any] = processor.to_dict()
    return to_plain({name: value for name, value in values.items() if name in PREPROCESSING or name.startswith("do_")})
