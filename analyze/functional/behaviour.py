"""Retrieval and zero-shot classification on activations, on reconstructions, and without classes of features."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from thresher.analyze.functional.held import Half, Held, describe
from thresher.analyze.functional.labels import Labels
from thresher.analyze.functional.sets import Sets, draw_of_count, draw_of_energy
from thresher.analyze.metrics.angle import erase, fit_erasure
from thresher.analyze.metrics.estimate import Estimate, exact
from thresher.analyze.metrics.fidelity import classify_zero_shot, diverge, rank_partners
from thresher.analyze.metrics.needs import normalize_rows

CUTOFFS = (1, 5, 10)
RETRIEVAL = tuple(f"{way}_r{k}" for way in ("image_to_text", "text_to_image") for k in CUTOFFS)
MEASURES = (*RETRIEVAL, "gap", "zero_shot", "zero_shot_agreement", "zero_shot_kl")
"""Recall at 1, 5, 10; distance of the mean unit image from the mean unit text; share right, share classified as the raw
activations are, KL(softmax of the raw || softmax of these) in nats."""


class Rows(NamedTuple):
    """What stands in place of the activations."""

    image: Float[np.ndarray, "image d_in"]
    text: Float[np.ndarray, "text d_in"]
    classes: Float[np.ndarray, "class d_in"] | None
    """Class vectors of zero-shot classification."""


Score = Callable[[Rows], Float[np.ndarray, "replicate measure"]]


def make_score(held: Held, labels: Labels | None, logit_scale: float) -> Score:
    """The function that measures all of MEASURES in each resample of the records; NaN for zero-shot without class vectors.

    All captions of an image are right; ties rank last. Resampling draws queries, the candidates stay.
    """

    def score(rows: Rows) -> Float[np.ndarray, "replicate measure"]:
        found = [
            _recall(rows.image, rows.text, held.image, held.text),
            _recall(rows.text, rows.image, held.text, held.image),
            _measure_gap(rows, held),
            _classify(rows, held.image, labels, logit_scale),
        ]
        return np.concatenate(found, axis=1)

    return score


def measure_baselines(held: Held, labels: Labels | None, score: Score) -> dict[str, dict[str, Estimate]]:
    """Raw activations and reconstructions as they are; with the mean of each modality taken off at unit norm (`_centred`); and
    with the gap added to the texts (`_shifted`). Means are those of the judged items. `_erased`: without the one direction that
    a linear classifier of the modality can use (LEACE, arXiv 2306.03819), fitted to the judged items; left out where the means
    do not differ.
    """
    classes = None if labels is None else labels.vectors
    found: dict[str, dict[str, Estimate]] = {}
    for name, image, text in (
        ("raw", held.image.x, held.text.x),
        ("reconstructed", held.image.rebuild(), held.text.rebuild()),
    ):
        unit = normalize_rows(image), normalize_rows(text)
        means = unit[0].mean(axis=0), unit[1].mean(axis=0)
        directions = None if classes is None else normalize_rows(classes)
        shifts = {"centred": means, "shifted": (np.zeros_like(means[0]), means[1] - means[0])}
        found[name] = _describe(held, score(Rows(image, text, classes)))
        for shift, (first, second) in shifts.items():
            moved = None if directions is None else directions - second
            found[f"{name}_{shift}"] = _describe(held, score(Rows(unit[0] - first, unit[1] - second, moved)))
        if np.linalg.norm(means[0] - means[1]) > 0:
            found[f"{name}_erased"] = _describe(held, score(_erase(unit[0], unit[1], directions)))
    return found


def _erase(image: np.ndarray, text: np.ndarray, classes: np.ndarray | None) -> Rows:
    erasure, middle = fit_erasure(image, text), (image.mean(axis=0) + text.mean(axis=0)) / 2
    erased = None if classes is None else erase(classes, erasure, middle)
    return Rows(erase(image, erasure, middle), erase(text, erasure, middle), erased)


def ablate_sets(held: Held, labels: Labels | None, sets: Sets, score: Score, n_draws: int) -> dict[str, Any]:
    """Every set left out (`without`) and kept alone (`only`), beside random sets of the same energy and the same number.

    `without_loss` is what the reconstruction's score loses by leaving the set out, and `without_excess` by how much that is
    more than what random sets of the same energy cost: intervals resample records, with the same resamples on both sides.
    For random sets the value is the mean over draws and the ends are the least and the most. For `gap`, `zero_shot_kl` a
    loss is a fall too.
    """
    whole = score(_rebuild(held, labels, None))
    generator = np.random.default_rng(held.seed)
    return {
        name: _ablate(held, labels, sets, score, members, n_draws, whole, generator) for name, members in sets.members.items()
    }


def _ablate(
    held: Held,
    labels: Labels | None,
    sets: Sets,
    score: Score,
    members: Bool[np.ndarray, " feature"],
    n_draws: int,
    whole: Float[np.ndarray, "replicate measure"],
    generator: np.random.Generator,
) -> dict[str, Any]:
    def both(mask: Bool[np.ndarray, " feature"]) -> dict[str, np.ndarray]:
        return {"without": score(_rebuild(held, labels, ~mask)), "only": score(_rebuild(held, labels, mask))}

    own = both(members)
    found: dict[str, Any] = {
        "features": exact(float(members.sum()), int(sets.alive.sum()), "alive features"),
        "energy": exact(float(sets.energy[members].sum()), int(sets.alive.sum()), "alive features"),
    }
    found |= {way: _describe(held, one) for way, one in own.items()}
    found["without_loss"] = _describe(held, whole - own["without"])
    for control, draw in (("same_energy", draw_of_energy), ("same_number", draw_of_count)):
        masks = [draw(sets, members, generator) for _ in range(n_draws)]
        drawn = [both(mask) for mask in masks]
        if not drawn:
            continue
        found[control] = {way: _describe_draws([one[way] for one in drawn]) for way in own}
        found[control]["energy"] = _describe_spread([float(sets.energy[mask].sum()) for mask in masks])
        if control == "same_energy":
            random = np.mean([one["without"] for one in drawn], axis=0)
            found["without_excess"] = _describe(held, random - own["without"])
    return found


def _rebuild(held: Held, labels: Labels | None, kept: Bool[np.ndarray, " feature"] | None) -> Rows:
    return Rows(held.image.rebuild(kept), held.text.rebuild(kept), None if labels is None else labels.vectors)


def _recall(queries: np.ndarray, targets: np.ndarray, asking: Half, answering: Half) -> np.ndarray:
    ranks = rank_partners(queries, targets, asking.group, answering.group)
    return asking.average(ranks[:, None] <= np.array(CUTOFFS))


def _measure_gap(rows: Rows, held: Held) -> np.ndarray:
    image, text = held.image.average(normalize_rows(rows.image)), held.text.average(normalize_rows(rows.text))
    return np.linalg.norm(image - text, axis=1, keepdims=True)


def _classify(rows: Rows, half: Half, labels: Labels | None, logit_scale: float) -> np.ndarray:
    """Over all families of classes together: an image counts once in each family that it has a class in."""
    if labels is None or labels.vectors is None or rows.classes is None or not labels.families:
        return np.full((len(half.weights), 3), np.nan)
    total, n = np.zeros((len(half.weights), 3)), np.zeros((len(half.weights), 1))
    for family in labels.families:
        members = np.flatnonzero(family.label >= 0)
        classes, label, image = rows.classes[family.members], family.label[members], rows.image[members]
        before = normalize_rows(half.x[members]) @ normalize_rows(labels.vectors[family.members]).T
        after = normalize_rows(image) @ normalize_rows(classes).T
        correct = classify_zero_shot(image, image, classes, label, logit_scale).correct
        agrees = after.argmax(axis=1) == before.argmax(axis=1)
        divergence = diverge(logit_scale * before, logit_scale * after)
        values = np.column_stack([correct, agrees, divergence])
        total += half.weights[:, members] @ values
        n += half.weights[:, members].sum(axis=1, keepdims=True)
    return np.divide(total, n, out=np.full_like(total, np.nan), where=n > 0)


def _describe(held: Held, replicates: np.ndarray) -> dict[str, Estimate]:
    sizes = [len(held.image.items)] * 3 + [len(held.text.items)] * 3
    found = {
        name: describe(replicates[:, [column]], (name,), size, "images" if column < 3 else "captions")[name]
        for column, (name, size) in enumerate(zip(RETRIEVAL, sizes, strict=True))
    }
    return found | describe(replicates[:, len(RETRIEVAL) :], MEASURES[len(RETRIEVAL) :], len(held.image.items), "images")


def _describe_draws(drawn: list[np.ndarray]) -> dict[str, Estimate]:
    return {name: _describe_spread([float(one[0, column]) for one in drawn]) for column, name in enumerate(MEASURES)}


def _describe_spread(values: list[float]) -> Estimate:
    if not np.isfinite(values).all():
        return Estimate(None, None, None, len(values), "draws")
    return Estimate(float(np.mean(values)), min(values), max(values), len(values), "draws")


def flatten(found: Mapping[str, Any], prefix: str = "") -> list[dict[str, Any]]:
    """One row per number of a nested result: its dotted path, value, ends, n and unit."""
    rows: list[dict[str, Any]] = []
    for key, value in found.items():
        if not isinstance(value, Mapping):
            continue
        if {"value", "n", "unit"} <= set(value):
            rows.append(
                {"measure": f"{prefix}{key}"} | {part: value.get(part) for part in ("value", "low", "high", "n", "unit")}
            )
        else:
            rows += flatten(value, f"{prefix}{key}.")
    return rows
