"""What a store holds, in plain values for the command line."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from thresher.data.store.layout import RUN
from thresher.data.store.reader import Store, open_store
from thresher.errors import StoreError


class StoreSummary(NamedTuple):
    """One line of a list of stores."""

    path: Path
    is_complete: bool
    n_hook_points: int
    rows: int
    """Of all hook points."""
    bytes: int
    """Of all files of the committed store."""
    problem: str | None
    """Why it cannot be opened; then the numbers are 0."""


def describe_store(path: Path) -> dict[str, Any]:
    """What a store holds, as plain values: identity, hook points with rows and moments, items, pairs, bytes.

    Also of an unfinished store, as far as it is committed. Raises StoreError when it cannot be opened.
    """
    store = open_store(path, incomplete="prefix")
    return {
        "path": str(store.path),
        "complete": store.is_complete,
        "fingerprint": store.fingerprint,
        "bytes": store.n_bytes,
        "identity": dict(store.identity),
        "items": {modality: store.items(modality, columns=["record"]).num_rows for modality in ("image", "text")},
        "pairs": len(store.pairs()),
        "concepts": len(store.concepts),
        "hook_points": {name: _describe_hook_point(store, name) for name in store.hook_points},
    }


def list_stores(folder: Path) -> list[StoreSummary]:
    """The stores in a folder and the folders in it, at any depth, in order of their paths."""
    found = sorted(run.parent for run in folder.rglob(RUN) if not run.parent.name.startswith("."))
    return [_summarize(path) for path in found]


def _summarize(path: Path) -> StoreSummary:
    try:
        store = open_store(path, incomplete="prefix")
    except StoreError as error:
        return StoreSummary(path, is_complete=False, n_hook_points=0, rows=0, bytes=0, problem=str(error))
    rows = sum(info.rows for info in store.hook_points.values())
    return StoreSummary(path, store.is_complete, len(store.hook_points), rows, store.n_bytes, problem=None)


def _describe_hook_point(store: Store, name: str) -> Mapping[str, Any]:
    info, moments = store.hook_points[name], store.moments(name)
    return {
        **{key: value for key, value in info._asdict().items() if key != "name"},
        "mean_norm": moments.mean_norm,
        "max_abs": moments.max_abs,
        "norm_quantiles": {str(quantile): norm for quantile, norm in moments.norm_quantiles.items()},
    }
