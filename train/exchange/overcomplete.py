"""overcomplete state dicts (overcomplete 0.3.0, which has no format of its own): `state_dict.pt`, `config.json` with the class
and its arguments, and, where the dictionary has a bias, `offset.safetensors` with what overcomplete has no place for."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from thresher.errors import CheckpointError
from thresher.train.exchange.files import (
    Names,
    Reading,
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
KINDS: Mapping[str, Kind] = {"MpSAE": "mp", "SAE": "relu", "TopKSAE": "topk", "JumpSAE": "jumprelu"}


def find_losses(plain: Plain) -> list[str]:
    """What the library cannot say. Raises CheckpointError for OMP and signed codes: it has non-negative coefficients only."""
    if plain.kind not in CLASSES:
        its_own = "OMPSAE fits" if plain.kind == "omp" else "TopKSAE keeps"
        raise CheckpointError(f"{plain.kind}: overcomplete's {its_own} non-negative coefficients, which gives other codes")
    lost = ["rows are not brought to unit norm there: give it rows divided by their norms"] if plain.is_unit else []
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
    tensors, kind = read_state_dict(path), KINDS[name]
    weights, multiplier = take(tensors, ["dictionary._weights", "dictionary.multiplier"], path)
    # overcomplete normalises with each use (`l2`, its default); what is stored may be off.
    dictionary = torch.nn.functional.normalize(weights.double(), dim=1) * multiplier.double().exp()
    bias = read_tensors(folder / OFFSET)["offset"] if (folder / OFFSET).is_file() else torch.zeros(weights.shape[1])
    plain = Plain(
        kind=kind,
        dictionary=dictionary.float(),
        bias=bias,
        k=arguments.get("k", 1) if kind == "mp" else arguments.get("top_k"),
        sign="signed",
        code_scale=float(note.get("code_scale", 1.0)),
        is_unit=note.get("rows") == "unit",
        origin=note.get("origin") or {"format": "overcomplete", "config": config},
    )
    if kind == "mp":
        unit, spread = bring_to_unit_norm(plain)
        return Reading(
            unit, ["dictionary.multiplier is not 0: the steps overshoot, ours do not"] if spread or unit is not plain else []
        )
    return Reading(bring_to_unit_norm(_read_encoder(plain, tensors, path))[0], [])


def _read_encoder(plain: Plain, tensors: dict[str, Tensor], path: Path) -> Plain:
    others = [name for name in tensors if name.startswith("encoder.") and name not in (ENCODER, ENCODER_BIAS)]
    if others:
        raise CheckpointError(f"{path}: an encoder with {', '.join(others)}; only one linear layer has a counterpart here")
    encoder, encoder_bias = take(tensors, [ENCODER, ENCODER_BIAS], path)
    shifted = (encoder_bias.double() + encoder.double() @ plain.bias.double()).float()
    threshold = take(tensors, ["thresholds"], path)[0].exp() if plain.kind == "jumprelu" else None
    return dataclasses.replace(plain, encoder=encoder, encoder_bias=shifted, threshold=threshold)
