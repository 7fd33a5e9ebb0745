"""Models of open_clip: CLIP and its relatives with a vision and a text transformer."""

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor, nn

from thresher.config import config
from thresher.errors import ConfigError, ModelError
from thresher.harvest.adapters.base import Inputs, Layout, Precision
from thresher.harvest.adapters.hooks import HookedModel, Tap, Tower, tap_output
from thresher.harvest.adapters.weights import fingerprint_weights, torch_dtype
from thresher.hub import local_copy

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
        self.identity: Mapping[str, Any] = {
            "kind": settings.kind,
            "name": settings.name,
            "pretrained": settings.pretrained,
            "precision": settings.precision,
            "weights": fingerprint_weights(model),
            "preprocessing": _plain(model.visual.preprocess_cfg),
        }
        model = model.eval().requires_grad_(requires_grad=False).to(device=device, dtype=torch_dtype(settings.precision))
        self._transform = transform
        self._tokenizer = tokenizer
        # Tokenizers written in Rust refuse to be used by two threads at once.
        self._lock = threading.Lock()
        self._dtype = torch_dtype(settings.precision)
        text = model.text if hasattr(model, "text") else model
        self._text = text
        super().__init__(model, {"image": self._vision_tower(model), "text": self._text_tower(model, text)}, device)

    def prepare_images(self, images: Sequence[Image.Image]) -> Inputs:
        """Pixels [item, 3, height, width] by the model's evaluation transform."""
        pixels = torch.stack([self._transform(image) for image in images]).to(self._dtype)
        n_positions, n_prefix = _count_positions(self.model.visual)
        special = torch.zeros(len(images), n_positions, dtype=torch.bool)
        special[:, :n_prefix] = True
        summary = torch.zeros(len(images), dtype=torch.int64) if n_prefix else None
        layout = Layout(torch.ones_like(special), special, summary, None, (False,) * len(images))
        return Inputs("image", {"pixels": pixels}, layout)

    def prepare_texts(self, texts: Sequence[str]) -> Inputs:
        """Token ids [item, position], always as long as the context, which is what these models take."""
        with self._lock:
            ids = self._tokenizer(list(texts))
            lengths, is_truncated = _measure(self._tokenizer, texts, ids)
        valid = torch.arange(ids.shape[1]) < lengths[:, None]
        special = valid & torch.isin(ids, torch.tensor(_special_ids(self._tokenizer), dtype=ids.dtype))
        summary = _find_summary(self._text, ids) if _text_blocks(self._text) else None
        layout = Layout(valid, special, summary, ids, tuple(is_truncated.tolist()))
        return Inputs("text", {"ids": ids}, _append_class_token(layout) if _has_class_token(self._text) else layout)

    def _vision_tower(self, model: Any) -> Tower:
        visual = model.visual
        taps = {f"vision.{i}": _tap_block(block, _batch_first(visual)) for i, block in enumerate(_vision_blocks(visual))}
        pooled = _tap_vision_pooled(visual)
        if pooled is not None:
            taps["vision.pooled"] = pooled
        taps["vision.embed"] = tap_output(visual)

        def forward(inputs: Inputs) -> Tensor:
            features = visual(inputs.tensors["pixels"])
            return features[0] if isinstance(features, tuple) else features

        return Tower(forward, taps, lambda: self.prepare_images([Image.new("RGB", (64, 64))]))

    def _text_tower(self, model: Any, text: Any) -> Tower:
        blocks = _text_blocks(text)
        taps = {f"text.{i}": _tap_block(block, _batch_first(text)) for i, block in enumerate(blocks)}
        if len(blocks) and _pool_type(text) != "none":
            taps["text.pooled"] = _tap_text_pooled(text)
        encoder = _TextEncoder(model)
        taps["text.embed"] = tap_output(encoder)
        return Tower(lambda inputs: encoder(inputs.tensors["ids"]), taps, lambda: self.prepare_texts(["a"]))


class _TextEncoder(nn.Module):
    """Gives the joint embedding of texts a module of its own: in open_clip's CLIP it is the result of a method."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self._encode: Callable[[Tensor], Any] = model.encode_text

    def forward(self, ids: Tensor) -> Tensor:
        features = self._encode(ids)
        return features[0] if isinstance(features, tuple) else features


def _locate(settings: OpenClipModel) -> tuple[str, str | None]:
    """What open_clip is asked for: name and weights, hub ids replaced by their local copies."""
    if settings.name == SCENES:
        from thresher.harvest.pretrain import checkpoint_path

        return f"{LOCAL}{checkpoint_path()}", None
    if settings.name.startswith(HUB):
        return _hub_or_local(settings.name.removeprefix(HUB)), None
    if settings.name.startswith(LOCAL) or settings.pretrained == RANDOM:
        return settings.name, None
    weights = settings.pretrained or ""
    if Path(weights).is_dir():
        return f"{LOCAL}{weights}", None
    import open_clip

    is_tag = weights in open_clip.list_pretrained_tags_by_model(settings.name)
    if "/" in weights and not is_tag and not Path(weights).exists():
        return _hub_or_local(weights), None
    return settings.name, weights


def _hub_or_local(name: str) -> str:
    copy = local_copy(name)
    return f"{HUB}{name}" if copy == name else f"{LOCAL}{copy}"


def _load(name: str, weights: str | None) -> tuple[Any, Callable[[Image.Image], Tensor], Any]:
    """Model, evaluation transform and tokenizer. Raises ModelError when anything of it cannot be had."""
    # Takes seconds, and the configuration of this family is needed without it.
    import open_clip

    is_random = weights is None and not name.startswith((HUB, LOCAL))
    try:
        model, _, transform = open_clip.create_model_and_transforms(name, weights, require_pretrained=not is_random)
        return model, transform, open_clip.get_tokenizer(name)
    except (RuntimeError, OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"open_clip cannot load {name!r} with weights {weights!r}: {error}") from error


def _tap_block(block: nn.Module, is_batch_first: bool) -> Tap:
    if is_batch_first:
        return tap_output(block)
    return Tap(block, lambda output, _: output.transpose(0, 1), lambda output, activation, _: activation.transpose(0, 1))


def _vision_blocks(visual: Any) -> Sequence[nn.Module]:
    """The residual blocks of open_clip's own transformer or of a timm trunk; none for convolutional towers."""
    if hasattr(visual, "trunk"):
        return getattr(visual.trunk, "blocks", [])
    return visual.transformer.resblocks if hasattr(visual, "transformer") else []


