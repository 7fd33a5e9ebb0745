"""Does removing a label's features remove the label, and only it? TPP, SCR and absorption of SAEBench, for images."""

from itertools import combinations
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from thresher.analyze.functional.auroc import weigh_auroc
from thresher.analyze.functional.labels import Labels
from thresher.analyze.functional.probes import Probed, dense_codes, fit_ridge, rank_by_difference
from thresher.analyze.metrics.estimate import Estimate, estimate
from thresher.analyze.metrics.needs import divide, normalize_rows

REMOVED = 5
"""Features taken away per label."""
TARGETS = 12
"""Labels of TPP, and pairs of SCR, at most."""
MAIN, ABSORBED_SHARE, LEAST_COSINE = 2, 0.4, 0.025
"""Main features of a parent; least share of the probe's projection, and least cosine with the probe, of one that absorbs it."""
LEAST = 10
"""Images with both labels, and with neither, that a biased training set needs."""


class _Images(NamedTuple):
    """Reconstructed images of both halves, their codes, and dense probes on the activations."""

    fitted: Float[np.ndarray, "_ d_in"]
    fitted_codes: Float[np.ndarray, "_ feature"]
    judged: Float[np.ndarray, "_ d_in"]
    judged_codes: Float[np.ndarray, "_ feature"]
    atoms: Float[np.ndarray, "feature d_in"]


def measure_targeted(probed: Probed, labels: Labels) -> dict[str, Estimate]:
    """`tpp`, `scr` and `absorption` with intervals; those that have no labels to be measured on are left out."""
    if not len(probed.labels):
        return {}
    codes = dense_codes(probed)
    halves = probed.fitted.image, probed.judged.image
    images = _Images(halves[0].rebuild(), codes[0], halves[1].rebuild(), codes[1], halves[0].atoms[probed.features])
    frequent = np.argsort(-probed.judged_present[0].sum(axis=0), kind="stable")[:TARGETS].astype(np.int64)
    found = _perturb(images, probed, frequent) | _unbias(images, probed, labels, frequent)
    return found | _find_absorbed(images, probed, labels)


def _perturb(images: _Images, probed: Probed, chosen: Int[np.ndarray, " label"]) -> dict[str, Estimate]:
    """TPP: mean fall of a label's AUROC without its own features, minus the mean fall without those of the other labels."""
    if len(chosen) < 2:
        return {}
    present, truth, weights = (
        probed.fitted_present[0][:, chosen],
        probed.judged_present[0][:, chosen],
        probed.judged.image.weights,
    )
    probes = fit_ridge(images.fitted, present)
    before = images.judged @ probes
    own: list[np.ndarray] = []
    others: list[np.ndarray] = []
    whole = [weigh_auroc(before[:, c], truth[:, c], weights) for c in range(len(chosen))]
    for removed in range(len(chosen)):
        features = choose_to_remove(images.fitted_codes, present[:, removed], images.atoms @ probes[:, removed])
        after = before - images.judged_codes[:, features] @ (images.atoms[features] @ probes)
        for c in range(len(chosen)):
            fall = whole[c] - weigh_auroc(after[:, c], truth[:, c], weights)
            (own if c == removed else others).append(fall)
    means = [np.nanmean(np.stack(falls), axis=0) for falls in (own, others)]
    return {
        "tpp": estimate(means[0] - means[1], len(chosen), "labels"),
        "tpp_own": estimate(means[0], len(chosen), "labels"),
        "tpp_others": estimate(means[1], len(chosen), "labels"),
    }


def choose_to_remove(
    codes: Float[np.ndarray, "item feature"], present: Bool[np.ndarray, " item"], effect: Float[np.ndarray, " feature"]
) -> Int[np.ndarray, " removed"]:
    """The features that push a probe most: (mean code with the label - mean without) * <atom, probe>."""
    difference = codes[present].mean(axis=0) - codes[~present].mean(axis=0)
    return np.argsort(-difference * effect, kind="stable")[:REMOVED].astype(np.int64)


