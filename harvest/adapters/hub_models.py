"""What the families of transformers share: loading by name, identity, finding blocks and norms in an unknown model."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn

from thresher.config import config
from thresher.errors import ConfigError, ModelError
from thresher.harvest.adapters.base import Inputs, Precision
from thresher.harvest.adapters.sublayers import tap_blocks
from thresher.harvest.adapters.taps import Tap, Tower, tap_field, tap_output
from thresher.harvest.adapters.weights import (
    LOAD_ERRORS,
    NO_HUB,
    find_model,
    fingerprint_weights,
    plain_log,
    shorten_reason,
    to_plain,
    torch_dtype,
)
from thresher.ranks import count_local_ranks

PREPROCESSING = ("size", "crop_size", "image_mean", "image_std", "resample", "rescale_factor", "patch_size", "max_num_patches")
"""Settings of an image processor that decide pixels, beside those that begin with `do_`."""

_NORM = re.compile(r"(?:final_layer_?norm|post_layernorm|final_norm|norm_f|ln_f|rms_norm|layernorm|ln_final|norm|layer_norm)")
_COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "depth")


@config
class HubModel:
    """A model of transformers by its name."""

    name: str
    """Hub id (<owner>/<name>) or folder, with the model, its tokenizer and its image processor as far as it has them."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    precision: Precision = "float32"
    """What the model computes in."""
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2", "flex_attention"] = "auto"
    """Implementation of attention in transformers: its own choice (`sdpa` where the model has it), or one by name."""
    device_map: Literal["none", "auto"] = "none"
    """`auto` spreads a model that one device cannot hold over the GPUs of the machine, then its memory, then its disk
    (`device` of the harvest is not asked then); the values are the same."""


@config
class HubTextModel(HubModel):
    """A model of transformers that reads texts."""

    context: int | None = None
    """Longest sequence in tokens, special and image tokens included; the model's own limit when not given."""

    def __post_init__(self) -> None:
        if self.context is not None and self.context < 2:
            raise ConfigError(f"context={self.context}: at least 2 tokens")


def load_model(settings: HubModel, auto: str) -> Any:
    """A model by the name of its Auto class, ready to be read, on the CPU unless it is spread.

    Raises ModelError when it cannot be had; ConfigError: several processes of a machine cannot all spread theirs.
    """
    chosen = {} if settings.attention == "auto" else {"attn_implementation": settings.attention}
    if settings.device_map == "auto":
        if count_local_ranks() > 1:
            raise ConfigError(
                "model.device_map=auto: spreads the model over all GPUs of the machine, so launch one process per machine "
                f"(here are {count_local_ranks()}), or use device_map=none"
            )
        chosen["device_map"] = "auto"
    return _load(settings, auto, dtype=torch_dtype(settings.precision), **chosen).eval().requires_grad_(requires_grad=False)


def place_model(settings: HubModel, model: Any, device: torch.device) -> tuple[Any, torch.device]:
    """A loaded model on its device, and where its inputs go: for a spread one, where its first weights are."""
    if settings.device_map == "none":
        return model.to(device), device
    # What waits in memory or on disk for a GPU is a meta tensor.
    held = (weight.device for weight in model.parameters() if not weight.is_meta)
    return model, next(held, torch.device("cuda:0" if torch.cuda.is_available() else "cpu"))


def load_parts(settings: HubModel, *autos: str) -> list[Any]:
    """What goes with a model, each by the name of its Auto class. Raises ModelError when one cannot be had."""
    return [_load(settings, auto) for auto in autos]


@plain_log()
def _load(settings: HubModel, auto: str, **options: Any) -> Any:
    # Takes seconds, and the configurations of these families are needed without it.
    import transformers

    place: Any = find_model(settings.name)
    revision = {"revision": settings.revision} if settings.revision else {}
    try:
        return getattr(transformers, auto).from_pretrained(place, **revision, **options)
    except LOAD_ERRORS as error:
        is_other = "Unrecognized configuration class" in str(error)
        advice = "name the family it is of by model.kind (docs/models.md)" if is_other else NO_HUB
        raise ModelError(f"transformers cannot load {settings.name!r} as {auto}: {shorten_reason(error)}; {advice}") from error


