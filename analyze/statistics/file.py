"""Sums on disk: `stats.safetensors`, and beside it what they were made from."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from thresher.analyze.statistics.features import FeatureSums
from thresher.analyze.statistics.paired import Grouped, PairSums, Powers
from thresher.errors import AnalysisError
from thresher.files import write_atomic
from thresher.runs import canonical_json

SUMS, ORIGIN = "stats.safetensors", "stats.json"
FORMAT, VERSION = "thresher-stats", 1


def save_sums(folder: Path, features: Mapping[str, FeatureSums], pairs: PairSums | None, origin: Mapping[str, Any]) -> None:
    """Write the sums of each modality, and of the pairs if there are any, and their `origin` (store, SAE, split, seed)."""
    arrays = {f"{name}.{field}": value for name, sums in features.items() for field, value in sums._asdict().items()}
    if pairs is not None:
        arrays |= {f"pair.{name}": value for name, value in _flatten(pairs).items()}
    write_atomic(folder / SUMS, [save({name: np.ascontiguousarray(value) for name, value in arrays.items()})])
    described = {"format": FORMAT, "version": VERSION, "modalities": list(features), "origin": dict(origin)}
    write_atomic(folder / ORIGIN, [canonical_json(described)])


def load_sums(folder: Path, origin: Mapping[str, Any]) -> tuple[dict[str, FeatureSums], PairSums | None]:
    """Read the sums if they are of this `origin`.

    Raises AnalysisError: not there, damaged, or made from something else. Sums of another split or of deranged pairs have the
    same shape as the right ones, so nothing but their origin can tell.
    """
    path = folder / ORIGIN
    try:
        described = json.loads(path.read_bytes())
        arrays = load_file(folder / SUMS)
        if not isinstance(described, dict) or (described.get("format"), described.get("version")) != (FORMAT, VERSION):
            raise AnalysisError(f"{path}: not sums of this version; run the analysis again")
        _check_origin(path, described["origin"], json.loads(canonical_json(dict(origin))))
        features = {name: _read_features(arrays, name) for name in described["modalities"]}
        return features, _read_pairs(arrays) if "pair.n_pairs" in arrays else None
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise AnalysisError(f"{folder}: {SUMS} and {ORIGIN} cannot be read ({error}); run the analysis again") from error


def _check_origin(path: Path, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    wrong = [name for name in sorted({*found, *expected}) if found.get(name) != expected.get(name)]
    if wrong:
        shown = ", ".join(f"{name} {found.get(name)!r} instead of {expected.get(name)!r}" for name in wrong)
        raise AnalysisError(f"{path}: sums of something else ({shown}); delete the folder and run the analysis again")


def _flatten(pairs: PairSums) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in pairs._asdict().items():
        is_nested = isinstance(value, Powers | Grouped)
        flat |= {f"{name}.{part}": one for part, one in value._asdict().items()} if is_nested else {name: value}
    return flat


def _read_features(arrays: Mapping[str, np.ndarray], name: str) -> FeatureSums:
    fields: dict[str, Any] = {field: arrays[f"{name}.{field}"] for field in FeatureSums._fields}
    fields["n_rows"] = int(fields["n_rows"].item())
    return FeatureSums(**fields)


def _read_pairs(arrays: Mapping[str, np.ndarray]) -> PairSums:
    nested = {"image_powers": Powers, "text_powers": Powers, "groups": Grouped}
    fields: dict[str, Any] = {}
    for name in PairSums._fields:
        kind = nested.get(name)
        whole = arrays.get(f"pair.{name}")
        fields[name] = whole if kind is None else kind(*(arrays[f"pair.{name}.{part}"] for part in kind._fields))
    fields |= {name: int(fields[name].item()) for name in ("n_pairs", "n_images")}
    return PairSums(**fields)
