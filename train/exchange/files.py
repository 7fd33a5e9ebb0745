"""Reading and writing what the formats are made of; pickles are never loaded."""

import io
import json
import pickle
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from thresher.errors import CheckpointError, ConfigError
from thresher.files import write_atomic
from thresher.runs import canonical_json, refuse_foreign
from thresher.train.checkpoint import CONFIG
from thresher.train.exchange.plain import Plain
from thresher.train.log import LOG

NOTE = "thresher.json"
"""Beside the other library's files: what they have no place for."""
NOTE_FORMAT = "thresher-exchange"


def refuse_trained(out: Path) -> None:
    """Raise ConfigError when `out` holds other things, or a training, which a dictionary from elsewhere would replace."""
    if (out / LOG).exists():
        raise ConfigError(
            f"out={str(out)!r}: holds a dictionary that was trained here; nothing was changed. Choose a new folder"
        )
    refuse_foreign(out, [CONFIG])


@contextmanager
def writing(out: Path) -> Generator[None, None, None]:
    """Where a folder cannot be written, say which and what to do. Raises ConfigError."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"out={str(out)!r}: cannot be written ({error.strerror}); choose another folder") from error


class Names(NamedTuple):
    """What other libraries call the place that a dictionary belongs to."""

    model: str
    hook: str

    @property
    def layer(self) -> int | None:
        """The first number between dots in the name of the hook: `blocks.3.hook_resid_post` and `text.3` are in layer 3."""
        numbers = [part for part in self.hook.split(".") if part.isdigit()]
        return int(numbers[0]) if numbers else None


class Reading(NamedTuple):
    """A folder of another library as read."""

    plain: Plain
    lost: Sequence[str]
    """What our architectures do not have; empty where the codes are the same."""


def write_json(path: Path, value: Any) -> None:
    """Write plain values."""
    write_atomic(path, [canonical_json(value)])


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises CheckpointError."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); expected a JSON object") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found a {type(found).__name__}")
    return cast(dict[str, Any], found)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors, in float32 unless they are whole numbers."""
    write_atomic(path, [save({name: value.contiguous() for name, value in tensors.items()}, {"format": "pt"})])


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read safetensors, all floating-point ones as float32. Raises CheckpointError."""
    try:
        return to_float32(load_file(path))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); copy the file again") from error


def write_state_dict(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write what `torch.load(weights_only=True)` reads."""
    buffer = io.BytesIO()
    torch.save({name: value.contiguous() for name, value in tensors.items()}, buffer)
    write_atomic(path, [buffer.getvalue()])


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a state dict of tensors. Raises CheckpointError, also for a pickled module: that would run code."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise CheckpointError(
            f"{path}: no plain state dict; a pickled module is not loaded, because that runs the code in it. Where you trust "
            "it, load it with the library that wrote it and save its state_dict()"
        ) from error
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise CheckpointError(f"{path}: expected a state dict of tensors")
    return to_float32(found)


def take(tensors: Mapping[str, Tensor], names: Sequence[str], path: Path) -> list[Tensor]:
    """The tensors of these names. Raises CheckpointError that says which are missing or not finite, and what is there."""
    missing = [name for name in names if name not in tensors]
    if missing:
        raise CheckpointError(f"{path}: no tensor {', '.join(missing)}; it has {', '.join(sorted(tensors))}")
    wrong = [name for name in names if not bool(torch.isfinite(tensors[name]).all())]
    if wrong:
        raise CheckpointError(
            f"{path}: {', '.join(wrong)}: numbers that are not finite; the dictionary is broken where it was made"
        )
    return [tensors[name] for name in names]


def read_count(settings: Mapping[str, Any], name: str, path: Path) -> int:
    """A whole number above 0 among settings. Raises CheckpointError."""
    value = settings.get(name)
    if isinstance(value, Tensor) and value.ndim == 0:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise CheckpointError(f"{path}: {name}={value!r} among its settings; expected a whole number above 0 (--k gives one)")
    return value


def to_plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the settings that JSON can hold."""
    return {name: value for name, value in settings.items() if _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return type(value) is dict and all(isinstance(name, str) and _is_plain(each) for name, each in value.items())
    if isinstance(value, list | tuple):
        return all(_is_plain(each) for each in value)
    return value is None or isinstance(value, str | int | float | bool)


def write_note(folder: Path, plain: Plain, lost: Sequence[str]) -> None:
    """Write what the format of the folder has no place for."""
    write_json(folder / NOTE, describe(plain, lost))


def describe(plain: Plain, lost: Sequence[str]) -> dict[str, Any]:
    """What a format has no place for, and what was lost on the way, as plain values."""
    return {
        "format": NOTE_FORMAT,
        "version": 1,
        "code_scale": plain.code_scale,
        "kind": plain.kind,
        "rows": plain.rows,
        "lost": list(lost),
        "origin": dict(plain.origin),
    }


def describe_rows(plain: Plain) -> list[str]:
    """What is lost where a format does nothing to rows."""
    if not plain.is_unit:
        return []
    what = "divided by their norms" if plain.rows == "unit" else "less their own means, divided by their norms after that"
    return [f"rows are not brought to unit norm there: give it rows {what}"]


def describe_spread(plain: Plain, spread: float) -> list[str]:
    """What is lost where norms of atoms differ by `spread`, and values with signs were compared before these count."""
    is_other = plain.kind == "abs_topk" and spread > 1e-3
    return ["atoms differ in norm, and it selects before their norms count: other atoms are kept here"] if is_other else []


def read_note(folder: Path) -> dict[str, Any]:
    """What our own export wrote beside the files; empty where the folder is not from us."""
    return read_json(folder / NOTE) if (folder / NOTE).is_file() else {}


def to_float32(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All floating-point tensors in float32."""
    return {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}
