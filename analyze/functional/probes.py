"""Linear probes on codes: how few features read a label, and whether a probe of texts reads images."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.optimize import linear_sum_assignment

from thresher.analyze.functional.auroc import average_auroc
from thresher.analyze.functional.held import Half, Held
from thresher.analyze.functional.labels import Labels
from thresher.analyze.metrics.estimate import Estimate, estimate
from thresher.analyze.metrics.needs import divide

FEATURES = 1024
"""Features looked at, those of most energy."""
MOST_LABELS, LEAST = 40, 5
"""Labels judged at most, the most frequent; and items with and without each, in each half of each modality."""
RIDGE = 1e-2
"""Penalty, relative to the mean variance of a dimension."""
SPARSE = (1, 2, 5)
LEAST_RHO, PARTNERS = 0.1, 8
"""A feature is mapped to so many features of the other modality at most, correlated at least so."""


class Probed(NamedTuple):
    """What probes are fitted to and judged on."""

    fitted: Held
    judged: Held
    features: Int[np.ndarray, " feature"]
    labels: Int[np.ndarray, " label"]
    fitted_present: tuple[Bool[np.ndarray, "_ label"], Bool[np.ndarray, "_ label"]]
    """Of the images and of the texts."""
    judged_present: tuple[Bool[np.ndarray, "_ label"], Bool[np.ndarray, "_ label"]]


class Maps(NamedTuple):
    """What codes of images [image, feature] are multiplied with to look like codes of texts; fitted to pairs."""

    hungarian: Float[np.ndarray, "feature feature"]
    bridge: Float[np.ndarray, "feature feature"]
    shuffled: Float[np.ndarray, "feature feature"]
    """A random permutation of the features: what any other matching gives."""
    correlation: Float[np.ndarray, "feature feature"]
    """Of each image feature with each text feature, over the pairs."""


def prepare_probes(held: Held, labels: Labels | None) -> Probed:
    """Split the images in halves, choose features and labels; no labels when none has enough items."""
    fitted, judged = held.split()
    features = choose_features(held)
    present: list[tuple[np.ndarray, np.ndarray]] = []
    usable = np.zeros(0, dtype=np.int64)
    places = [_place(held, one) for one in (fitted, judged)]
    if labels is not None:
        found = [labels.testable(image, text, LEAST) for image, text in places]
        usable = np.intersect1d(found[0], found[1])
        frequency = labels.image[:, usable].sum(axis=0)
        usable = np.sort(usable[np.argsort(-frequency, kind="stable")[:MOST_LABELS]])
    for image, text in places:
        if labels is None:
            present.append((np.zeros((len(image), 0), dtype=bool), np.zeros((len(text), 0), dtype=bool)))
        else:
            present.append((labels.image[image][:, usable], labels.text[text][:, usable]))
    return Probed(fitted, judged, features, usable, present[0], present[1])


def choose_features(held: Held) -> Int[np.ndarray, " feature"]:
    """Features that fire on the judged items, of most energy; ascending."""
    energy = sum(
        np.asarray(half.codes.power(2).sum(axis=0), dtype=np.float64) / len(half.items) for half in (held.image, held.text)
    )
    kept = np.argsort(-np.asarray(energy), kind="stable")[:FEATURES]
    return np.sort(kept[np.asarray(energy)[kept] > 0]).astype(np.int64)


def probe_sparsely(probed: Probed) -> dict[str, Estimate]:
    """Mean AUROC over labels on the judged half: of probes on the k features whose means differ most between items with and
    without the label (SAEBench, arXiv 2503.09532; least squares instead of logistic regression, AUROC instead of accuracy),
    fitted on texts or on images, judged on images; and of dense probes on the raw activations.
    """
    if not len(probed.labels):
        return {}
    sides = {"image": (probed.fitted.image, probed.fitted_present[0]), "text": (probed.fitted.text, probed.fitted_present[1])}
    target, truth = _dense(probed.judged.image, probed.features), probed.judged_present[0]
    found: dict[str, Estimate] = {}
    for name, (half, present) in sides.items():
        z = _dense(half, probed.features)
        for k in SPARSE:
            found[f"{name}_to_image_k{k}"] = _judge(target @ fit_sparse(z, present, k), truth, probed)
        found[f"{name}_to_image_raw"] = _judge(probed.judged.image.x @ fit_ridge(half.x, present), truth, probed)
    return found


def transfer_probes(probed: Probed, maps: Maps) -> dict[str, Estimate]:
    """Mean AUROC on images of probes fitted to codes of texts, the images' codes as they are (`identity`) or brought to text
    features by a map; beside probes fitted to images (`within_images`).
    """
    if not len(probed.labels):
        return {}
    image, text = _dense(probed.fitted.image, probed.features), _dense(probed.fitted.text, probed.features)
    target, truth = _dense(probed.judged.image, probed.features), probed.judged_present[0]
    weights = fit_ridge(text, probed.fitted_present[1])
    scores = {"within_images": target @ fit_ridge(image, probed.fitted_present[0]), "identity": target @ weights}
    scores |= {name: target @ getattr(maps, name) @ weights for name in ("hungarian", "bridge", "shuffled")}
    return {name: _judge(score, truth, probed) for name, score in scores.items()}


def fit_maps(fitted: Held, features: Int[np.ndarray, " feature"]) -> Maps:
    """Maps from image features to text features out of their correlations over these pairs, codes rescaled to the deviation of
    the text feature: the one-to-one matching of the largest sum, and each feature's partners weighted by correlation.
    """
    texts = _dense(fitted.text, features)
    place = np.searchsorted(np.unique(fitted.image.group), fitted.text.group)
    images = _dense(fitted.image, features)[place]
    sides = [one - one.mean(axis=0) for one in (images, texts)]
    deviation = [one.std(axis=0) for one in sides]
    units = [np.nan_to_num(divide(one, spread)) for one, spread in zip(sides, deviation, strict=True)]
    rho = units[0].T @ units[1] / len(texts)
    scale = np.nan_to_num(divide(deviation[1][None, :], deviation[0][:, None]))
    rows, columns = linear_sum_assignment(rho, maximize=True)
    matched = np.zeros_like(rho)
    matched[rows, columns] = 1.0
    shuffled = np.eye(len(features))[np.random.default_rng(fitted.seed).permutation(len(features))]
    return Maps(matched * scale, keep_partners(rho) * scale, shuffled * scale, rho)


def keep_partners(rho: Float[np.ndarray, "_ feature"]) -> Float[np.ndarray, "_ feature"]:
    """Correlations with the strongest partners of each row; the others are 0."""
    n = min(PARTNERS, rho.shape[1])
    least = np.maximum(np.partition(rho, -n, axis=1)[:, [-n]], LEAST_RHO)
    return np.where(rho >= least, rho, 0.0)


def fit_ridge(x: Float[np.ndarray, "item d"], present: Bool[np.ndarray, "item label"]) -> Float[np.ndarray, "d label"]:
    """Weights of a ridge regression on presence, one column per label."""
    rows, target = x - x.mean(axis=0), present - present.mean(axis=0)
    gram = rows.T @ rows
    penalty = RIDGE * max(float(np.trace(gram)) / len(gram), np.finfo(np.float64).tiny)
    return np.linalg.solve(gram + penalty * np.eye(len(gram)), rows.T @ target)


def rank_by_difference(
    z: Float[np.ndarray, "item feature"], present: Bool[np.ndarray, "item label"]
) -> Int[np.ndarray, "rank label"]:
    """Features by |mean with the label - mean without|, the largest first."""
    has = present.astype(np.float64)
    difference = divide(z.T @ has, has.sum(axis=0)) - divide(z.T @ (1 - has), (1 - has).sum(axis=0))
    return np.argsort(-np.abs(np.nan_to_num(difference)), axis=0, kind="stable").astype(np.int64)


def fit_sparse(
    z: Float[np.ndarray, "item feature"], present: Bool[np.ndarray, "item label"], k: int
) -> Float[np.ndarray, "feature label"]:
    """Weights of probes on the k best features of each label, zeros elsewhere."""
    best = rank_by_difference(z, present)[:k]
    weights = np.zeros((z.shape[1], present.shape[1]))
    for label in range(present.shape[1]):
        chosen = best[:, label]
        weights[chosen, label] = fit_ridge(z[:, chosen], present[:, [label]])[:, 0]
    return weights


def _dense(half: Half, features: Int[np.ndarray, " feature"]) -> Float[np.ndarray, "item feature"]:
    return half.codes[:, features].toarray()


def _place(held: Held, part: Held) -> tuple[Int[np.ndarray, " image"], Int[np.ndarray, " text"]]:
    """Positions of a part's items in the whole."""
    return np.searchsorted(held.image.items, part.image.items), np.searchsorted(held.text.items, part.text.items)


def _judge(scores: np.ndarray, truth: np.ndarray, probed: Probed) -> Estimate:
    return estimate(average_auroc(scores, truth, probed.judged.image.weights), len(probed.labels), "labels")


def dense_codes(probed: Probed) -> Sequence[np.ndarray]:
    """Codes of the images that were fitted to and that are judged, of the chosen features."""
    return [_dense(half.image, probed.features) for half in (probed.fitted, probed.judged)]
