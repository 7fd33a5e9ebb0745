"""Data files of the site: JavaScript assignments, since a page opened from disk may not fetch JSON but may add scripts."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

DIGITS = 5
"""Significant digits of numbers; the files of the analysis keep all."""
PER_SHARD = 256
"""Features, or texts, in one file."""
IMAGES_PER_SHARD = 32
"""Fewer images, whose bytes are many: a dashboard of 24 images reads 24 shards at most."""


def write_shard(folder: Path, name: str, value: Any) -> None:
    """Write `<folder>/data/<name>.js`, which hands `value` to the page under `name`. Equal values give equal bytes."""
    path = folder / "data" / f"{name}.js"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(f"THRESHER.put({encode(name)},{encode(value)});\n".encode("ascii"))


def encode(value: Any) -> str:
    """A JavaScript literal in ASCII, safe in a script tag too: no `<`, no line separators. NaN and infinities become null."""
    text = json.dumps(simplify(value), ensure_ascii=True, allow_nan=False, separators=(",", ":"), sort_keys=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e")


def simplify(value: Any) -> Any:
    """Plain values with rounded numbers, of mappings, sequences, arrays, NumPy scalars and named tuples (as lists)."""
    if isinstance(value, float):
        return round_number(value)
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, Mapping):
        return {str(key): simplify(one) for key, one in value.items()}
    if isinstance(value, (np.ndarray, np.generic)):
        return simplify(value.tolist())
    return [simplify(one) for one in value]


def round_number(value: float) -> float | int | None:
    """Rounded to `DIGITS` significant digits, whole numbers without a point; None for NaN and infinities."""
    if not np.isfinite(value):
        return None
    rounded = float(f"{value:.{DIGITS}g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 2**53 else rounded
