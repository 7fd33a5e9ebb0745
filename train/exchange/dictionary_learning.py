"""dictionary_learning folders: `config.json` and the state dict `ae.pt` (dictionary-learning 0.1.0, `load_dictionary`)."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from thresher.errors import CheckpointError
from thresher.train.exchange.files import (
    Names,
    Reading,
    describe_rows,
    read_count,
    read_json,
    read_note,
    read_state_dict,
    take,
    write_json,
    write_note,
    write_state_dict,
)
from thresher.train.exchange.plain import Kind, Plain, bring_to_unit_norm, join_gate

CONFIG, WEIGHTS, GATE = "config.json", "ae.pt", "gate_bias"
CLASSES: dict[Kind, str] = {
    "relu": "AutoEncoder",
    "topk": "AutoEncoderTopK",
    "batch_topk": "BatchTopKSAE",
    "jumprelu": "JumpReluAutoEncoder",
}
KINDS: Mapping[str, Kind] = {
    **{name: kind for kind, name in CLASSES.items()},
    "AutoEncoderNew": "relu",
    "GatedAutoEncoder": "jumprelu",
    "MatryoshkaBatchTopKSAE": "batch_topk",
    "MatroyshkaBatchTopKSAE": "batch_topk",
}
"""Classes that we read; the misspelt one is in its first versions, and in what was made with them."""


def find_losses(plain: Plain) -> list[str]:
    """What the format cannot say. Raises CheckpointError for pursuits and signed codes: it has no class that does the like."""
    if plain.kind not in CLASSES:
        missing = "no negative codes" if plain.kind == "abs_topk" else "no pursuit"
        raise CheckpointError(
            f"{plain.kind}: dictionary_learning has {missing}, and no class of it gives codes that come near; export to "
            "saelens or saebench"
        )
    lost = describe_rows(plain)
    if plain.kind == "batch_topk" and plain.k != plain.count_per_row():
        # Only its training and `use_threshold=False` look at k; codes by the threshold stay exact.
        lost.append(f"k={plain.k} atoms per row on average in training: it knows whole numbers, {plain.count_per_row()}")
    return lost


def write(plain: Plain, folder: Path, names: Names, lost: Sequence[str]) -> None:
    """Write the folder; `buffer.ctx_len`, `trainer.layer` and `trainer.lm_name` are what SAELens and SAEBench ask for."""
    encoder, encoder_bias = plain.linear()
    trainer: dict[str, Any] = {
        "trainer_class": None,
        "dict_class": CLASSES[plain.kind],
        "activation_dim": plain.d_in,
        "dict_size": plain.d_sae,
        "device": "cpu",
        "seed": plain.origin.get("seed"),
        "layer": names.layer,
        "lm_name": names.model,
        "submodule_name": names.hook,
    }
    if plain.kind in ("topk", "batch_topk"):
        trainer["k"] = plain.count_per_row()
    write_state_dict(folder / WEIGHTS, _name_tensors(plain, encoder, encoder_bias))
    write_json(folder / CONFIG, {"trainer": trainer, "buffer": {"ctx_len": None, "d_submodule": plain.d_in}})
    write_note(folder, plain, lost)


def _name_tensors(plain: Plain, encoder: Tensor, encoder_bias: Tensor) -> dict[str, Tensor]:
    if plain.kind == "jumprelu":
        # It does not subtract b_dec first: W (x - b) + e = W x + (e - W b)
        shifted = encoder_bias.double() - encoder.double() @ plain.bias.double()
        return {
            "W_enc": encoder.T,
            "b_enc": shifted.float(),
            "W_dec": plain.dictionary,
            "b_dec": plain.bias,
            "threshold": plain.thresholds(),
        }
    shared = {"encoder.weight": encoder, "encoder.bias": encoder_bias, "decoder.weight": plain.dictionary.T}
    if plain.kind == "relu":
        return shared | {"bias": plain.bias}
    threshold = plain.thresholds()[0] if plain.kind == "batch_topk" else torch.tensor(-1.0)
    k = torch.tensor(plain.count_per_row(), dtype=torch.int32)
    return shared | {"b_dec": plain.bias, "k": k, "threshold": threshold}


def read(folder: Path) -> Reading:
    """Read a folder. Raises CheckpointError for a class that we do not have."""
    trainer, path = read_json(folder / CONFIG).get("trainer"), folder / WEIGHTS
    if not isinstance(trainer, dict):
        raise CheckpointError(f"{folder / CONFIG}: no `trainer` in it; expected what dictionary_learning writes")
    name = str(trainer.get("dict_class"))
    if name not in KINDS:
        raise CheckpointError(f"{folder}: dict_class {name!r} has no counterpart here; it can be {', '.join(KINDS)}")
    tensors, note = read_state_dict(path), read_note(folder)
    plain = _read_linear(name, tensors, path)
    settings = cast(dict[str, Any], trainer)
    counts = {"k": tensors.get("k") if settings.get("k") is None else settings["k"]}
    plain = dataclasses.replace(
        plain,
        k=read_count(counts, "k", path) if plain.kind in ("topk", "batch_topk") else None,
        code_scale=float(note.get("code_scale", 1.0)),
        rows=note.get("rows", "as_is"),
        origin=note.get("origin") or {"format": "dictionary-learning", "config": settings},
    )
    return Reading(bring_to_unit_norm(plain)[0], [])


def _read_linear(name: str, tensors: Mapping[str, Tensor], path: Path) -> Plain:
    kind = KINDS[name]
    if "W_enc" in tensors:
        encoder, encoder_bias, dictionary, bias = take(tensors, ["W_enc", "b_enc", "W_dec", "b_dec"], path)
        encoder = encoder.T
    else:
        encoder, dictionary = take(tensors, ["encoder.weight", "decoder.weight"], path)
        dictionary = dictionary.T
        biases = {"AutoEncoder": "bias", "AutoEncoderNew": "decoder.bias", "GatedAutoEncoder": "decoder_bias"}
        bias, encoder_bias = take(
            tensors, [biases.get(name, "b_dec"), GATE if name == "GatedAutoEncoder" else "encoder.bias"], path
        )
    threshold = None
    if name == "GatedAutoEncoder":
        encoder, encoder_bias, threshold = join_gate(encoder, encoder_bias, *take(tensors, ["r_mag", "mag_bias"], path))
    elif kind in ("batch_topk", "jumprelu"):
        threshold = take(tensors, ["threshold"], path)[0].clamp_min(0).expand(len(encoder_bias)).clone()
    if name in ("JumpReluAutoEncoder", "AutoEncoderNew"):
        # These do not subtract the decoder's bias first: W x + e = W (x - b) + (e + W b)
        encoder_bias = (encoder_bias.double() + encoder.double() @ bias.double()).float()
    return Plain(
        kind=kind,
        dictionary=dictionary.contiguous(),
        bias=bias,
        encoder=encoder.contiguous(),
        encoder_bias=encoder_bias,
        threshold=threshold,
    )
