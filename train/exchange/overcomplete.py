"""overcomplete (0.3.0, which has no format of its own).

We write `state_dict.pt`, `config.json` with the class and its arguments, and, where the dictionary has a bias,
`offset.safetensors` with what overcomplete has no place for. Modules that `torch.save` pickled are read as well, as data.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from thresher.errors import CheckpointError
from thresher.train.exchange.files import (
    Names,
    Reading,
    describe_rows,
    describe_spread,
    read_json,
    read_note,
    read_state_dict,
    read_tensors,
    take,
    write_json,
    write_note,
    write_state_dict,
    write_tensors,
)
from thresher.train.exchange.pickles import Record, collect_state, name_class
from thresher.train.exchange.plain import Kind, Plain, bring_to_unit_norm

CONFIG, WEIGHTS, OFFSET = "config.json", "state_dict.pt", "offset.safetensors"
ENCODER, ENCODER_BIAS = "encoder.final_block.0.weight", "encoder.final_block.0.bias"
CLASSES: dict[Kind, str] = {
    "mp": "MpSAE",
    "relu": "SAE",
    "topk": "TopKSAE",
    "batch_topk": "JumpSAE",
    "jumprelu": "JumpSAE",
}
KINDS: Mapping[str, Kind] = {
    "MpSAE": "mp",
    "SAE": "relu",
    "TopKSAE": "topk",
    "RATopKSAE": "topk",
    "JumpSAE": "jumprelu",
    "RAJumpSAE": "jumprelu",
    "BatchTopKSAE": "batch_topk",
}
BATCH_NORM_EPSILON = 1e-5
"""That of torch's BatchNorm1d."""
TINY = 1e-8
"""Added to norms and sums there."""


def find_losses(plain: Plain) -> list[str]:
    """What the library cannot say. Raises CheckpointError for OMP and signed codes: it has non-negative coefficients only."""
    if plain.kind not in CLASSES:
        its_own = "OMPSAE fits" if plain.kind == "omp" else "TopKSAE keeps"
        raise CheckpointError(f"{plain.kind}: overcomplete's {its_own} non-negative coefficients, which gives other codes")
    lost = describe_rows(plain)
    if bool(plain.bias.any()):
        lost.append(
            f"it has no bias: give it rows less the `offset` in {OFFSET}, and add that to reconstructions"
            if plain.kind == "mp"
            else f"its decoder has no bias: add the `offset` in {OFFSET} to reconstructions"
        )
    if plain.kind == "mp" and plain.sign != "signed":
        lost.append(f"sign={plain.sign}: MpSAE picks the largest inner product also where it is negative (`signed`)")
    if plain.residual_tol is not None:
        lost.append(f"residual_tol={plain.residual_tol}: MpSAE always takes k steps")
    return lost


def write(plain: Plain, folder: Path, names: Names, lost: Sequence[str]) -> None:
    """Write the state dict, how to build the module, and the offset if there is one."""
    arguments: dict[str, Any] = {"input_shape": plain.d_in, "nb_concepts": plain.d_sae}
    tensors = {"dictionary._weights": plain.dictionary, "dictionary.multiplier": torch.tensor(0.0)}
    if plain.kind == "mp":
        arguments["k"] = plain.count_per_row()
    else:
        encoder, encoder_bias = plain.linear()
        # Rows are given as they are: W (x - b) + e = W x + (e - W b)
        shifted = encoder_bias.double() - encoder.double() @ plain.bias.double()
        tensors |= {ENCODER: encoder, ENCODER_BIAS: shifted.float()}
    if plain.kind == "topk":
        arguments["top_k"] = plain.count_per_row()
    if CLASSES[plain.kind] == "JumpSAE":
        tensors["thresholds"] = plain.thresholds().log()
    write_state_dict(folder / WEIGHTS, tensors)
    write_json(folder / CONFIG, {"library": "overcomplete", "class": CLASSES[plain.kind], "arguments": arguments})
    if bool(plain.bias.any()):
        write_tensors(folder / OFFSET, {"offset": plain.bias})
    write_note(folder, plain, lost)


def read(folder: Path) -> Reading:
    """Read a folder. Raises CheckpointError: another class, an encoder that is more than one linear layer."""
    config, path, note = read_json(folder / CONFIG), folder / WEIGHTS, read_note(folder)
    name, arguments = str(config.get("class")), config.get("arguments")
    if name not in KINDS or not isinstance(arguments, dict):
        raise CheckpointError(
            f"{folder / CONFIG}: class {name!r}; expected one of {', '.join(KINDS)}, and its `arguments`, because "
            "a state dict does not hold k"
        )
    tensors = read_state_dict(path)
    bias = read_tensors(folder / OFFSET)["offset"] if (folder / OFFSET).is_file() else None
    origin = note.get("origin") or {"format": "overcomplete", "config": config}
    return _read_parts(_Parts(name, arguments, tensors, path, bias, origin, note))


def read_module(module: Record, path: Path, origin: Mapping[str, Any]) -> Reading:
    """Read a module that was pickled as a whole. Raises CheckpointError for a class that we do not have."""
    name, attributes = type(module).__name__, vars(module)
    if name not in KINDS:
        raise CheckpointError(
            f"{path}: a pickled {name_class(module)} has no counterpart here; of overcomplete {', '.join(KINDS)} have"
        )
    inner = vars(attributes["_modules"]["dictionary"])
    arguments = {known: attributes.get(known) for known in ("k", "top_k", "running_threshold")}
    arguments |= {"delta": inner.get("delta"), "normalization": getattr(inner.get("normalization"), "__name__", "normalize_l2")}
    tensors = {known: value.float() if value.is_floating_point() else value for known, value in collect_state(module).items()}
    return _read_parts(_Parts(name, arguments, tensors, path, None, origin, {}))


