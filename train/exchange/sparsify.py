"""sparsify folders of one hook point: `cfg.json` and `sae.safetensors` (eai-sparsify 1.3.3, `SparseCoder.load_from_disk`)."""

from collections.abc import Sequence
from pathlib import Path

from thresher.errors import CheckpointError
from thresher.train.exchange.files import (
    Names,
    Reading,
    describe_rows,
    describe_spread,
    read_json,
    read_note,
    read_tensors,
    take,
    write_json,
    write_note,
    write_tensors,
)
from thresher.train.exchange.plain import Plain, bring_to_unit_norm

CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"


def find_losses(plain: Plain) -> list[str]:
    """What the format cannot say. Raises CheckpointError: it has TopK only."""
    if plain.kind not in ("topk", "batch_topk"):
        raise CheckpointError(f"{plain.kind}: sparsify has TopK encoders only; export to saelens or saebench")
    lost = describe_rows(plain)
    if plain.kind == "batch_topk":
        lost.append(f"the threshold: every row would get its {plain.count_per_row()} largest atoms, not those above it")
    return lost


def write(plain: Plain, folder: Path, names: Names, lost: Sequence[str]) -> None:
    """Write the folder. It has no place for names, these go into our note."""
    encoder, encoder_bias = plain.linear()
    tensors = {"encoder.weight": encoder, "encoder.bias": encoder_bias, "W_dec": plain.dictionary, "b_dec": plain.bias}
    write_tensors(folder / WEIGHTS, tensors)
    config = {
        "activation": "topk",
        "expansion_factor": max(plain.d_sae // plain.d_in, 1),
        "normalize_decoder": True,
        "num_latents": plain.d_sae,
        "k": plain.count_per_row(),
        "multi_topk": False,
        "skip_connection": False,
        "transcode": False,
        "d_in": plain.d_in,
    }
    write_json(folder / CONFIG, config)
    write_note(folder, plain, lost)


def read(folder: Path) -> Reading:
    """Read a folder. Raises CheckpointError for transcoders, skip connections and GroupMax."""
    config, path, note = read_json(folder / CONFIG), folder / WEIGHTS, read_note(folder)
    for name, usual in {"activation": "topk", "skip_connection": False, "transcode": False}.items():
        if config.get(name, usual) != usual:
            raise CheckpointError(f"{folder}: {name}={config[name]!r} has no counterpart here; expected {usual!r}")
    names = ["encoder.weight", "encoder.bias", "W_dec", "b_dec"]
    encoder, encoder_bias, dictionary, bias = take(read_tensors(path), names, path)
    plain, spread = bring_to_unit_norm(
        Plain(
            kind="topk",
            dictionary=dictionary,
            bias=bias,
            encoder=encoder,
            encoder_bias=encoder_bias,
            k=int(config["k"]),
            code_scale=float(note.get("code_scale", 1.0)),
            rows=note.get("rows", "as_is"),
            origin=note.get("origin") or {"format": "sparsify", "config": config},
        )
    )
    return Reading(plain, describe_spread(plain, spread))
