"""The cross-modal measures that other work reports, of one dictionary, each beside what re-paired texts would give."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_array

from thresher.analyze.metrics.bridge import BridgeSums, alignment_ratio, bridge_norms, summarize_bridges
from thresher.analyze.metrics.matching import Group, Matching, group_partners, match_one_to_one, weighted_coverage
from thresher.analyze.metrics.modality import average_discrimination, ratio, tell_modality
from thresher.analyze.metrics.needs import normalize_rows
from thresher.analyze.metrics.overlap import cofire_proportion, compare_codes, firing_entropy, measure_overlap
from thresher.analyze.metrics.pairs import Dominance, classify_dominance, score_dominance, sum_dominance
from thresher.analyze.statistics.features import FeatureSums, sum_features
from thresher.analyze.statistics.gram import GramRows, iterate_gram, take_part
from thresher.analyze.statistics.paired import PairSums, find_marginals, sum_pairs
from thresher.analyze.statistics.pairing import Pairing, derange, pair_codes
from thresher.analyze.statistics.partners import Bridging, Walk, walk_gram
from thresher.analyze.statistics.rows import iterate_blocks, release, shape_of

MARGINS = (0.01, 0.05, 0.1, 0.2, 0.3, 0.4)
"""Within this of 0 a modality score makes a feature one of texts, within this of 1 one of images (arXiv 2602.06218: 0.05)."""
PUBLISHED = MARGINS.index(0.05)
TEXT, BOTH, IMAGE = 0, 1, 2
"""Regions of the modality score."""
N_REGIONS = 3
GROUPED = 0.6
"""Least correlation of the partners in a 1:N group, and of matched features whose atoms are compared."""
MATCHED = 4096
"""Features of each side that are matched one to one, those of most energy: the time grows with the 2.3rd power."""
N_PARTNERS = 16
"""Partners of a feature that can be in one group."""


COMPARED = 20_000
"""Pairs whose codes are compared with each other, at most, drawn at random."""


class Items(NamedTuple):
    """Codes of items and which of them belong together."""

    image: csr_array
    """[image, feature]."""
    text: csr_array
    """[text, feature]."""
    pairs: Int[np.ndarray, "pair 2"]
    record: Int[np.ndarray, " image"]
    dictionary: Float[np.ndarray, "feature d_in"]
    pairing: Pairing | None = None
    """The same as a pairing, where it has been made."""


class _Sums(NamedTuple):
    """What every measure here is a closed form of."""

    image: FeatureSums
    text: FeatureSums
    pairs: PairSums
    walk: Walk
    matching: Matching
    groups: list[Group]


def measure_crossmodal(items: Items, seed: int) -> dict[str, Any]:
    """Plain values by measure; `deranged` holds those that depend on the pairing, with texts of other records.

    A walk over the Gram matrix and a one-to-one matching each. Raises AnalysisError when nothing is paired.
    """
    pairing = items.pairing or pair_codes(items.image, items.text, items.pairs, items.record)
    features = sum_features(items.image), sum_features(items.text)
    bridging = Bridging(items.dictionary, label_regions(*features), N_REGIONS)
    sums = _collect(items, pairing, features, bridging)
    deranged = _collect(items, derange(pairing, seed), features, None)
    chosen = _sample(items.pairs, seed)
    image, text = (csr_array(side[chosen[:, c]]) for c, side in enumerate((items.image, items.text)))
    dominance = classify_dominance(score_dominance(add_dominance(items.image, items.text, items.pairs)))
    return {
        "bridge": _describe_bridges(sums),
        "dominance": {name: int((dominance == name).sum()) for name in ("image", "cross", "text", "dead")},
        "discrimination": _describe_discrimination(sums),
        "overlap": compare_codes(image, text, seed)._asdict() | _describe_overlap(sums),
        **_describe_pairing(items, sums),
        "deranged": _describe_pairing(items, deranged),
    }


def _sample(pairs: Int[np.ndarray, "pair 2"], seed: int) -> Int[np.ndarray, "pair 2"]:
    if len(pairs) <= COMPARED:
        return pairs
    return pairs[np.sort(np.random.default_rng(seed).choice(len(pairs), COMPARED, replace=False))]


def add_dominance(image: csr_array, text: csr_array, pairs: Int[np.ndarray, "pair 2"]) -> Dominance:
    """Sums over all pairs of rows of two matrices [item, feature], in blocks."""
    n_features = shape_of(image)[1]
    total = Dominance(np.zeros(n_features), np.zeros(n_features, np.int64))
    for rows in iterate_blocks(len(pairs)):
        part = sum_dominance(csr_array(image[pairs[rows, 0]]), csr_array(text[pairs[rows, 1]]))
        total = Dominance(total.ratio + part.ratio, total.pairs + part.pairs)
        release(image, text)
    return total


def _collect(items: Items, pairing: Pairing, features: tuple[FeatureSums, FeatureSums], bridging: Bridging | None) -> _Sums:
    image, text = features
    pairs = sum_pairs(pairing)
    rows, columns = np.flatnonzero(pairs.image_fires), np.flatnonzero(pairs.text_fires)
    marginals = find_marginals(pairs)
    strong = _strongest(image, rows), _strongest(text, columns)
    found: list[GramRows] = []
    walk = walk_gram(_keep_parts(iterate_gram(pairing, rows, columns), *strong, found), marginals, N_PARTNERS, bridging)
    matching = match_one_to_one(found, marginals, *strong)
    edges = walk.edges
    groups = group_partners(edges.i, edges.j, edges.rho, GROUPED, items.text)
    return _Sums(image, text, pairs, walk, matching, groups)


def _keep_parts(blocks: Iterable[GramRows], image: np.ndarray, text: np.ndarray, kept: list[GramRows]) -> Iterator[GramRows]:
    """The blocks as they are; what they hold of the features `image` x `text` is added to `kept`."""
    for rows in blocks:
        kept.append(take_part(rows, image, text))
        yield rows


def _strongest(sums: FeatureSums, features: np.ndarray) -> np.ndarray:
    return np.sort(features[np.argsort(-sums.energy[features], kind="stable")[:MATCHED]])


def _score(image: FeatureSums, text: FeatureSums) -> Float[np.ndarray, " feature"]:
    return ratio(image.energy / image.n_rows, text.energy / text.n_rows)


def label_regions(image: FeatureSums, text: FeatureSums) -> Int[np.ndarray, "labelling feature"]:
    """TEXT, BOTH or IMAGE by the modality score of the energy, for each of MARGINS; dead features are BOTH."""
    score = np.nan_to_num(_score(image, text), nan=0.5)
    return np.stack([np.where(score < e, TEXT, np.where(score > 1 - e, IMAGE, BOTH)) for e in MARGINS]).astype(np.int64)


def _describe_bridges(sums: _Sums) -> dict[str, Any]:
    bridges = _bridges(sums)
    labels = label_regions(sums.image, sums.text)
    energy = sums.image.energy / sums.image.n_rows + sums.text.energy / sums.text.n_rows
    total = float(energy.sum())
    share = float(energy[labels[PUBLISHED] == BOTH].sum()) / total if total > 0 else 0.0
    score, norms = _score(sums.image, sums.text), bridge_norms(*(part[1] for part in (bridges.rows, bridges.columns)))
    known = np.isfinite(score) & np.isfinite(norms.modality)
    agree = (score[known] > 0.5) == (norms.modality[known] > 0.5)
    names = ("raw", "centred", "absolute")
    return {
        **summarize_bridges(bridges)._asdict(),
        "alignment_ratio": alignment_ratio(bridges.regions[2, PUBLISHED], BOTH, share)._asdict(),
        "alignment_ratio_raw": alignment_ratio(bridges.regions[0, PUBLISHED], BOTH, share)._asdict(),
        "norms_agree_with_score": float(agree.mean()) if known.any() else None,
        "region_margins": list(MARGINS),
        "regions": {name: bridges.regions[which].tolist() for which, name in enumerate(names)},
        "region_order": ["text", "both", "image"],
    }


def _bridges(sums: _Sums) -> BridgeSums:
    assert sums.walk.bridges is not None, "the walk was told to sum them"
    return sums.walk.bridges


def _describe_discrimination(sums: _Sums) -> dict[str, Any]:
    image, text = sums.image, sums.text
    found = tell_modality(image.histogram, image.n_rows, text.histogram, text.n_rows)
    energy = image.energy / image.n_rows + text.energy / text.n_rows
    return {
        "auc": average_discrimination(np.maximum(found.auc, 1 - found.auc), energy),
        "accuracy": average_discrimination(found.accuracy, energy),
    }


def _describe_overlap(sums: _Sums) -> dict[str, Any]:
    """Medians over features that fire on both sides of the pairs."""
    pairs = sums.pairs
    own = measure_overlap(pairs.cofires, pairs.image_fires, pairs.text_fires, pairs.n_pairs)
    both = (pairs.image_fires > 0) & (pairs.text_fires > 0)
    entropy = firing_entropy(np.stack([sums.image.fires / sums.image.n_rows, sums.text.fires / sums.text.n_rows]))
    cofires = cofire_proportion(pairs.cofires, np.stack([pairs.image_fires, pairs.text_fires]))
    return {
        "n_both": int(both.sum()),
        "self_jaccard": _median(own.jaccard[both]),
        "self_lift": _median(own.lift[both]),
        "firing_entropy": _median(entropy[np.isfinite(entropy)]),
        "cofire_proportion_image": _median(cofires[0, both]),
        "cofire_proportion_text": _median(cofires[1, both]),
    }


def _describe_pairing(items: Items, sums: _Sums) -> dict[str, Any]:
    best, matching = sums.walk.best, sums.matching
    is_close = matching.rho >= GROUPED
    atoms = normalize_rows(items.dictionary)
    cosine = (atoms[matching.i] * atoms[matching.j]).sum(1)[is_close]
    sizes = np.array([len(group.text) for group in sums.groups])
    within = np.array([group.jaccard for group in sums.groups])
    return {
        "coverage": {
            "image_by_text": weighted_coverage(best.rho_of_image, sums.image.absolute),
            "text_by_image": weighted_coverage(best.rho_of_text, sums.text.absolute),
        },
        "matching": {
            "n": len(matching.i),
            "mean_rho": float(matching.rho.mean()) if len(matching.i) else None,
            "n_close": int(is_close.sum()),
            "n_close_same_feature": int((is_close & (matching.i == matching.j)).sum()),
            "cosine_of_close": _median(cosine),
        },
        "groups": {
            "n": len(sizes),
            "n_many": int((sizes > 1).sum()),
            "largest": int(sizes.max(initial=0)),
            "jaccard_of_many": _median(within[sizes > 1]),
        },
        "largest_rho": float(sums.walk.edges.rho.max()) if len(sums.walk.edges.rho) else None,
    }


def _median(values: np.ndarray) -> float | None:
    return float(np.median(values)) if len(values) else None
