"""Do features predict labels? Every (feature, label) pair at every threshold, without training anything."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_array

from thresher.analyze.metrics.grouping import count_columns, count_rows
from thresher.analyze.metrics.needs import divide, need_equal, need_items, normalize_rows


class Detection(NamedTuple):
    """What thresholding the code of each feature says about each label; NaN for labels with no item, or on all items."""

    auroc: Float[np.ndarray, "feature label"]
    """P(code of a random item with the label > of one without), ties half; 0.5 by chance and for dead features."""
    f1: Float[np.ndarray, "feature label"]
    """Of the best threshold. Has a base rate: calling every item present scores 2p / (1 + p)."""
    accuracy: Float[np.ndarray, "feature label"]
    """max over thresholds of P([z > t] = y) (soft identifiability, arXiv 2502.12892). Floor: max(p, 1 - p)."""
    balanced: Float[np.ndarray, "feature label"]
    """max over thresholds of the mean of both classes' recall; floor 0.5. Chosen on the items it is judged on."""


def detect_labels(codes: csr_array, labels: Bool[np.ndarray, "item label"]) -> Detection:
    """Scores of each feature (column of codes [item, d_sae]) as a detector of each label.

    The sign counts: an item of a negative code comes after those of 0. Every distinct value of a feature is a threshold, the
    zeros are one block. Costs O(nnz * label) plus the sorting. Raises AnalysisError: codes and labels of different items.
    """
    need_equal("label tests", "items of codes and labels", count_rows(codes), len(labels))
    need_items("label tests", len(labels), 2, "items")
    columns = codes.tocsc()
    columns.eliminate_zeros()
    present = labels.sum(axis=0).astype(np.float64)
    n_features, n_labels = count_columns(codes), labels.shape[1]
    found = np.empty((4, n_features, n_labels))
    for feature in range(n_features):
        part = slice(columns.indptr[feature], columns.indptr[feature + 1])
        found[:, feature] = _sweep(columns.data[part], labels[columns.indices[part]], present, len(labels))
    found[:, :, (present == 0) | (present == len(labels))] = np.nan
    return Detection(*found)


class Purity(NamedTuple):
    """The class that most of a feature's firing items have."""

    share: Float[np.ndarray, " feature"]
    """max_c n_ic / n_i; NaN for dead features. A feature that fired once has purity 1."""
    label: Int[np.ndarray, " feature"]
    """That class; -1 for dead features."""
    lift: Float[np.ndarray, " feature"]
    """Share divided by how frequent that class is among all items; 1 by chance."""


def measure_purity(codes: csr_array, present: Bool[np.ndarray, "item class"]) -> Purity:
    """Purity of firing (z != 0) by the classes that are present in each item, one or several.

    A class that is on every item makes any feature pure: give classes that exclude each other, or the leaves of a tree.
    Raises AnalysisError: codes and classes differ in items.
    """
    need_equal("class purity", "items of codes and labels", count_rows(codes), len(present))
    counts = count_labels(codes, present.astype(np.float64))
    total, best = np.bincount(codes.indices, minlength=count_columns(codes)), counts.argmax(axis=1)
    share = divide(counts.max(axis=1), total)
    return Purity(share, np.where(total > 0, best, -1).astype(np.int64), divide(share, present.mean(axis=0)[best]))


def label_jaccard(
    image: Float[np.ndarray, "feature label"],
    text: Float[np.ndarray, "feature label"],
    n_image: Float[np.ndarray, " label"],
    n_text: Float[np.ndarray, " label"],
) -> Float[np.ndarray, " feature"]:
    """J_i = sum_c min(c, c') / sum_c max(c, c') of how often the feature fires per label on images and on texts. Measure D10.

    Counts become rates per label first (`n_image`, `n_text`: items with each label), since counts depend on how many captions
    an image has. NaN where it fires on no labelled item. As SPARC does (github AtlasAnalyticsLab/SPARC), there with counts.
    """
    one, other = np.nan_to_num(divide(image, n_image)), np.nan_to_num(divide(text, n_text))
    return divide(np.minimum(one, other).sum(axis=1), np.maximum(one, other).sum(axis=1))


