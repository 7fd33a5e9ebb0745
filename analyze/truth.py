"""Scoring against ground truth: which features track which concepts, and whether their modality class is right."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_array

from thresher.analyze.metrics.association import Contingency, chance_of, control_false_discoveries, count_together, phi
from thresher.analyze.metrics.estimate import Estimate, estimate
from thresher.analyze.metrics.modality import DEAD, IMAGE, SHARED, TEXT, UNDECIDED
from thresher.data.records import Concept

CLASSES = (SHARED, IMAGE, TEXT)
"""The classes that can be right or wrong."""
CELLS_AT_ONCE = 2_000_000
"""Numbers per temporary array of the bootstrap: 16 MB at most."""


class Evidence(NamedTuple):
    """What happened on the held-out items of one modality, one item per record (so that items are independent)."""

    fired: csr_array
    """1 where a feature fires anywhere in the item [item, feature]."""
    present: Bool[np.ndarray, "item concept"]
    """Concepts in the item, parents included."""
    weights: Float[np.ndarray, "replicate item"]
    """Bootstrap weights of the item's record; line 0 is ones."""


class Rule(NamedTuple):
    """When a feature counts as tracking a concept."""

    min_score: float
    """Least phi."""
    alpha: float
    """False discovery rate over all pairs of feature and concept."""
    min_items: int
    """Concepts with fewer items with or without them are not scored."""


class Tracking(NamedTuple):
    """How well each feature tracks each concept; a concept that cannot be scored in a modality has 0 and False."""

    phi: Float[np.ndarray, "2 feature concept"]
    """On images, on texts."""
    q: Float[np.ndarray, "2 feature concept"]
    """Share of false calls expected among all pairs that are at least as significant."""
    detects: Bool[np.ndarray, "2 feature concept"]
    """phi >= min_score and q <= alpha."""
    testable: Bool[np.ndarray, "2 concept"]
    """Concepts with enough items with and without them."""


class Matches(NamedTuple):
    """The concept that each feature tracks best, in whichever modality it does."""

    concept: Int[np.ndarray, " feature"]
    """-1 for features that track none."""
    modality: Int[np.ndarray, " feature"]
    """Where it tracks it best: 0 images, 1 texts; -1 for none."""


class ClassScore(NamedTuple):
    """Precision and recall of one class."""

    precision: Estimate
    """Of the matched features of this class, the share whose concept truly has this visibility."""
    precision_by_chance: float | None
    """What precision would be if each of these features tracked a random concept of the modality it was matched in."""
    recall: Estimate
    """Of the scorable concepts of this visibility, the share tracked by a feature of this class in every modality that
    shows the concept."""


class TruthScore(NamedTuple):
    """All of it, for one dictionary."""

    tracking: Tracking
    matches: Matches
    classes: dict[str, ClassScore]
    n_undecided: int
    """Matched features whose class is undecided: in no precision, in no recall."""
    same_concept: Estimate
    """Of the matched features classed shared, the share that tracks its concept on images AND on texts. The others fire
    on both for different reasons."""
    n_matched: int
    n_matched_shuffled: float
    """Matched features when items are shuffled against the ground truth: what chance finds."""


def score_truth(
    image: Evidence, text: Evidence, concepts: Sequence[Concept], classes: np.ndarray, rule: Rule, shuffles: Sequence[int]
) -> TruthScore:
    """Match features to concepts and score their classes; `shuffles` are the seeds of the shuffled controls.

    A feature tracks a concept when it fires where the concept is and nowhere else (phi), within ONE modality: pooled over
    both, every image-only feature would correlate with every image-only concept, only because both are in images. The
    test is exact under shuffling of items (hypergeometric) and controls the false discovery rate over all pairs.

    What the scores can show: whether the modality class of features that track something is right. What they cannot:
    that features without a match mean nothing (the truth may lack their concept, or they may code combinations of
    concepts), nor how other training runs would do: intervals resample records, with classes and dictionary fixed.
    Features classed image can only track concepts that images show, so precision has a floor: `precision_by_chance`.
    """
    found = track((image, text), rule)
    matches = match(found, order_by_depth(concepts))
    visibility = np.array([concept.visibility for concept in concepts])
    replicates = _replicate(image, text, found, rule, classes, visibility, order_by_depth(concepts))
    is_matched = matches.concept >= 0
    shared = int((is_matched & (classes == SHARED)).sum())
    shuffled = [_count_shuffled((image, text), rule, seed) for seed in shuffles]
    return TruthScore(
        tracking=found,
        matches=matches,
        classes={c: _score_class(c, replicates, found, matches, classes, visibility) for c in CLASSES},
        n_undecided=int((is_matched & (classes == UNDECIDED)).sum()),
        same_concept=estimate(replicates.same_concept, shared, "matched features"),
        n_matched=int(is_matched.sum()),
        n_matched_shuffled=float(np.mean(shuffled)) if shuffled else float("nan"),
    )


