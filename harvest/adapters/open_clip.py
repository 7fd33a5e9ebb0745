"""Models of open_clip: CLIP and its relatives with a vision and a text transformer."""

import difflib
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from thresher.config import config
from thresher.data.records import Modality
from thresher.errors import ConfigError, ModelError
from thresher.harvest.adapters.base import Inputs, Precision
from thresher.harvest.adapters.hooks import HookedModel
from thresher.harvest.adapters.layouts import label_texts
from thresher.harvest.adapters.open_clip_attention import split_attention
from thresher.harvest.adapters.open_clip_towers import (
    TextEncoder,
    append_class_token,
    build_text_taps,
    build_vision_taps,
    describe_patches,
    find_summary,
    has_class_token,
    text_blocks,
)
from thresher.harvest.adapters.taps import Tower
from thresher.harvest.adapters.tokens import Encoded
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

SCENES = "scenes"
RANDOM = "random"
HUB = "hf-hub:"
LOCAL = "local-dir:"


@config
class OpenClipModel:
    """A two-tower model of open_clip."""

    kind: Literal["open-clip"] = "open-clip"
    """Which family this is."""
    name: str = SCENES
    """Architecture as in `open_clip.list_models()` (ViT-B-32), `hf-hub:<owner>/<name>`, `local-dir:<folder>` with
    open_clip_config.json, or `scenes` for the small CLIP that ships with the package."""
    pretrained: str | None = None
    """Weights for an architecture's name: a tag of open_clip (laion2b_s34b_b79k), a file, a folder, a hub id
    (<owner>/<name>), or `random` for untrained weights, a control."""
    precision: Precision = "float32"
    """What the model computes in."""
    seed: int = 0
    """Draws the weights when `pretrained` is `random`."""

    def __post_init__(self) -> None:
        names_weights = self.name == SCENES or self.name.startswith((HUB, LOCAL))
        if names_weights and self.pretrained is not None:
            raise ConfigError(f"pretrained={self.pretrained!r}: {self.name} brings its own weights; leave it out")
        if not names_weights and self.pretrained is None:
            raise ConfigError(f"pretrained: {self.name} is only an architecture; name its weights (or say random)")


class OpenClip(HookedModel):
    """An open_clip model behind the interface of all models."""

    def __init__(self, settings: OpenClipModel, device: torch.device) -> None:
        source, weights = _locate(settings)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            model, transform, tokenizer = _load(source, weights)
        split_attention(model)
        self.identity: Mapping[str, Any] = {
            "kind": settings.kind,
            "name": settings.name,
            "pretrained": settings.pretrained,
            "precision": settings.precision,
            "weights": fingerprint_weights(model),
            "preprocessing": to_plain(model.visual.preprocess_cfg),
        }
        model = model.eval().requires_grad_(requires_grad=False).to(device=device, dtype=torch_dtype(settings.precision))
        grid, n_cls, n_registers = describe_patches(model.visual)
        self.image_transform = PatchTransform(transform, torch_dtype(settings.precision), grid, n_cls, n_registers)
        self._tokenizer = tokenizer
        # Tokenizers written in Rust refuse to be used by two threads at once.
        self._lock = threading.Lock()
        self._text = model.text if hasattr(model, "text") else model
        super().__init__(model, self._build_towers(model), device)

    def prepare_texts(self, texts: Sequence[str]) -> Inputs:
        """Token ids [item, position], always as long as the context, which is what these models take."""
        with self._lock:
            ids = self._tokenizer(list(texts))
            lengths, is_truncated = _measure(self._tokenizer, texts, ids)
        valid = torch.arange(ids.shape[1]) < lengths[:, None]
        special = valid & torch.isin(ids, torch.tensor(_special_ids(self._tokenizer), dtype=ids.dtype))
        summary = find_summary(self._text, ids) if text_blocks(self._text) else None
        layout = label_texts(Encoded(ids, valid, special, tuple(is_truncated.tolist())), summary)
        return Inputs("text", {"ids": ids}, append_class_token(layout) if has_class_token(self._text) else layout)

    def _build_towers(self, model: Any) -> dict[Modality, Tower]:
        visual, encoder = model.visual, TextEncoder(model)

        def encode_image(inputs: Inputs) -> Tensor:
            features = visual(inputs.tensors["pixels"])
            return features[0] if isinstance(features, tuple) else features

        def encode_text(inputs: Inputs) -> Tensor:
            return encoder(inputs.tensors["ids"])

        return {
            "image": Tower(encode_image, build_vision_taps(visual), lambda: self.prepare_images([Image.new("RGB", (64, 64))])),
            "text": Tower(encode_text, build_text_taps(self._text, encoder), lambda: self.prepare_texts(["a"])),
        }


