"""A small CLIP in open_clip's own layout, which open_clip loads without any code of ours."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import open_clip
import torch
from jaxtyping import Float, UInt8
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import save
from torch import Tensor, nn

from thresher.files import write_atomic
from thresher.harvest.pretrain.settings import PretrainConfig

MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
"""Normalisation of pixels in [0, 1]."""


def write_layout(settings: PretrainConfig, folder: Path, vocabulary_size: int) -> None:
    """Write `open_clip_config.json`; the tokenizer must lie in the same folder."""
    vision, text = settings.vision, settings.text
    model = {
        "embed_dim": settings.embed_dim,
        "vision_cfg": {
            "image_size": vision.image_size,
            "layers": vision.layers,
            "width": vision.width,
            "head_width": vision.width // vision.heads,
            "patch_size": vision.patch_size,
        },
        "text_cfg": {
            "context_length": text.context_length,
            "vocab_size": vocabulary_size,
            "hf_tokenizer_name": "tokenizer",
            "width": text.width,
            "heads": text.heads,
            "layers": text.layers,
            "pool_type": "argmax",
        },
    }
    layout = {"model_cfg": model, "preprocess_cfg": {"mean": MEAN, "std": STD}}
    write_atomic(folder / "open_clip_config.json", [(json.dumps(layout, indent=1) + "\n").encode()])


def create_clip(folder: Path, seed: int) -> nn.Module:
    """The model that `folder` describes, with initial weights that `seed` decides."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layout = cast(dict[str, Any], open_clip.get_model_config(f"local-dir:{folder}"))
        return open_clip.CLIP(**layout)


def load_tokenizer(folder: Path) -> Callable[[list[str]], Tensor]:
    """The tokenizer of `folder`, as open_clip loads it."""
    return cast(Callable[[list[str]], Tensor], open_clip.get_tokenizer(f"local-dir:{folder}"))


def make_transform(image_size: int) -> Callable[[Image.Image], Tensor]:
    """open_clip's resize and crop, without its normalisation: pixels in [0, 1]."""
    settings = PreprocessCfg(size=image_size, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    return cast(Callable[[Image.Image], Tensor], image_transform_v2(settings, is_train=False))


def normalize(images: UInt8[Tensor, "row 3 height width"]) -> Float[Tensor, "row 3 height width"]:
    """Bytes as the model wants them: (x / 255 - mean) / std."""
    mean, std = (torch.tensor(values, device=images.device).view(3, 1, 1) for values in (MEAN, STD))
    return (images.float() / 255 - mean) / std


def save_weights(model: nn.Module, folder: Path) -> None:
    """Write `open_clip_model.safetensors`, whole or not at all."""
    state: dict[str, Any] = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    write_atomic(folder / "open_clip_model.safetensors", [save(state)])