def track(evidence: tuple[Evidence, Evidence], rule: Rule) -> Tracking:
    """Phi of every feature with every concept on images and on texts, and which pairs stand out."""
    scores, chances, testable = [], [], []
    for one in evidence:
        counts = count_together(one.fired, one.present, one.weights[:1])
        n, present, fired = counts.n[0], counts.concept[0], counts.feature[0]
        can_test = np.minimum(present, n - present) >= rule.min_items
        score = np.where(can_test, phi(counts)[0], 0.0)
        # Pairs far below the threshold are never called: chance 1 for them only makes the correction stricter.
        rows, columns = np.nonzero(score >= rule.min_score / 2)
        chance = np.ones_like(score)
        chance[rows, columns] = chance_of(counts.both[0][rows, columns], fired[rows], present[columns], n)
        chance[:, ~can_test] = np.nan
        chance[fired == 0] = np.nan
        scores.append(score)
        chances.append(chance)
        testable.append(can_test)
    chance = np.stack(chances)
    q = np.ones_like(chance)
    tested = np.isfinite(chance)
    q[tested] = control_false_discoveries(chance[tested])
    score = np.stack(scores)
    return Tracking(score, q, (score >= rule.min_score) & (q <= rule.alpha), np.stack(testable))


def match(found: Tracking, order: Int[np.ndarray, " concept"]) -> Matches:
    """The detected concept of greatest phi per feature; of equals the first in `order`."""
    return _match(np.where(found.detects, found.phi, 0.0), order)


def order_by_depth(concepts: Sequence[Concept]) -> Int[np.ndarray, " concept"]:
    """Concept indices, children before their parents: the more specific of two equally good ones is named."""
    depth = [len(list(_ancestors(concepts, index))) for index in range(len(concepts))]
    return np.argsort(-np.array(depth, dtype=np.int64), kind="stable").astype(np.int64)


def close_upward(stated: Sequence[Sequence[int]], concepts: Sequence[Concept]) -> Bool[np.ndarray, "item concept"]:
    """Presence of concepts in items, with all ancestors of what is stated."""
    present = np.zeros((len(stated), len(concepts)), dtype=bool)
    family = [[index, *_ancestors(concepts, index)] for index in range(len(concepts))]
    for row, found in enumerate(stated):
        for index in found:
            present[row, family[index]] = True
    return present


def one_per_record(record: Int[np.ndarray, " item"], seed: int) -> Int[np.ndarray, " kept"]:
    """Items such that each record has one, drawn at random: captions of one image are not independent evidence."""
    shuffled = np.random.default_rng(seed).permutation(len(record))
    _, first = np.unique(record[shuffled], return_index=True)
    return np.sort(shuffled[first])


def _ancestors(concepts: Sequence[Concept], index: int) -> Iterator[int]:
    by_name = {concept.name: position for position, concept in enumerate(concepts)}
    parent = concepts[index].parent
    while parent is not None:
        yield by_name[parent]
        parent = concepts[by_name[parent]].parent


def _match(score: Float[np.ndarray, "2 feature concept"], order: Int[np.ndarray, " concept"]) -> Matches:
    either = score.max(axis=0)
    concept = order[either[:, order].argmax(axis=1)]
    features = np.arange(len(concept))
    modality = score[:, features, concept].argmax(axis=0)
    is_matched = either[features, concept] > 0
    return Matches(np.where(is_matched, concept, -1), np.where(is_matched, modality, -1))


