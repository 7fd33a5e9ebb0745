"""Where the named places of open_clip's towers are, by the rules of their own forward passes."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from thresher.harvest.adapters import timm_towers
from thresher.harvest.adapters.base import Inputs, Layout, TokenKind
from thresher.harvest.adapters.sublayers import tap_blocks
from thresher.harvest.adapters.taps import Tap, tap_input, tap_output, tap_position


class TextEncoder(nn.Module):
    """Gives the joint embedding of texts a module of its own: in open_clip's CLIP it is the result of a method."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self._encode: Callable[..., Any] = model.encode_text

    def forward(self, ids: Int[Tensor, "item position"]) -> Float[Tensor, "item d"]:
        """Joint embeddings, not normalised."""
        # CoCa's own default is to normalise texts.
        features = self._encode(ids, normalize=False)
        return features[0] if isinstance(features, tuple) else features


def build_vision_taps(visual: Any) -> dict[str, Tap]:
    """The named places of a vision tower in the order of its forward pass."""
    return (
        _tap_start(visual)
        | _tap_blocks("vision", vision_blocks(visual), visual)
        | _tap_vision_end(visual)
        | {"vision.embed": tap_output(visual)}
    )


def build_text_taps(text: Any, encoder: TextEncoder) -> dict[str, Tap]:
    """The named places of a text tower in the order of its forward pass."""
    blocks = text_blocks(text)
    taps = {"text.start": _tap_blocks("text", blocks, text)["text.0.in"]} if blocks else {}
    taps |= _tap_blocks("text", blocks, text)
    if blocks and not has_class_token(text):
        taps["text.final"] = tap_output(text.ln_final)
    if blocks and _pool_type(text) != "none":
        taps["text.pooled"] = _tap_text_pooled(text)
    return taps | {"text.embed": tap_output(encoder)}


def _tap_start(visual: Any) -> dict[str, Tap]:
    """Patch embeddings with positions, before the norm that may stand in front of the first block."""
    before: Any = getattr(getattr(visual, "trunk", visual), "norm_pre", getattr(visual, "ln_pre", None))
    return {"vision.start": tap_input(before)} if before is not None and vision_blocks(visual) else {}


def _tap_blocks(name: str, blocks: list[nn.Module], tower: Any) -> dict[str, Tap]:
    """The places of residual blocks as [item, position, d]; some towers hold the stream as [position, item, d]."""
    taps = tap_blocks(name, blocks)
    if getattr(getattr(tower, "transformer", None), "batch_first", True):
        return taps
    # What the projections of attention see is made by ours, batch first.
    return {name: tap if name.endswith((".z", ".attn")) else _transpose(tap) for name, tap in taps.items()}


def _transpose(tap: Tap) -> Tap:
    def read(output: Any, inputs: Inputs) -> Tensor:
        return tap.read(output, inputs).transpose(0, 1)

    def write(output: Any, activation: Tensor, inputs: Inputs) -> Any:
        return tap.write(output, activation.transpose(0, 1), inputs)

    return tap._replace(read=read, write=write)


def vision_blocks(visual: Any) -> list[nn.Module]:
    """The residual blocks of open_clip's own transformer or of a timm trunk; none for convolutional towers."""
    if hasattr(visual, "trunk"):
        return list(getattr(visual.trunk, "blocks", ()))
    return list(visual.transformer.resblocks) if hasattr(visual, "transformer") else []


def text_blocks(text: Any) -> list[nn.Module]:
    """The residual blocks of open_clip's own text transformer; none for text models of other libraries."""
    return list(getattr(getattr(text, "transformer", None), "resblocks", ()))


def has_class_token(text: Any) -> bool:
    """Whether a learned token is appended to every text (CoCa)."""
    return getattr(text, "cls_emb", None) is not None


def append_class_token(layout: Layout) -> Layout:
    """One more position, which has no vocabulary index (-1) and stands for the text."""
    assert layout.token_id is not None
    end = torch.full_like(layout.kind[:, :1], TokenKind.SPECIAL)
    return layout._replace(
        kind=torch.cat([layout.kind, end], dim=1),
        token_id=torch.cat([layout.token_id, torch.full_like(layout.token_id[:, :1], -1)], dim=1),
    )


def describe_patches(visual: Any) -> tuple[tuple[int, int], int, int]:
    """Grid of the patches (rows, columns), CLS tokens and registers of a vision tower; one cell where it has no sequence."""
    if hasattr(visual, "trunk"):
        return timm_towers.describe_patches(visual.trunk)
    if not hasattr(visual, "grid_size"):
        return (1, 1), 0, 0
    return (int(visual.grid_size[0]), int(visual.grid_size[1])), 1, 0


def _tap_vision_end(visual: Any) -> dict[str, Tap]:
    """The places between the last block and the projection, by the pooling rule of `VisionTransformer._pool`."""
    if hasattr(visual, "trunk"):
        norm = timm_towers.find_norm(visual.trunk) if vision_blocks(visual) else None
        final = {} if norm is None else {"vision.final": tap_output(norm)}
        return final if hasattr(visual.head, "pool") else final | {"vision.pooled": tap_output(visual.trunk)}
    if not hasattr(visual, "ln_post") or visual.pool_type == "none":
        return {}
    normed = tap_output(visual.ln_post)
    if visual.final_ln_after_pool and visual.attn_pool is None:
        return {"vision.pooled": normed}
    pooled = _tap_mean(normed) if visual.pool_type == "avg" else tap_position(normed, _place_first)
    return {"vision.pooled": pooled} if visual.attn_pool is not None else {"vision.final": normed, "vision.pooled": pooled}


def _place_first(inputs: Inputs) -> Tensor:
    return torch.zeros(len(inputs.layout.valid), dtype=torch.int64)


def _tap_mean(tap: Tap) -> Tap:
    """The mean over patches; replaced by moving all patches alike, which leaves them alone when nothing changes."""

    def read(output: Any, inputs: Inputs) -> Tensor:
        return tap.read(output, inputs)[:, 1:].mean(dim=1)

    def write(output: Any, activation: Tensor, inputs: Inputs) -> Any:
        whole = tap.read(output, inputs)
        moved = whole[:, 1:] + (activation - read(output, inputs))[:, None]
        return tap.write(output, torch.cat([whole[:, :1], moved], dim=1), inputs)

    return tap._replace(read=read, write=write)


def _pool_type(text: Any) -> str:
    return str(getattr(text, "text_pool_type", getattr(text, "pool_type", "argmax")))


def _tap_text_pooled(text: Any) -> Tap:
    """The output of the last norm at the position that the model pools."""
    if has_class_token(text):
        return tap_output(text.ln_final)

    return tap_position(tap_output(text.ln_final), lambda inputs: find_summary(text, inputs.tensors["ids"]))


def find_summary(text: Any, ids: Int[Tensor, "item position"]) -> Int[Tensor, " item"]:
    """The position that `open_clip.transformer.text_global_pool` takes; the appended CLS counts as the one after the last."""
    if has_class_token(text):
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