def count_labels(codes: csr_array, labels: Float[np.ndarray, "item label"]) -> Float[np.ndarray, "feature label"]:
    """Items with each label on which each feature fires; what `label_jaccard` compares."""
    fired = csr_array((np.ones(codes.nnz), codes.indices, codes.indptr), shape=codes.shape)
    return np.asarray(fired.T @ labels)


class Agreement(NamedTuple):
    """Do both modalities have the same best feature for a label?"""

    image: Int[np.ndarray, " label"]
    """Best feature on images; -1 for labels without a score."""
    text: Int[np.ndarray, " label"]
    share: float
    """Share of scored labels whose best features are equal."""
    chance: float
    """The same when labels of the text side are shuffled among the scored ones: what a few universal features would give."""


def compare_best(image: Float[np.ndarray, "feature label"], text: Float[np.ndarray, "feature label"]) -> Agreement:
    """Does the same feature detect a category best on images and on texts (SPARC's test on COCO's 80 categories)?

    Takes any score of `detect_labels`, one per modality. Chance is the expectation over all permutations of the labels.
    Raises AnalysisError: no label has a score on both sides.
    """
    is_scored = np.isfinite(image).all(axis=0) & np.isfinite(text).all(axis=0)
    need_items("agreement of best features", int(is_scored.sum()), 1, "labels with a score on images and on texts")
    best = [np.where(is_scored, np.nan_to_num(score, nan=-np.inf).argmax(axis=0), -1) for score in (image, text)]
    kept = [one[is_scored] for one in best]
    n_features, n = len(image), int(is_scored.sum())
    counts = [np.bincount(one, minlength=n_features).astype(np.float64) for one in kept]
    return Agreement(best[0], best[1], float((kept[0] == kept[1]).mean()), float(counts[0] @ counts[1]) / n**2)


def measure_plausibility(
    dictionary: Float[np.ndarray, "d_sae d_in"], classes: Float[np.ndarray, "class width"]
) -> Float[np.ndarray, " class"]:
    """max_j cos(v_c, d_j) per class vector; their mean is the plausibility of arXiv 2502.12892 (section 5.2).

    For CLIP the class vectors are zero-shot ones, in the space of the dictionary and with their mean off. Grows with the
    size of the dictionary: compare with random atoms. Raises AnalysisError: widths differ.
    """
    need_equal("plausibility", "widths of dictionary and classes", dictionary.shape[1], classes.shape[1])
    return (normalize_rows(classes) @ normalize_rows(dictionary).T).max(axis=1)


def _sweep(values: np.ndarray, has: np.ndarray, present: np.ndarray, n: int) -> np.ndarray:
    """The four scores of one feature [4, label]: items in descending order, groups of equal values together."""
    order = np.argsort(-values, kind="stable")
    values, has = values[order], has[order].astype(np.float64)
    n_above = int((values > 0).sum())
    zeros = (present - has.sum(axis=0))[None]
    positives = np.cumsum(np.concatenate([np.zeros_like(zeros), has[:n_above], zeros, has[n_above:]]), axis=0)
    size = np.cumsum(np.concatenate([[0], np.ones(n_above), [n - len(values)], np.ones(len(values) - n_above)]))
    sorted_values = np.concatenate([values[:n_above], [0.0], values[n_above:]])
    ends = np.concatenate([[True], np.append(sorted_values[1:] != sorted_values[:-1], True)])
    hit, called = positives[ends], size[ends][:, None]
    alarm, absent = called - hit, n - present
    with np.errstate(divide="ignore", invalid="ignore"):
        area = ((alarm[1:] - alarm[:-1]) * (hit[1:] + hit[:-1])).sum(axis=0) / 2 / (present * absent)
        f1 = (2 * hit / np.maximum(called + present, 1)).max(axis=0)
        accuracy = ((hit + absent - alarm) / n).max(axis=0)
        balanced = ((hit / present + (absent - alarm) / absent) / 2).max(axis=0)
    return np.stack([area, f1, accuracy, balanced])
