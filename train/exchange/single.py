"""Dictionaries in a single file of tensors (.pt, .pth, .safetensors, .npz), as most of those for vision are released.

Settings come from the file itself, from a JSON beside it, from its name (MSAE), or from whoever imports it: an encoder and a
decoder alone do not say how a code is selected.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from thresher.errors import CheckpointError
from thresher.train.exchange import msae, overcomplete, saelens
from thresher.train.exchange.files import (
    Reading,
    describe_spread,
    read_count,
    read_json,
    read_tensors,
    take,
    to_float32,
    to_plain,
)
from thresher.train.exchange.pickles import Record, collect_state, name_class, read_attributes, read_pickle
from thresher.train.exchange.plain import Kind, Plain, bring_to_unit_norm

SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".npz")
STATES = ("state_dict", "model_state_dict", "model", "autoencoder", "sae", "dictionary")
"""Where a file keeps the tensors, if not at its top."""
SETTINGS = ("cfg", "config", "model_config", "hyper_parameters", "activation_state_dict")
BESIDE = ("cfg.json", "config.json")
GEMMA_SCOPE = "params.npz"
"""The name of Gemma Scope's files: JumpReLU that does not subtract the decoder's bias first (arXiv 2408.05147)."""


class Stated(NamedTuple):
    """What whoever imports a dictionary says of it; None where the files are to say it."""

    kind: Kind | None = None
    k: int | None = None
    subtracts_bias: bool | None = None
    """The decoder's bias is subtracted from a row before it is encoded."""


class _Found(NamedTuple):
    tensors: Mapping[str, Tensor]
    settings: dict[str, Any]
    module: Record | None


def read(path: Path, stated: Stated) -> Reading:
    """Read one file. Raises CheckpointError: nothing that looks like a dictionary, or settings that nobody states."""
    found = _open(path)
    if found.module is not None and "dictionary" in read_attributes(vars(found.module).get("_modules")):
        origin = {"format": "overcomplete", "file": path.name, "class": name_class(found.module)}
        _refuse_stated(path, kind=stated.kind, k=stated.k, bias=stated.subtracts_bias)
        return overcomplete.read_module(found.module, path, origin)
    if {"pre_bias", "latent_bias", "encoder"} <= found.tensors.keys():
        _refuse_stated(path, kind=stated.kind, bias=stated.subtracts_bias)
        return msae.read(found.tensors, found.settings, path, stated.k)
    if {"W_enc", "W_dec"} <= found.tensors.keys():
        return _read_saelens(found, path, stated)
    if {"encoder.weight", "decoder.weight"} <= found.tensors.keys():
        return _read_linear(found, path, stated)
    listed = ", ".join(sorted(found.tensors)[:8]) + (", ..." if len(found.tensors) > 8 else "")
    raise CheckpointError(
        f"{path}: no encoder and decoder under a name that is known (W_enc and W_dec; encoder.weight and decoder.weight; "
        f"encoder, pre_bias and latent_bias); it has {listed or 'no tensors'}. Rename and save them"
    )


def _refuse_stated(path: Path, **stated: object) -> None:
    given = [name for name, value in stated.items() if value is not None]
    if given:
        raise CheckpointError(f"{path}: it says itself how it encodes; leave out what was said of it: {', '.join(given)}")


def _open(path: Path) -> _Found:
    beside = [path.with_name(name) for name in BESIDE if path.with_name(name).is_file()]
    settings = read_json(beside[0]) if beside else {}
    if path.suffix == ".safetensors":
        return _Found(read_tensors(path), settings, None)
    if path.suffix == ".npz":
        return _Found(_read_npz(path), settings, None)
    content = read_pickle(path)
    for name in SETTINGS:
        settings = read_attributes(read_attributes(content).get(name)) | settings
    top = read_attributes(content)
    settings = {name: value for name, value in top.items() if name not in (*STATES, *SETTINGS)} | settings
    module = content if isinstance(content, Record) else next((top[n] for n in STATES if isinstance(top.get(n), Record)), None)
    if module is not None and "_parameters" in vars(module):
        return _Found(to_float32(collect_state(module)), settings | _attributes(module), module)
    inner = next((top[name] for name in STATES if isinstance(top.get(name), Mapping)), top)
    inner = read_attributes(read_attributes(inner).get("state_dict", inner))
    return _Found(to_float32({name: value for name, value in inner.items() if isinstance(value, Tensor)}), settings, None)


