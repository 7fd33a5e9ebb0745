"""Atoms in the plane, as they are and with the direction of the modality gap taken out."""

# pyright: reportMissingImports=none
# umap-learn is an extra that need not be installed

import importlib.util
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from thresher.analyze.metrics.needs import normalize_rows
from thresher.errors import AnalysisError

NEIGHBOURS = 15
BLOCK = 1024


def map_atoms(
    atoms: Float[np.ndarray, "feature d_in"],
    gap: Float[np.ndarray, " d_in"] | None,
    alive: Bool[np.ndarray, " feature"],
    *,
    with_umap: bool,
) -> dict[str, Any]:
    """Coordinates of the alive atoms by layout: `features`, and per layout `x`, `y` and the axes' shares of the variance.

    With a gap also without its direction, since with it a map shows two islands that only restate the gap. UMAP has a fixed
    seed.
    """
    chosen = atoms[alive]
    views = {"atoms": chosen}
    if gap is not None:
        length = np.linalg.norm(gap)
        unit = gap / length if length > 0 else gap
        views["without_gap"] = normalize_rows(chosen - np.outer(chosen @ unit, unit))
    layouts: dict[str, Mapping[str, Any]] = {f"pca_{name}": project(view) for name, view in views.items()}
    if with_umap:
        layouts |= {f"umap_{name}": embed(view) for name, view in views.items()}
    return {"features": np.flatnonzero(alive), "layouts": layouts}


def project(points: Float[np.ndarray, "point width"]) -> dict[str, Any]:
    """The first two principal components; of each axis the sign whose largest loading is positive."""
    if len(points) < 2:
        return {"x": [0.0] * len(points), "y": [0.0] * len(points), "shares": [None, None]}
    centred = points - points.mean(axis=0)
    values, vectors = np.linalg.eigh(centred.T @ centred)
    axes = vectors[:, ::-1][:, :2]
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
    placed = np.zeros((len(points), 2))
    placed[:, : axes.shape[1]] = centred @ axes
    total = max(float(values.sum()), np.finfo(np.float64).tiny)
    return {"x": placed[:, 0], "y": placed[:, 1], "shares": (values[::-1][:2] / total).tolist()}


def embed(points: Float[np.ndarray, "point width"]) -> dict[str, Any]:
    """UMAP by cosine with a fixed seed. Raises AnalysisError when umap-learn is not installed."""
    require_umap()
    from umap import UMAP

    if len(points) <= NEIGHBOURS + 1:
        return project(points)
    placed = np.asarray(UMAP(n_neighbors=NEIGHBOURS, metric="cosine", random_state=0, n_jobs=1).fit_transform(points))
    return {"x": placed[:, 0], "y": placed[:, 1], "shares": [None, None]}


def require_umap() -> None:
    """Raise AnalysisError when umap-learn is not installed."""
    if importlib.util.find_spec("umap") is None:
        raise AnalysisError(
            "site.layout='umap': umap-learn is not installed; pip install 'thresher[umap]', or use layout='pca'"
        )


def find_nearest(
    atoms: Float[np.ndarray, "feature d_in"], alive: Bool[np.ndarray, " feature"], n: int
) -> tuple[Int[np.ndarray, "feature near"], Float[np.ndarray, "feature near"]]:
    """The `n` alive atoms of the largest cosine with each atom, and that cosine, largest first. Costs O(feature^2 d_in)."""
    others = np.flatnonzero(alive)
    n = max(0, min(n, len(others) - 1))
    single = atoms.astype(np.float32)
    targets = single[others]
    near, cosine = np.zeros((len(atoms), n), np.int64), np.zeros((len(atoms), n))
    place = np.full(len(atoms), -1)
    place[others] = np.arange(len(others))
    for start in range(0, len(atoms), BLOCK):
        rows = np.arange(start, min(start + BLOCK, len(atoms)))
        similar = single[rows] @ targets.T
        own = place[rows]
        similar[np.flatnonzero(own >= 0), own[own >= 0]] = -np.inf
        best = np.sort(np.argpartition(-similar, min(n, len(others) - 1), axis=1)[:, :n], axis=1) if n else near[rows]
        values = np.take_along_axis(similar, best, axis=1).astype(np.float64)
        order = np.argsort(-values, axis=1, kind="stable")
        near[rows] = others[np.take_along_axis(best, order, axis=1)]
        cosine[rows] = np.take_along_axis(values, order, axis=1)
    return near, cosine