def _locate(settings: OpenClipModel) -> tuple[str, str | None]:
    """What open_clip is asked for: name and weights, hub ids replaced by their local copies."""
    if settings.name == SCENES:
        from thresher.harvest.pretrain import checkpoint_path

        return f"{LOCAL}{checkpoint_path()}", None
    if settings.name.startswith(HUB):
        return _hub_or_local(settings.name.removeprefix(HUB)), None
    if settings.name.startswith(LOCAL):
        return settings.name, None
    # Takes seconds, and the configuration of this family is needed without it.
    import open_clip

    known = open_clip.list_models()
    if settings.name not in known:
        near = difflib.get_close_matches(settings.name, known, n=3)
        raise ModelError(f"open_clip has no architecture {settings.name!r}; nearest: {', '.join(near) or 'none'}")
    weights = settings.pretrained
    if weights is None or weights == RANDOM:
        return settings.name, None
    if Path(weights).is_dir():
        return f"{LOCAL}{weights}", None
    is_tag = weights in open_clip.list_pretrained_tags_by_model(settings.name)
    if "/" in weights and not is_tag and not Path(weights).exists():
        return _hub_or_local(weights), None
    return settings.name, weights


def _hub_or_local(name: str) -> str:
    copy = find_model(name)
    return f"{HUB}{name}" if copy == name else f"{LOCAL}{copy}"


def _load(name: str, weights: str | None) -> tuple[Any, Callable[[Image.Image], Tensor], Any]:
    """Model, evaluation transform and tokenizer. Raises ModelError when anything of it cannot be had."""
    import open_clip

    is_random = weights is None and not name.startswith((HUB, LOCAL))
    try:
        model, _, transform = open_clip.create_model_and_transforms(name, weights, require_pretrained=not is_random)
        evaluate: Any = transform
        return model, evaluate, open_clip.get_tokenizer(name)
    except LOAD_ERRORS as error:
        weighed = f" with weights {weights!r}" if weights else ""
        raise ModelError(f"open_clip cannot load {name!r}{weighed}: {shorten_reason(error)}; {NO_HUB}") from error


def _measure(tokenizer: Any, texts: Sequence[str], ids: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens of each text in `ids`, and whether it had more than fit."""
    context = ids.shape[1]
    if getattr(tokenizer, "tokenizer_mode", "") == "clips":
        raise ModelError("open_clip's tokenizer mode 'clips' is not supported: its padding stands before the last token")
    if hasattr(tokenizer, "encode"):
        full = torch.tensor([len(tokenizer.encode(text)) + 2 for text in texts])
    else:
        cleaned = [tokenizer.clean_fn(text) for text in texts]
        full = torch.tensor([len(found) for found in tokenizer.tokenizer(cleaned, verbose=False)["input_ids"]])
    return full.clamp(max=context), full > context


def _special_ids(tokenizer: Any) -> list[int]:
    if hasattr(tokenizer, "sot_token_id"):
        return [tokenizer.sot_token_id, tokenizer.eot_token_id]
    inner = tokenizer.tokenizer
    found = (inner.bos_token_id, inner.eos_token_id, inner.cls_token_id, inner.sep_token_id, inner.pad_token_id)
    return sorted({int(token) for token in found if token is not None})
