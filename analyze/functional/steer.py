"""Steering: a feature added to images that lack it, or swapped for its partner among the texts, and what retrieval says."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from thresher.analyze.battery.classes import BRIDGED, SHARED
from thresher.analyze.battery.judge import Judged
from thresher.analyze.functional.held import Held
from thresher.analyze.metrics.estimate import estimate
from thresher.analyze.metrics.fidelity import rank_partners
from thresher.analyze.metrics.needs import normalize_rows

TOP, NEIGHBOURS = 10, 5
LEAST = 5
"""Images and captions with the feature, and images without it, that steering needs."""


class Steered(NamedTuple):
    """A feature that is steered."""

    feature: int
    """On images."""
    partner: int
    """On texts; the feature itself when it is shared."""


def choose_steered(judged: Judged, n: int) -> list[Steered]:
    """Shared features, and bridged ones of images with their partners, that carry most of the margin."""
    share = judged.margins.left_out[0]
    order = np.argsort(-share, kind="stable")
    found: list[Steered] = []
    for feature in order.tolist():
        kind, partner = judged.classes[feature], int(judged.pairings.partner.feature[feature])
        if kind == SHARED:
            found.append(Steered(feature, feature))
        elif kind in BRIDGED and partner >= 0 and judged.activation.is_image[feature]:
            found.append(Steered(feature, partner))
    return found[:n]


def steer(held: Held, chosen: list[Steered], alive: Bool[np.ndarray, " feature"]) -> dict[str, Any]:
    """Means over the steered features, and each feature's own numbers.

    `added`: the feature's atom, with its mean code where it fires, is added to images on which it is silent; share of the ten
    nearest captions that fire its partner, before, after, and after as long a step along the atom of a random alive feature.
    `swapped` (bridged only): on images where it fires, its part is replaced by as much of its partner's atom; 1 / rank of the
    nearest own caption before, after, and with a random atom. `ood`: 1 - mean cosine with the 5 nearest other images.
    """
    generator = np.random.default_rng(held.seed)
    each: dict[str, Any] = {}
    for one in chosen:
        random = int(generator.choice(np.flatnonzero(alive)))
        found = _add(held, one, random) | (_swap(held, one, random) if one.partner != one.feature else {})
        if found:
            each[str(one.feature)] = found
    names = sorted({name for found in each.values() for name in found})
    means = {
        name: _average([found[name] for found in each.values() if name in found], len(held.image.weights)) for name in names
    }
    return {
        "mean": means,
        "features": {
            feature: {name: estimate(value, n, "images") for name, (value, n) in found.items()}
            for feature, found in each.items()
        },
    }


def _average(found: list[tuple[np.ndarray, int]], n_replicates: int) -> Any:
    values = np.stack([value for value, _ in found]) if found else np.full((1, n_replicates), np.nan)
    return estimate(np.nanmean(values, axis=0) if np.isfinite(values[:, 0]).any() else values[0], len(found), "features")


def _add(held: Held, one: Steered, random: int) -> dict[str, tuple[np.ndarray, int]]:
    code = held.image.codes[:, [one.feature]].toarray()[:, 0]
    wanted = held.text.codes[:, [one.partner]].toarray()[:, 0] != 0
    silent = np.flatnonzero(code == 0)
    if min((code != 0).sum(), wanted.sum(), len(silent)) < LEAST:
        return {}
    alpha, atoms = float(code[code != 0].mean()), held.image.atoms
    step = alpha * atoms[one.feature]
    sideways = _as_long(atoms[random], step)
    values = {
        "added_before": _share_wanted(held.image.x[silent], held, wanted),
        "added_after": _share_wanted(held.image.x[silent] + step, held, wanted),
        "added_random": _share_wanted(held.image.x[silent] + sideways, held, wanted),
        "ood_before": measure_distance(held.image.x[silent], held.image.x, silent),
        "ood_after": measure_distance(held.image.x[silent] + step, held.image.x, silent),
        "ood_random": measure_distance(held.image.x[silent] + sideways, held.image.x, silent),
    }
    return {name: (_mean(held, silent, value), len(silent)) for name, value in values.items()}


def _swap(held: Held, one: Steered, random: int) -> dict[str, tuple[np.ndarray, int]]:
    code = held.image.codes[:, [one.feature]].toarray()[:, 0]
    firing, atoms = np.flatnonzero(code), held.image.atoms
    if len(firing) < LEAST:
        return {}
    x, z = held.image.x[firing], code[firing, None]
    rest = x - z * atoms[one.feature]
    rows = {
        "before": x,
        "after": rest + z * _as_long(atoms[one.partner], atoms[one.feature]),
        "random": rest + z * _as_long(atoms[random], atoms[one.feature]),
    }
    group = held.image.group[firing]
    found: dict[str, tuple[np.ndarray, int]] = {}
    for name, moved in rows.items():
        ranks = rank_partners(moved, held.text.x, group, held.text.group)
        found[f"swapped_{name}"] = (_mean(held, firing, 1 / ranks), len(firing))
    return found


def measure_distance(
    x: Float[np.ndarray, "row d_in"], images: Float[np.ndarray, "image d_in"], own: Int[np.ndarray, " row"]
) -> Float[np.ndarray, " row"]:
    """1 - mean cosine with the 5 nearest images, that of number `own` left out."""
    cosine = normalize_rows(x) @ normalize_rows(images).T
    cosine[np.arange(len(own)), own] = -np.inf
    n = min(NEIGHBOURS, len(images) - 1)
    return 1 - np.partition(cosine, -n, axis=1)[:, -n:].mean(axis=1)


def _share_wanted(x: np.ndarray, held: Held, wanted: Bool[np.ndarray, " text"]) -> np.ndarray:
    cosine = normalize_rows(x) @ normalize_rows(held.text.x).T
    n = min(TOP, cosine.shape[1])
    return wanted[np.argpartition(-cosine, n - 1, axis=1)[:, :n]].mean(axis=1)


def _as_long(direction: np.ndarray, other: np.ndarray) -> np.ndarray:
    length = float(np.linalg.norm(direction))
    return direction * (float(np.linalg.norm(other)) / length) if length > 0 else direction


def _mean(held: Held, rows: Int[np.ndarray, " row"], values: np.ndarray) -> np.ndarray:
    weights = held.image.weights[:, rows]
    n = weights.sum(axis=1)
    return np.divide(weights @ values, n, out=np.full(len(n), np.nan), where=n > 0)