def _attributes(module: Record) -> dict[str, Any]:
    """What a pickled module says of itself."""
    named = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    return read_attributes(named.get("cfg")) | to_plain(named)


def _read_npz(path: Path) -> dict[str, Tensor]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return to_float32({name: torch.from_numpy(np.array(arrays[name])) for name in arrays.files})
    except (OSError, ValueError, TypeError, EOFError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); copy the file again") from error


def _read_saelens(found: _Found, path: Path, stated: Stated) -> Reading:
    settings = dict(found.settings)
    if path.name == GEMMA_SCOPE:
        settings = {"architecture": "jumprelu", "apply_b_dec_to_input": False} | settings
    names: dict[Kind, str] = {kind: name for name, kind in saelens.KINDS.items() if name != "gated"}
    if stated.kind is not None:
        settings |= {"architecture": names.get(stated.kind, stated.kind), "activation_fn": "relu", "activation_fn_str": "relu"}
    is_known = "architecture" in settings or "activation_fn_str" in settings or "gated_sae" in settings
    if not is_known:
        raise CheckpointError(f"{path}: it does not say how a code is selected; say --kind (relu, topk, abs_topk, jumprelu)")
    if stated.k is not None:
        settings["k"] = stated.k
    if stated.subtracts_bias is not None:
        settings["apply_b_dec_to_input"] = stated.subtracts_bias
    if not found.settings and path.name != GEMMA_SCOPE:
        _ask_for_bias(found.tensors.get("b_dec"), path, stated)
    return saelens.read_parts(settings, found.tensors, path, {})


def _read_linear(found: _Found, path: Path, stated: Stated) -> Reading:
    """OpenAI's (`pre_bias`, `latent_bias`), dictionary_learning's without its configuration, and the like."""
    tensors = found.tensors
    encoder, dictionary = take(tensors, ["encoder.weight", "decoder.weight"], path)
    bias_name = next((n for n in ("pre_bias", "b_dec", "bias", "decoder_bias", "decoder.bias", "b_pre") if n in tensors), None)
    encoder_bias_name = next((n for n in ("latent_bias", "encoder.bias", "b_enc") if n in tensors), None)
    bias = torch.zeros(encoder.shape[-1]) if bias_name is None else take(tensors, [bias_name], path)[0]
    encoder_bias = torch.zeros(len(encoder)) if encoder_bias_name is None else take(tensors, [encoder_bias_name], path)[0]
    kind = stated.kind or {"TopK": "topk", "ReLU": "relu"}.get(str(found.settings.get("activation")))
    if kind not in ("relu", "topk", "abs_topk", "jumprelu"):
        raise CheckpointError(
            f"{path}: it does not say how a code is selected; say --kind (relu, topk, abs_topk, jumprelu), and --k for topk"
        )
    if bias_name != "pre_bias":
        _ask_for_bias(bias, path, stated)
    if stated.subtracts_bias is False:
        encoder_bias = (encoder_bias.double() + encoder.double() @ bias.double()).float()
    counts = {"k": found.settings.get("k", tensors.get("k")) if stated.k is None else stated.k}
    plain = Plain(
        kind=cast(Kind, kind),
        dictionary=dictionary.T.contiguous(),
        bias=bias,
        encoder=encoder,
        encoder_bias=encoder_bias,
        threshold=take(tensors, ["threshold"], path)[0].clamp_min(0).expand(len(encoder)).clone()
        if kind == "jumprelu"
        else None,
        k=read_count(counts, "k", path) if kind in ("topk", "abs_topk") else None,
        origin={"format": "single-file", "file": path.name, "config": to_plain(found.settings)},
    )
    unit, spread = bring_to_unit_norm(plain)
    return Reading(unit, describe_spread(unit, spread))


def _ask_for_bias(bias: Tensor | None, path: Path, stated: Stated) -> None:
    if stated.subtracts_bias is None and bias is not None and bool(bias.any()):
        raise CheckpointError(
            f"{path}: the decoder has a bias, and nothing says whether it is subtracted from a row before that is encoded; say "
            "--subtract-bias (x_hat = D f(W (x - b) + e) + b) or --keep-bias (D f(W x + e) + b)"
        )
