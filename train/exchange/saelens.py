"""SAELens folders: `cfg.json` and `sae_weights.safetensors` (sae-lens 6.54.12, `SAE.save_inference_model`).

What has grown out of its first versions (ViT-Prisma, PatchSAE) has the same tensors and settings in other files.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from thresher.errors import CheckpointError
from thresher.train.exchange.files import (
    Names,
    Reading,
    describe,
    describe_spread,
    read_count,
    read_json,
    read_note,
    read_tensors,
    take,
    to_plain,
    write_json,
    write_note,
    write_tensors,
)
from thresher.train.exchange.plain import Kind, Plain, RowShape, bring_to_unit_norm, join_gate, rescale

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
ROWS: dict[str, RowShape] = {"none": "as_is", "constant_norm_rescale": "unit", "layer_norm": "layer"}
"""What SAELens does to each row, up to its length."""
KINDS: dict[str, Kind] = {
    "matching_pursuit": "mp",
    "standard": "relu",
    "topk": "topk",
    "abstopk": "abs_topk",
    "jumprelu": "jumprelu",
    "gated": "jumprelu",
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
    """Write the folder. Rows of unit norm are SAELens' `constant_norm_rescale` (less their means: `layer_norm`) with another
    length: codes are the same, reconstructions there get the length (and the mean) of the row back."""
    there = rescale(plain, _norm_of_rows(plain))
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
        "normalize_activations": {rows: name for name, rows in ROWS.items()}[plain.rows],
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
    return read_parts(read_json(folder / CONFIG), read_tensors(folder / WEIGHTS), folder / WEIGHTS, read_note(folder))


def read_parts(settings: Mapping[str, Any], tensors: Mapping[str, Tensor], path: Path, note: Mapping[str, Any]) -> Reading:
    """Read settings and tensors, of any version. `path` is where they come from. Raises CheckpointError as `read`."""
    config = modernize(settings, path)
    architecture, normalization = str(config.get("architecture")), config.get("normalize_activations", "none")
    if architecture not in KINDS:
        raise CheckpointError(f"{path}: architecture {architecture!r} has no counterpart here; it can be {', '.join(KINDS)}")
    if normalization not in ROWS:
        raise CheckpointError(
            f"{path}: normalize_activations={normalization!r} has no counterpart here: codes would differ on every row; fold "
            "it with SAELens first (fold_activation_norm_scaling_factor, fold_activation_whitening)"
        )
    dictionary, bias = take(tensors, ["W_dec", "b_dec"], path)
    plain = Plain(
        kind=KINDS[architecture],
        dictionary=_finetune(dictionary, tensors, config, path),
        bias=bias,
        rows=ROWS[normalization],
        code_scale=float(note.get("code_scale", 1.0)),
        origin=note.get("origin") or {"format": "saelens", "config": to_plain(config)},
    )
    plain, lost = _read_pursuit(plain, config) if plain.kind == "mp" else _read_linear(plain, config, tensors, path)
    return Reading(rescale(plain, 1 / _norm_of_rows(plain)), lost)


def modernize(settings: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Settings under the names and with the defaults of SAELens 6, from those of before. Raises CheckpointError."""
    old = {"hook_point": "hook_name", "hook_point_head_index": "hook_head_index", "activation_fn_str": "activation_fn"}
    config = {old.get(name, name): value for name, value in settings.items()}
    config["architecture"] = config.get("architecture") or "standard"
    if (activation := config.get("activation_fn", "relu")) == "topk" and config["architecture"] == "standard":
        k = (config.get("activation_fn_kwargs") or {}).get("k") or config.get("k")
        if k is None:
            raise CheckpointError(f"{path}: activation function topk, but no activation_fn_kwargs.k; say it with --k")
        config |= {"architecture": "topk", "k": int(k)}
    elif activation not in ("relu", "topk", "jumprelu"):
        raise CheckpointError(f"{path}: activation function {activation!r} has no counterpart here; it can be relu or topk")
    normalization = config.get("normalize_activations")
    if isinstance(normalization, bool) or normalization is None:
        config["normalize_activations"] = "expected_average_only_in" if normalization else "none"
    return config


def _norm_of_rows(plain: Plain) -> float:
    """What SAELens scales a row of unit norm to."""
    return {"as_is": 1.0, "unit": math.sqrt(plain.d_in), "layer": math.sqrt(max(plain.d_in - 1, 1))}[plain.rows]


def _finetune(dictionary: Tensor, tensors: Mapping[str, Tensor], config: Mapping[str, Any], path: Path) -> Tensor:
    """Atoms times the factors that versions before 6 could fine-tune; they scale the codes on their way to the decoder."""
    factor = tensors.get("scaling_factor")
    if factor is None or bool((factor == 1).all()):
        return dictionary
    if not config.get("finetuning_scaling_factor"):
        raise CheckpointError(f"{path}: scaling_factor is not 1, but finetuning_scaling_factor is off: which one counts?")
    return dictionary * factor[:, None]


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


def _read_linear(plain: Plain, config: Mapping[str, Any], tensors: Mapping[str, Tensor], path: Path) -> tuple[Plain, list[str]]:
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
    plain, spread = bring_to_unit_norm(dataclasses.replace(plain, k=read_count(config, "k", path)))
    if config.get("rescale_acts_by_decoder_norm", False):
        return dataclasses.replace(plain, weights=None), []
    return plain, describe_spread(plain, spread)
