"""What each step of a pursuit codes: modality, class, gap; and what is left after it."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.stats import rankdata
from torch import Tensor

from thresher.analyze.battery.classes import CLASSES
from thresher.analyze.metrics.grouping import sum_rows
from thresher.analyze.metrics.needs import divide, normalize_rows
from thresher.analyze.panels import Panel
from thresher.data.store import Store
from thresher.train.checkpoint import TrainedSAE
from thresher.train.codes import Codes

MOST_RECORDS = 1000
"""Records whose residuals are looked at."""
RIDGE = 1e-2
"""Penalty of the linear probe, relative to the mean variance of a dimension."""


class StepSums(NamedTuple):
    """Sums over the rows of one modality, by step and feature; sums of two chunks are their sum."""

    n_rows: int
    total: Float[np.ndarray, "step feature"]
    """Sum of the coefficient."""
    energy: Float[np.ndarray, "step feature"]
    """Sum of its square."""
    n_negative: Int[np.ndarray, " step"]
    n_active: Int[np.ndarray, " step"]


def is_pursuit(trained: TrainedSAE) -> bool:
    """Whether codes come in the order of selection, each step with the coefficient it was picked with."""
    return hasattr(trained.sae, "encode_nested")


def sum_steps(codes: Codes, norm: Float[np.ndarray, " feature"]) -> StepSums:
    """Statistics of one chunk of codes [row, k], for atoms brought to unit norm."""
    n_rows, k = codes.indices.shape
    indices = codes.indices.cpu().numpy()
    values = codes.values.detach().to("cpu", torch.float64).numpy() * norm[indices]
    key = (np.arange(k)[None] * len(norm) + indices).ravel()
    total, energy = (np.bincount(key, weights=one.ravel(), minlength=k * len(norm)) for one in (values, values**2))
    shape = (k, len(norm))
    return StepSums(n_rows, total.reshape(shape), energy.reshape(shape), (values < 0).sum(axis=0), (values != 0).sum(axis=0))


def add_steps(first: StepSums, second: StepSums) -> StepSums:
    """Statistics of two chunks together."""
    return StepSums(
        n_rows=first.n_rows + second.n_rows,
        total=first.total + second.total,
        energy=first.energy + second.energy,
        n_negative=first.n_negative + second.n_negative,
        n_active=first.n_active + second.n_active,
    )


def find_centroid(sums: StepSums) -> Float[np.ndarray, " feature"]:
    """Mean step at which each feature is picked, weighted by energy, from 0; NaN where it never is."""
    steps = np.arange(len(sums.energy), dtype=np.float64)
    return divide(steps @ sums.energy, sums.energy.sum(axis=0))


class Residuals(NamedTuple):
    """What is left before the first step and after each, of one image and one text of some records; place 0 is the input."""

    norm: Float[np.ndarray, "2 step"]
    gap: Float[np.ndarray, " step"]
    auc: Float[np.ndarray, " step"]
    """How well a linear probe tells the modalities apart: 0.5 chance, 1 always; judged on records it was not fitted to."""
    cosine: Float[np.ndarray, " step"]
    """Between the image and the text of a record."""
    n_records: int


@torch.no_grad()
def follow_residuals(
    trained: TrainedSAE, store: Store, panels: Mapping[str, Panel], items: Mapping[str, Int[np.ndarray, " record"]]
) -> Residuals:
    """Encode some items again and subtract the picks one by one. Items with many rows are averaged over them."""
    chosen = {
        name: one[np.linspace(0, len(one) - 1, min(len(one), MOST_RECORDS)).astype(np.int64)] for name, one in items.items()
    }
    sides = [_follow(trained, store, panels[name], np.unique(chosen[name])) for name in ("image", "text")]
    n_steps = len(sides[0][1])
    means = [[one.mean(axis=0) for one in residuals] for _, residuals in sides]
    pairs = list(zip(sides[0][1], sides[1][1], strict=True))
    return Residuals(
        norm=np.array([norms for norms, _ in sides]),
        gap=np.array([np.linalg.norm(means[0][step] - means[1][step]) for step in range(n_steps)]),
        auc=np.array([separate(image, text) for image, text in pairs]),
        cosine=np.array([float(np.einsum("ij,ij->i", normalize_rows(a), normalize_rows(b)).mean()) for a, b in pairs]),
        n_records=len(chosen["image"]),
    )


def _follow(
    trained: TrainedSAE, store: Store, panel: Panel, items: Int[np.ndarray, " item"]
) -> tuple[list[float], list[np.ndarray]]:
    """Mean norm of the residuals, and the residual per item [item, d_in], before the first step and after each."""
    place = np.full(len(panel.items), -1)
    place[items] = np.arange(len(items))
    rows = np.flatnonzero(place[panel.item] >= 0)
    group = place[panel.item[rows]].astype(np.int64)
    x = store.read_rows(panel.hook_point, panel.rows[rows]).float()
    codes = trained.encode(x, panel.hook_point)
    index = trained.hook_points.index(panel.hook_point)
    dictionary = trained.sae.dictionary.detach()
    nothing = Codes(torch.zeros_like(codes.indices[:, :1]), torch.zeros_like(codes.values[:, :1]))
    residual = trained.normalizer.normalize(x.to(dictionary.device), index) - trained.sae.decode(nothing)
    count = np.bincount(group, minlength=len(items))[:, None]
    norms: list[float] = []
    found: list[np.ndarray] = []
    for step in range(-1, codes.indices.shape[1]):
        if step >= 0:
            residual = residual - codes.values[:, step, None] * dictionary[codes.indices[:, step]]
        norms.append(float(residual.norm(dim=1).mean()))
        found.append(sum_rows(_to_numpy(residual), group, len(items)) / count)
    return norms, found


def _to_numpy(x: Tensor) -> np.ndarray:
    return x.to("cpu", torch.float64).numpy()


def separate(image: Float[np.ndarray, "item d_in"], text: Float[np.ndarray, "item d_in"]) -> float:
    """Area under the curve of a ridge probe for the modality: mean over two halves of the items, each judged by the other's.

    0.5 or a little below means that nothing is left to read. NaN with fewer than 4 items of a modality.
    """
    if min(len(image), len(text)) < 4:
        return float("nan")
    x = np.concatenate([image, text])
    y = np.concatenate([np.ones(len(image)), -np.ones(len(text))])
    half = np.concatenate([np.arange(len(image)) % 2, np.arange(len(text)) % 2])
    found: list[float] = []
    for part in (0, 1):
        fit, judge = half == part, half != part
        centre = x[fit].mean(axis=0)
        rows = x[fit] - centre
        square = rows.T @ rows
        penalty = RIDGE * np.trace(square) / len(square) + 1e-300
        probe = np.linalg.solve(square + penalty * np.eye(len(square)), rows.T @ y[fit])
        found.append(_area((x[judge] - centre) @ probe, y[judge] > 0))
    return float(np.mean(found))


def _area(score: Float[np.ndarray, " item"], is_image: np.ndarray) -> float:
    rank = rankdata(score)
    n, m = int(is_image.sum()), int((~is_image).sum())
    return float((rank[is_image].sum() - n * (n + 1) / 2) / (n * m))


def tabulate_steps(
    image: StepSums,
    text: StepSums,
    residuals: Residuals,
    classes: np.ndarray,
    dictionary: Float[np.ndarray, "feature d_in"],
) -> dict[str, list[object]]:
    """Columns of steps.parquet: one row per step and modality. `dictionary` has unit atoms."""
    sides = {"image": image, "text": text}
    difference = image.total / image.n_rows - text.total / text.n_rows
    delta = difference.sum(axis=0) @ dictionary
    gap = difference @ (dictionary @ delta) / max(float(delta @ delta), 1e-300)
    energy = {name: one.energy.sum(axis=1) / one.n_rows for name, one in sides.items()}
    mu = divide(energy["image"], energy["image"] + energy["text"])
    overlap = _overlap(image, text)
    rows: list[dict[str, object]] = []
    for step in range(len(gap)):
        for side, (name, one) in enumerate(sides.items()):
            by_class = {
                f"energy_{label.replace('-', '_')}": _ratio(one.energy[step, classes == label].sum(), one.energy[step].sum())
                for label in CLASSES
            }
            rows.append(
                {
                    "step": step,
                    "modality": name,
                    "n_active": float(one.n_active[step] / one.n_rows),
                    "energy": float(energy[name][step]),
                    **by_class,
                    "mu": float(mu[step]),
                    "overlap": float(overlap[step]),
                    "gap": float(gap[step]),
                    "n_negative": _ratio(float(one.n_negative[step]), float(one.n_active[step])),
                    **_describe_residual(residuals, side, step),
                }
            )
    return {column: [row[column] for row in rows] for column in rows[0]}


def _overlap(image: StepSums, text: StepSums) -> Float[np.ndarray, " step"]:
    """sum_i min(p_i, p'_i) at each step, p the shares of the features in the energy of a modality there; NaN without energy."""
    shares = [divide(one.energy, one.energy.sum(axis=1, keepdims=True)) for one in (image, text)]
    return np.minimum(*shares).sum(axis=1)


def _describe_residual(residuals: Residuals, side: int, step: int) -> dict[str, object]:
    places = {"input": 0, "residual": step + 1}
    return {
        f"{name}_{key}": float(values[place])
        for name, place in places.items()
        for key, values in (
            ("norm", residuals.norm[side]),
            ("gap", residuals.gap),
            ("auc", residuals.auc),
            ("cosine", residuals.cosine),
        )
    }


def _ratio(part: float, whole: float) -> float | None:
    return float(part / whole) if whole > 0 else None