class _Parts(NamedTuple):
    """A dictionary of overcomplete, from wherever."""

    name: str
    arguments: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    path: Path
    bias: Tensor | None
    origin: Mapping[str, Any]
    note: Mapping[str, Any]


def _read_parts(parts: _Parts) -> Reading:
    kind, dictionary = KINDS[parts.name], _read_dictionary(parts)
    plain = Plain(
        kind=kind,
        dictionary=dictionary,
        bias=torch.zeros(dictionary.shape[1]) if parts.bias is None else parts.bias,
        k=parts.arguments.get("k", 1) if kind == "mp" else parts.arguments.get("top_k"),
        sign="signed",
        code_scale=float(parts.note.get("code_scale", 1.0)),
        rows=parts.note.get("rows", "as_is"),
        origin=parts.origin,
    )
    if kind == "mp":
        unit, spread = bring_to_unit_norm(plain)
        return Reading(
            unit, ["dictionary.multiplier is not 0: the steps overshoot, ours do not"] if spread or unit is not plain else []
        )
    unit, spread = bring_to_unit_norm(_read_encoder(plain, parts))
    return Reading(unit, describe_spread(unit, spread))


def _read_dictionary(parts: _Parts) -> Tensor:
    """The atoms that `get_dictionary` gives there; of a relaxed archetypal one those of arXiv 2502.12892, equation 4."""
    tensors, path = parts.tensors, parts.path
    multiplier = take(tensors, ["dictionary.multiplier"], path)[0].double().exp()
    if "dictionary.C" in tensors:
        points, weights, relax = (
            each.double() for each in take(tensors, [f"dictionary.{n}" for n in ("C", "W", "Relax")], path)
        )
        weights = weights.relu() / (weights.relu().sum(1, keepdim=True) + TINY)
        if (delta := parts.arguments.get("delta", 1.0)) is not None:
            relax = relax * (float(delta) / torch.linalg.vector_norm(relax, dim=1, keepdim=True).clamp_min(1e-30)).clamp(max=1)
        return ((weights @ points + relax) * multiplier).float()
    weights = take(tensors, ["dictionary._weights"], path)[0].double()
    norms = torch.linalg.vector_norm(weights, dim=1, keepdim=True)
    usual = str(parts.arguments.get("normalization", "normalize_l2"))
    # overcomplete normalises with each use (`l2` by default); what is stored may be off.
    divisors = {"normalize_l2": norms, "normalize_max_l2": norms.max(), "normalize_identity": torch.ones_like(norms)}
    if usual not in divisors:
        raise CheckpointError(f"{path}: a dictionary with {usual} has no counterpart here; it can be {', '.join(divisors)}")
    return (weights / divisors[usual].clamp_min(1e-30) * multiplier).float()


def _read_encoder(plain: Plain, parts: _Parts) -> Plain:
    encoder, encoder_bias = _read_linear(plain, parts)
    threshold = None
    if plain.kind == "jumprelu":
        threshold = take(parts.tensors, ["thresholds"], parts.path)[0].exp()
    if plain.kind == "batch_topk":
        running = parts.arguments.get("running_threshold")
        if running is None:
            raise CheckpointError(
                f"{parts.path}: a BatchTopKSAE without running_threshold, which its state dict does not hold: its codes depend "
                "on what else is in a batch; give the module as torch.save(model) wrote it after training"
            )
        # Active at the threshold there, above it here.
        lowest = torch.nextafter(torch.as_tensor(running).float().reshape(()), torch.tensor(-torch.inf)).clamp_min(0)
        threshold = lowest.expand(plain.d_sae).clone()
    shifted = (encoder_bias.double() + encoder.double() @ plain.bias.double()).float()
    return dataclasses.replace(plain, encoder=encoder, encoder_bias=shifted, threshold=threshold)


def _read_linear(plain: Plain, parts: _Parts) -> tuple[Tensor, Tensor]:
    """The encoder as one linear layer: MLPEncoder without blocks, its batch norm folded in, or TieableEncoder."""
    tensors, path = parts.tensors, parts.path
    batch_norm = [f"encoder.final_block.1.{name}" for name in ("weight", "bias", "running_mean", "running_var")]
    own = {ENCODER, ENCODER_BIAS, "encoder.weight", "encoder.bias", *batch_norm, "encoder.final_block.1.num_batches_tracked"}
    others = [name for name in tensors if name.startswith("encoder.") and name not in own and ".tied_to." not in name]
    if others:
        raise CheckpointError(f"{path}: an encoder with {', '.join(others)}; only one linear layer has a counterpart here")
    if ENCODER not in tensors:
        encoder = tensors.get("encoder.weight", plain.dictionary)
        return encoder, tensors.get("encoder.bias", torch.zeros(plain.d_sae))
    encoder, encoder_bias = (each.double() for each in take(tensors, [ENCODER, ENCODER_BIAS], path))
    if batch_norm[0] in tensors:
        gain, shift, mean, variance = (each.double() for each in take(tensors, batch_norm, path))
        gain = gain / (variance + BATCH_NORM_EPSILON).sqrt()
        encoder, encoder_bias = encoder * gain[:, None], (encoder_bias - mean) * gain + shift
    return encoder.float(), encoder_bias.float()