class _Replicates(NamedTuple):
    """Line 0 is the data as they are."""

    precision: dict[str, np.ndarray]
    recall: dict[str, np.ndarray]
    same_concept: np.ndarray


def _replicate(
    image: Evidence,
    text: Evidence,
    found: Tracking,
    rule: Rule,
    classes: np.ndarray,
    visibility: np.ndarray,
    order: Int[np.ndarray, " concept"],
) -> _Replicates:
    """Precision and recall in every resample, features matched anew in each; only pairs significant in the data count."""
    significant = (found.q <= rule.alpha) & found.testable[:, None, :]
    kept = np.flatnonzero(significant.any(axis=(0, 2)))
    n_replicates, n_concepts = len(image.weights), len(visibility)
    precision = {c: np.full(n_replicates, np.nan) for c in CLASSES}
    recall = {c: np.full(n_replicates, np.nan) for c in CLASSES}
    same = np.full(n_replicates, np.nan)
    step = max(1, CELLS_AT_ONCE // (n_concepts * max(len(kept), len(image.present), len(text.present))))
    scorable = find_scorable(found, visibility)
    for start in range(0, n_replicates, step):
        lines = slice(start, start + step)
        scores = [np.where(significant[m][kept], phi(_count(one, kept, lines)), 0.0) for m, one in enumerate((image, text))]
        for offset, pair in enumerate(zip(*scores, strict=True)):
            score = np.where(np.stack(pair) >= rule.min_score, np.stack(pair), 0.0)
            line = start + offset
            matches = _match(score, order)
            for c in CLASSES:
                mine = classes[kept] == c
                precision[c][line] = _mean(np.equal(visibility[matches.concept[mine & (matches.concept >= 0)]], c))
                recall[c][line] = _mean(np.any(recovers(score > 0, visibility)[mine][:, scorable & (visibility == c)], axis=0))
            shared = (classes[kept] == SHARED) & (matches.concept >= 0)
            same[line] = _mean(np.all(score[:, shared, matches.concept[shared]] > 0, axis=0))
    return _Replicates(precision, recall, same)


def recovers(detects: Bool[np.ndarray, "2 feature concept"], visibility: np.ndarray) -> Bool[np.ndarray, "feature concept"]:
    """Whether a feature tracks a concept in every modality that shows it (both, for shared concepts)."""
    on_images, on_texts = detects
    return np.where(visibility == IMAGE, on_images, np.where(visibility == TEXT, on_texts, on_images & on_texts))


def find_scorable(found: Tracking, visibility: np.ndarray) -> Bool[np.ndarray, " concept"]:
    """Concepts with enough items in every modality that shows them."""
    return recovers(found.testable[:, None, :], visibility)[0]


def _score_class(
    name: str, replicates: _Replicates, found: Tracking, matches: Matches, classes: np.ndarray, visibility: np.ndarray
) -> ClassScore:
    members = (classes == name) & (matches.concept >= 0)
    shares = [_mean(np.equal(visibility[found.testable[m]], name)) for m in (0, 1)]
    by_chance = _mean(np.array([shares[m] for m in matches.modality[members]]))
    n_concepts = int((find_scorable(found, visibility) & (visibility == name)).sum())
    return ClassScore(
        precision=estimate(replicates.precision[name], int(members.sum()), "matched features"),
        precision_by_chance=by_chance if np.isfinite(by_chance) else None,
        recall=estimate(replicates.recall[name], n_concepts, "concepts"),
    )


def _count(one: Evidence, features: Int[np.ndarray, " kept"], lines: slice) -> Contingency:
    return count_together(one.fired[:, features], one.present, one.weights[lines])


def _count_shuffled(evidence: tuple[Evidence, Evidence], rule: Rule, seed: int) -> float:
    """Features that match something when the ground truth belongs to other items."""
    generator = np.random.default_rng(seed)
    image, text = (one._replace(present=one.present[generator.permutation(len(one.present))]) for one in evidence)
    return float(track((image, text), rule).detects.any(axis=(0, 2)).sum())


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float("nan")


def count_classes(classes: np.ndarray) -> dict[str, int]:
    """How many features each class has, dead ones included."""
    return {name: int((classes == name).sum()) for name in (SHARED, IMAGE, TEXT, UNDECIDED, DEAD)}