def _text_blocks(text: Any) -> Sequence[nn.Module]:
    """The residual blocks of open_clip's own text transformer; none for text models of other libraries."""
    return getattr(getattr(text, "transformer", None), "resblocks", [])


def _has_class_token(text: Any) -> bool:
    """Whether a learned token is appended to every text (CoCa)."""
    return getattr(text, "cls_emb", None) is not None


def _append_class_token(layout: Layout) -> Layout:
    """One more position, which has no vocabulary index (-1) and stands for the text."""
    assert layout.token_id is not None
    end = torch.ones(len(layout.valid), 1, dtype=torch.bool)
    return layout._replace(
        valid=torch.cat([layout.valid, end], dim=1),
        special=torch.cat([layout.special, end], dim=1),
        token_id=torch.cat([layout.token_id, torch.full_like(layout.token_id[:, :1], -1)], dim=1),
    )


def _batch_first(tower: Any) -> bool:
    return getattr(getattr(tower, "transformer", None), "batch_first", True)


def _count_positions(visual: Any) -> tuple[int, int]:
    """Positions of an image in the vision tower and how many of them come before the patches."""
    trunk = getattr(visual, "trunk", None)
    if trunk is not None:
        n_prefix = int(getattr(trunk, "num_prefix_tokens", 0))
        return int(getattr(getattr(trunk, "patch_embed", None), "num_patches", 1)) + n_prefix, n_prefix
    if not hasattr(visual, "grid_size"):
        return 1, 0
    return visual.grid_size[0] * visual.grid_size[1] + 1, 1


def _tap_vision_pooled(visual: Any) -> Tap | None:
    """The tap before the projection, by the pooling rule of `VisionTransformer._pool`; None where there is no such place."""
    if hasattr(visual, "trunk"):
        return None if hasattr(visual.head, "pool") else tap_output(visual.trunk)
    if not hasattr(visual, "ln_post"):
        return None
    if visual.pool_type == "none":
        return None
    if visual.final_ln_after_pool and visual.attn_pool is None:
        return tap_output(visual.ln_post)
    return Tap(visual.ln_post, _read_first, _write_first) if visual.pool_type == "tok" else _tap_mean(visual.ln_post)


def _read_first(output: Any, inputs: Inputs) -> Tensor:
    return output[:, 0]


def _write_first(output: Any, activation: Tensor, inputs: Inputs) -> Any:
    return torch.cat([activation[:, None], output[:, 1:]], dim=1)


def _tap_mean(module: nn.Module) -> Tap:
    """The mean over patches; replaced by moving all patches alike, which leaves them alone when nothing changes."""

    def write(output: Any, activation: Tensor, inputs: Inputs) -> Any:
        moved = output[:, 1:] + (activation - output[:, 1:].mean(dim=1))[:, None]
        return torch.cat([output[:, :1], moved], dim=1)

    return Tap(module, lambda output, _: output[:, 1:].mean(dim=1), write)


def _pool_type(text: Any) -> str:
    return str(getattr(text, "text_pool_type", getattr(text, "pool_type", "argmax")))


def _tap_text_pooled(text: Any) -> Tap:
    """The output of the last norm at the position that the model pools."""
    if _has_class_token(text):
        return tap_output(text.ln_final)

    def rows_of(inputs: Inputs) -> tuple[Tensor, Tensor]:
        summary = _find_summary(text, inputs.tensors["ids"])
        return torch.arange(len(summary), device=summary.device), summary

    def write(output: Any, activation: Tensor, inputs: Inputs) -> Any:
        replaced = output.clone()
        replaced[rows_of(inputs)] = activation
        return replaced

    return Tap(text.ln_final, lambda output, inputs: output[rows_of(inputs)], write)


def _find_summary(text: Any, ids: Int[Tensor, "item position"]) -> Int[Tensor, " item"]:
    """The position that `open_clip.transformer.text_global_pool` takes; the appended CLS counts as the one after the last."""
    if _has_class_token(text):
        return torch.full((len(ids),), ids.shape[1], device=ids.device)
    pool = _pool_type(text)
    if pool == "first":
        return torch.zeros(len(ids), dtype=torch.int64, device=ids.device)
    if pool == "last":
        return torch.full((len(ids),), ids.shape[1] - 1, device=ids.device)
    if pool == "eos":
        eos = getattr(text, "text_eos_id", getattr(text, "eos_id", None))
        return (ids == eos).int().argmax(dim=-1)
    return ids.argmax(dim=-1)


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


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Preprocessing settings as values that JSON can hold."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