def identify(kind: str, settings: HubModel, model: Any, **more: Any) -> Mapping[str, Any]:
    """Plain values that name a loaded model."""
    return {
        "kind": kind,
        "name": settings.name,
        "revision": getattr(model.config, "_commit_hash", None) or settings.revision,
        "precision": settings.precision,
        "weights": fingerprint_weights(model),
        **({} if settings.attention == "auto" else {"attention": settings.attention}),
        **more,
    }


def describe_processor(processor: Any) -> dict[str, Any]:
    """The settings of an image processor that decide pixels."""
    values: dict[str, Any] = processor.to_dict()
    return to_plain({name: value for name, value in values.items() if name in PREPROCESSING or name.startswith("do_")})


def find_context(settings: HubModel, model: nn.Module, tokenizer: Any) -> int:
    """The longest text in tokens: what was asked for, or the model's own limit. Raises ModelError when there is none."""
    own = count_positions(model)
    limit = int(getattr(tokenizer, "model_max_length", 0) or 0)
    known = [length for length in (own, limit) if length and length < 10**9]
    context = getattr(settings, "context", None) or min(known, default=None)
    if context is None:
        raise ModelError(f"{settings.name}: the model states no longest text; set model.context")
    if own is not None and context > own:
        raise ModelError(f"{settings.name}: context={context} is longer than the model's {own} positions")
    return context


def count_positions(model: Any) -> int | None:
    """How many positions a text model has; RoBERTa's table of them begins after the padding index."""
    count: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    for path, module in model.named_modules():
        if path.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            return module.num_embeddings - module.padding_idx - 1
    return count


def find_blocks(tower: nn.Module, settings: Any) -> list[nn.Module]:
    """The residual blocks: the outermost list of as many modules of a kind as the configuration counts layers.

    Empty where there is none, as in convolutional networks.
    """
    counts = {getattr(settings, name, None) for name in _COUNTS}
    lists = {name: found for name, found in tower.named_modules() if isinstance(found, nn.ModuleList)}
    fitting = sorted((name for name, found in lists.items() if len(found) in counts), key=_count_dots)
    return list(lists[fitting[0]]) if fitting else []


def tap_stream(name: str, tower: nn.Module, blocks: Sequence[nn.Module]) -> dict[str, Tap]:
    """Embeddings, blocks and final norm of a transformer, as far as it has them."""
    taps = tap_blocks(name, blocks)
    embeddings = next((module for path, module in tower.named_modules() if path.split(".")[-1] == "embeddings"), None)
    if embeddings is not None:
        taps = {f"{name}.start": tap_output(embeddings)} | taps
    elif blocks:
        taps = {f"{name}.start": taps[f"{name}.0.in"]} | taps
    norm = find_final_norm(tower, blocks)
    return taps | ({f"{name}.final": tap_output(norm)} if norm is not None and blocks else {})


def build_decoder(model: Any, blank: Callable[[], Inputs]) -> Tower:
    """The tower of a language model: its decoder's places, logits as output."""
    decoder = model.get_decoder()
    blocks = find_blocks(decoder, model.config.get_text_config())
    taps = {name: tap for name, tap in tap_stream("text", decoder, blocks).items() if name != "text.start"}
    # The stream begins at the first block: some models scale the embeddings or add positions on the way.
    start = {"text.start": taps["text.0.in"]} if blocks else {}

    def forward(inputs: Inputs) -> torch.Tensor:
        return model(**inputs.tensors, use_cache=False).logits

    return Tower(forward, start | taps | {"text.final": tap_field(decoder, "last_hidden_state")}, blank)


def find_final_norm(tower: nn.Module, blocks: Sequence[nn.Module]) -> nn.Module | None:
    """The norm after the last block: the outermost one by its name that stands beside or above the blocks."""
    inside = {id(module) for block in blocks for module in block.modules()}
    named = [(path, module) for path, module in tower.named_modules() if _NORM.fullmatch(path.split(".")[-1])]
    outer = {path: module for path, module in named if id(module) not in inside and "embed" not in path}
    norms = [path for path in sorted(outer, key=_count_dots) if not isinstance(outer[path], nn.Identity)]
    return outer[norms[0]] if norms else None


def _count_dots(path: str) -> int:
    return path.count(".")


def read_features(output: Any) -> torch.Tensor:
    """Joint embeddings: transformers gives them as a tensor or, in later versions, as `pooler_output`."""
    return output if isinstance(output, torch.Tensor) else output.pooler_output
