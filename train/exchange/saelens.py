"""SAELens folders: `cfg.json` and `sae_weights.safetensors` (sae-lens 6.54.12, `SAE.save_inference_model`)."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from thresher.errors import CheckpointError
from thresher.train.exchange.files import (
    Names,
    Reading,
    describe,
    read_json,
    read_note,
    read_tensors,
    take,
    write_json,
    write_note,
    write_tensors,
)
from thresher.train.exchange.plain import Kind, Plain, bring_to_unit_norm, join_gate, rescale

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
VERSION = "6.54.12"
"""The version whose format this is; without one SAELens takes the file for one from before 6.0."""
ARCHITECTURES: dict[Kind, str] = {
    "mp": "matching_pursuit",
    "omp": "matching_pursuit",
    "relu": "standard",
    "topk": "topk",
    "abs_topk": "abstopk",
    "batch_topk": "jumprelu",
    "jumprelu": "jumprelu",
}


def find_losses(plain: Plain) -> list[str]:
    """What a SAELens folder cannot say."""
    lost: list[str] = []
    if plain.kind == "omp":
        lost.append("coefficients would be those of the single steps, not the least-squares fit on the atoms picked")
    if plain.kind in ("mp", "omp") and plain.sign != "relu":
        lost.append(f"sign={plain.sign}: SAELens picks positive inner products only, negative coefficients would be missing")
    if plain.residual_tol is not None:
        lost.append(f"residual_tol={plain.residual_tol}: SAELens stops at an absolute norm, rows would take all k steps")
    return lost


def write(plain: Plain, folder: Path, names: Names, lost: Sequence[str]) -> None:
    """Write the folder. Rows of unit norm are SAELens' `constant_norm_rescale` with another length: codes are the same,
    reconstructions there get the length of the row back."""
    there = rescale(plain, math.sqrt(plain.d_in)) if plain.is_unit else plain
    architecture = ARCHITECTURES[plain.kind]
    tensors = {"W_dec": there.dictionary, "b_dec": there.bias}
    own: dict[str, Any] = {}
    if architecture == "matching_pursuit":
        # Their check of a repeated support and of the residual would end rows before k steps.
        own = {"max_iterations": there.count_per_row(), "residual_threshold": 0.0, "stop_on_duplicate_support": False}
    else:
        encoder, encoder_bias = there.linear()
        tensors |= {"W_enc": encoder.T, "b_enc": encoder_bias}
    if architecture in ("topk", "abstopk"):
        own = {"k": there.count_per_row(), "rescale_acts_by_decoder_norm": False}
    if architecture == "jumprelu":
        tensors["threshold"] = there.thresholds()
    write_tensors(folder / WEIGHTS, tensors)
    config = {
        "architecture": architecture,
        "d_in": plain.d_in,
        "d_sae": plain.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "constant_norm_rescale" if plain.is_unit else "none",
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": VERSION,
            "sae_lens_training_version": None,
            "model_name": names.model,
            "hook_name": names.hook,
            "hook_head_index": None,
            "training_architecture": plain.origin.get("architecture", {}).get("kind"),
            "thresher": describe(there, lost),
        },
    }
    write_json(folder / CONFIG, config | own)
    write_note(folder, there, lost)


def read(folder: Path) -> Reading:
    """Read a folder. Raises CheckpointError for an architecture or a normalisation that we do not have."""
    config, path = read_json(folder / CONFIG), folder / WEIGHTS
    tensors, note = read_tensors(path), read_note(folder)
    kinds: dict[str, Kind] = {
        "matching_pursuit": "mp",
        "standard": "relu",
        "topk": "topk",
        "abstopk": "abs_topk",
        "jumprelu": "jumprelu",
        "gated": "jumprelu",
    }
    kind = kinds.get(str(config.get("architecture")))
    normalization = config.get("normalize_activations", "none")
    if kind is None:
        raise CheckpointError(
            f"{folder}: architecture {config.get('architecture')!r} has no counterpart here; it can be {', '.join(kinds)}"
        )
    if normalization not in ("none", "constant_norm_rescale"):
        raise CheckpointError(
            f"{folder}: normalize_activations={normalization!r} has no counterpart here: codes would differ on every row; fold "
            "it with SAELens first (fold_activation_norm_scaling_factor, fold_activation_whitening)"
        )
    dictionary, bias = take(tensors, ["W_dec", "b_dec"], path)
    plain = Plain(
        kind=kind,
        dictionary=dictionary,
        bias=bias,
        is_unit=normalization == "constant_norm_rescale",
        code_scale=float(note.get("code_scale", 1.0)),
        origin=note.get("origin") or {"format": "saelens", "config": config},
    )
    plain, lost = _read_pursuit(plain, config) if kind == "mp" else _read_linear(plain, config, folder)
    return Reading(rescale(plain, 1 / math.sqrt(plain.d_in)) if plain.is_unit else plain, lost)


def _read_pursuit(plain: Plain, config: dict[str, Any]) -> tuple[Plain, list[str]]:
    lost: list[str] = []
    plain, spread = bring_to_unit_norm(dataclasses.replace(plain, k=config.get("max_iterations") or plain.d_in))
    if spread > 0:
        lost.append("the atoms do not have unit norm: a pursuit with atoms brought to it takes other steps")
    if config.get("residual_threshold", 1e-2) > 0:
        lost.append(f"residual_threshold={config.get('residual_threshold', 1e-2)}, an absolute norm: rows take all steps here")
    if config.get("stop_on_duplicate_support", True):
        lost.append("stop_on_duplicate_support: rows go on here when an atom is picked again")
    if not config.get("apply_b_dec_to_input", True):
        plain = dataclasses.replace(plain, bias=torch.zeros_like(plain.bias))
    return plain, lost


def _read_linear(plain: Plain, config: dict[str, Any], folder: Path) -> tuple[Plain, list[str]]:
    tensors, path = read_tensors(folder / WEIGHTS), folder / WEIGHTS
    is_gated = config["architecture"] == "gated"
    encoder, encoder_bias = take(tensors, ["W_enc", "b_gate" if is_gated else "b_enc"], path)
    if not config.get("apply_b_dec_to_input", True):
        # W (x - b) + (W b + e) = W x + e
        encoder_bias = (encoder_bias.double() + plain.bias.double() @ encoder.double()).float()
    plain = dataclasses.replace(plain, encoder=encoder.T.contiguous(), encoder_bias=encoder_bias)
    if is_gated:
        joined = join_gate(encoder.T, encoder_bias, *take(tensors, ["r_mag", "b_mag"], path))
        plain = dataclasses.replace(plain, encoder=joined[0].contiguous(), encoder_bias=joined[1], threshold=joined[2])
    elif plain.kind == "jumprelu":
        plain = dataclasses.replace(plain, threshold=take(tensors, ["threshold"], path)[0].clamp_min(0))
    if plain.kind not in ("topk", "abs_topk"):
        return bring_to_unit_norm(plain)[0], []
    plain, spread = bring_to_unit_norm(dataclasses.replace(plain, k=config["k"]))
    if spread > 1e-3 and not config.get("rescale_acts_by_decoder_norm", False):
        return plain, ["atoms differ in norm, and SAELens selects before their norms count: other atoms are kept here"]
    return plain, []
