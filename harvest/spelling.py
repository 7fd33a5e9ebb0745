"""What token ids stand for, by the tokenizer of the model that was harvested."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from thresher.errors import ModelError
from thresher.harvest.adapters.hub_models import HubModel, load_parts
from thresher.harvest.adapters.open_clip import SCENES
from thresher.harvest.adapters.tokens import TextEncoder
from thresher.progress import log

OPEN_CLIP = "open-clip"
ANCHOR = "a"
"""A token before another one, so that a decoder that strips a text's first blank keeps the other's."""


def decode_tokens(model: Any, ids: Sequence[int]) -> dict[int, str]:
    """What each id stands for, with the blank before it; empty, with the reason in the log, where no tokenizer is to be had.

    `model` is the part `model` of a store's identity. A tokenizer other than that of the harvest is not used.
    """
    if not ids:
        return {}
    try:
        tokenizer = _open_tokenizer(model if isinstance(model, Mapping) else {})
    except (ModelError, OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        log(f"tokens are shown by their ids ({error})")
        return {}
    anchor = tokenizer.encode(ANCHOR)[-1:] if not hasattr(tokenizer, "add_special_tokens") else _encode_plain(tokenizer)
    before = str(tokenizer.decode(anchor))
    return {token: _decode_after(tokenizer, anchor, before, token) for token in ids}


def _encode_plain(tokenizer: Any) -> list[int]:
    return tokenizer(ANCHOR, add_special_tokens=False)["input_ids"]


def _decode_after(tokenizer: Any, anchor: list[int], before: str, token: int) -> str:
    both = str(tokenizer.decode([*anchor, token]))
    return both[len(before) :] if both.startswith(before) else str(tokenizer.decode([token]))


def _open_tokenizer(model: Mapping[str, Any]) -> Any:
    """Raises ModelError: a model without a name, or another tokenizer than that of the harvest; what the libraries raise."""
    name, text = model.get("name"), model.get("text")
    if not isinstance(name, str):
        raise ModelError("the store does not name the model that it was harvested from")
    if model.get("kind") == OPEN_CLIP:
        return _open_clip_tokenizer(name)
    (tokenizer,) = load_parts(HubModel(name=name, revision=model.get("revision")), "AutoTokenizer")
    expected = cast(Mapping[str, Any], text).get("tokenizer") if isinstance(text, Mapping) else None
    if expected is not None and TextEncoder(tokenizer, 2, pad="longest").identity["tokenizer"] != expected:
        raise ModelError(f"{name}: its tokenizer is not the one of the harvest")
    return tokenizer


def _open_clip_tokenizer(name: str) -> Any:
    # Takes seconds.
    import open_clip

    if name == SCENES:
        from thresher.harvest.pretrain import checkpoint_path

        name = f"local-dir:{checkpoint_path()}"
    found: Any = open_clip.get_tokenizer(name)
    return getattr(found, "tokenizer", found)