def _unbias(images: _Images, probed: Probed, labels: Labels, chosen: Int[np.ndarray, " label"]) -> dict[str, Estimate]:
    """SCR: a probe for a is fitted to images where b is there exactly when a is; how much of what that costs comes back
    without b's features: sum over pairs of (after - biased) / sum of (clean - biased), AUROC on all judged images.
    """
    pairs = _choose_pairs(probed, labels, chosen)
    truth, weights = probed.judged_present[0], probed.judged.image.weights
    gained, lost = np.zeros(len(weights)), np.zeros(len(weights))
    for a, b in pairs:
        present = probed.fitted_present[0]
        biased = present[:, a] == present[:, b]
        probe = fit_ridge(images.fitted[biased], present[biased][:, [a]])[:, 0]
        clean = fit_ridge(images.fitted, present[:, [a]])[:, 0]
        # Features of b among the images without a: with a they cannot be told from a's.
        rest = ~present[:, a]
        features = choose_to_remove(images.fitted_codes[rest], present[rest, b], images.atoms @ probe)
        scores = images.judged @ probe
        after = scores - images.judged_codes[:, features] @ (images.atoms[features] @ probe)
        base = weigh_auroc(scores, truth[:, a], weights)
        gained += weigh_auroc(after, truth[:, a], weights) - base
        lost += weigh_auroc(images.judged @ clean, truth[:, a], weights) - base
    if not pairs:
        return {}
    return {"scr": estimate(divide(gained, np.where(lost > 0, lost, np.nan)), len(pairs), "pairs of labels")}


def _choose_pairs(probed: Probed, labels: Labels, chosen: Int[np.ndarray, " label"]) -> list[tuple[int, int]]:
    """Pairs of labels that are neither related nor siblings, with enough images of both, of neither and of each alone."""
    present, found = probed.fitted_present[0], list[tuple[int, int]]()
    for a, b in combinations(chosen.tolist(), 2):
        first, second = int(probed.labels[a]), int(probed.labels[b])
        above = labels.parent[first], labels.parent[second]
        is_related = above[0] == second or above[1] == first or (above[0] == above[1] and above[0] >= 0)
        counts = [((present[:, a] == x) & (present[:, b] == y)).sum() for x in (True, False) for y in (True, False)]
        if not is_related and min(counts) >= LEAST:
            found.append((a, b))
    return found[:TARGETS]


def _find_absorbed(images: _Images, probed: Probed, labels: Labels) -> dict[str, Estimate]:
    """Share of the images in which a probe rightly sees a parent, its main features are silent, and one other feature that
    points the probe's way carries at least 0.4 of the reconstruction's projection on the probe (full absorption).
    """
    parents = [c for c, label in enumerate(probed.labels) if (labels.parent == label).any()]
    weights = probed.judged.image.weights
    absorbed, seen = np.zeros(len(weights)), np.zeros(len(weights))
    n = 0
    for c in parents:
        present = probed.fitted_present[0][:, [c]]
        probe = fit_ridge(images.fitted, present)[:, 0]
        main = rank_by_difference(images.fitted_codes, present)[:MAIN, 0]
        threshold = np.quantile(images.fitted @ probe, 1 - present.mean())
        is_seen = probed.judged_present[0][:, c] & (images.judged @ probe > threshold)
        n += int(is_seen.sum())
        hidden = is_seen & find_absorbed(images.judged_codes, images.atoms, probe, main)
        absorbed += weights @ hidden
        seen += weights @ is_seen
    return {"absorption": estimate(divide(absorbed, seen), n, "images")} if n else {}


def find_absorbed(
    codes: Float[np.ndarray, "item feature"],
    atoms: Float[np.ndarray, "feature d_in"],
    probe: Float[np.ndarray, " d_in"],
    main: Int[np.ndarray, " main"],
) -> Bool[np.ndarray, " item"]:
    """Items whose main features are silent while one other feature carries the projection (SAEBench, arXiv 2503.09532)."""
    projection = codes * (atoms @ probe)
    cosine = normalize_rows(atoms) @ normalize_rows(probe[None])[0]
    usable = cosine >= LEAST_COSINE
    usable[main] = False
    largest = np.where(usable, projection, 0.0).max(axis=1)
    total = projection.sum(axis=1)
    is_silent = (codes[:, main] == 0).all(axis=1)
    return is_silent & (total > 0) & (largest >= ABSORBED_SHARE * total)
