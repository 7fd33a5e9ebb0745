"""What a store holds, in plain values for the command line."""

import re
from pathlib import Path
from typing import Any

import numpy as np

from thresher.data.store.layout import RUN
from thresher.data.store.places import find_remote_stores, parse_location
from thresher.data.store.reader import Store, open_store
from thresher.data.store.schema import TORCH_DTYPE
from thresher.errors import StoreError


def describe_store(path: str | Path) -> dict[str, Any]:
    """What a store holds, as plain values: identity, hook points with rows and moments, items, pairs, bytes.

    Also of an unfinished store, as far as it is committed. Raises StoreError when it cannot be opened.
    """
    store = open_store(path, incomplete="prefix")
    return {
        "path": str(store.path),
        "complete": store.is_complete,
        "fingerprint": store.fingerprint,
        "profile": store.profile,
        "bytes": store.n_bytes,
        "size": _compare_bytes(store),
        "identity": dict(store.identity),
        "items": {modality: store.items(modality, columns=["record"]).num_rows for modality in ("image", "text")},
        "pairs": len(store.pairs()),
        "concepts": len(store.concepts),
        "hook_points": {name: _describe_hook_point(store, name) for name in store.hook_points},
    }


def list_stores(folder: str | Path) -> list[dict[str, Any]]:
    """One line of plain values for each store in a folder or below it, in order of their paths.

    Also in a bucket: `s3://bucket` or below; a request for each folder that is no store, what lies in one is not listed.
    A store that cannot be opened has its `problem` told instead of its content. Raises StoreError: no such folder or bucket.
    """
    is_bucket = re.fullmatch(r"(s3|gs)://[^/]+/?", str(folder))
    folder = str(folder).rstrip("/") if is_bucket else parse_location(folder)
    if isinstance(folder, str):
        return [_summarize(address) for address in find_remote_stores(folder)]
    if not folder.is_dir():
        raise StoreError(f"{folder}: no such folder; give one that holds stores, or one above it")
    found = sorted(run.parent for run in folder.rglob(RUN) if _is_store(run))
    return [_summarize(path) for path in found]


def _is_store(run: Path) -> bool:
    return (run.parent / "commits").is_dir() or (run.parent / "acts.zarr").is_dir()


def _summarize(path: str | Path) -> dict[str, Any]:
    try:
        store = open_store(path, incomplete="prefix")
    except StoreError as error:
        return {
            "path": str(path),
            "model": "",
            "hook_points": "",
            "rows": 0,
            "size": "",
            "complete": False,
            "problem": str(error),
        }
    return {
        "path": str(path),
        "model": _name_model(store.identity.get("model")),
        "hook_points": ", ".join(store.hook_points),
        "rows": sum(info.rows for info in store.hook_points.values()),
        "size": format_bytes(store.n_bytes),
        "complete": store.is_complete,
        "problem": "",
    }


def _name_model(model: Any) -> str:
    """The model of an identity in a few words: its kind and name, or else the values of its settings."""
    if not isinstance(model, dict):
        return "" if model is None else str(model)
    if "name" in model:
        return " ".join(str(model[key]) for key in ("kind", "name") if key in model)
    return " ".join(str(value) for value in model.values() if isinstance(value, str))


def format_bytes(n: int) -> str:
    """A number of bytes with three digits and its unit."""
    units = ("B", "kB", "MB", "GB", "TB")
    power = min(len(units) - 1, max(0, len(str(n)) - 1) // 3)
    return f"{n / 1000**power:.3g} {units[power]}"


def _compare_bytes(store: Store) -> str:
    """What the files take against the activations in them: far more in a small store, as a shard's last chunk is filled up."""
    values = sum(info.rows * info.width * TORCH_DTYPE[info.dtype].itemsize for info in store.hook_points.values())
    return f"{format_bytes(store.n_bytes)} on disk for {format_bytes(values)} of activations"


def _describe_hook_point(store: Store, name: str) -> dict[str, Any]:
    info, moments = store.hook_points[name], store.moments(name)
    return {
        **{key: value for key, value in info._asdict().items() if key != "name"},
        "mean_norm": moments.mean_norm,
        "norm_of_mean": float(np.linalg.norm(moments.mean)),
        "mean_square": float(moments.second_moment.mean()),
        "max_abs": moments.max_abs,
        "norm_quantiles": {str(quantile): norm for quantile, norm in moments.norm_quantiles.items()},
    }
