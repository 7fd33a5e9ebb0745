"""categories.parquet: is the feature that detects a category on images the one that detects it on texts?"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import csr_array

from thresher.analyze.evidence import Present
from thresher.analyze.metrics.grouping import count_columns
from thresher.analyze.metrics.labels import compare_best, detect_labels
from thresher.data.records import Concept

MOST_CATEGORIES = 60


class Categories(NamedTuple):
    """What labels say about features."""

    columns: dict[str, list[Any]]
    """Of categories.parquet, one row per ordered pair of categories."""
    agreement: dict[str, float]
    """Share of categories with the same best feature on images and texts, and chance."""


def survey_categories(
    presence: Mapping[str, Present], items: Mapping[str, csr_array], concepts: Sequence[Concept], min_items: int
) -> Categories | None:
    """Best features by AUROC over scored items, for the categories that both modalities have `min_items` with and without.

    `items` are the codes [item, feature] of the panels. At most 60 categories, those of most items. None with fewer than two.
    """
    if len(presence) < 2:
        return None
    counts = {name: one.concepts.sum(axis=0) for name, one in presence.items()}
    least = np.min([np.minimum(count, len(presence[name].kept) - count) for name, count in counts.items()], axis=0)
    scored = np.flatnonzero(least >= min_items)
    scored = np.sort(scored[np.argsort(-least[scored], kind="stable")[:MOST_CATEGORIES]])
    if len(scored) < 2:
        return None
    rows = {name: csr_array(abs(items[name][one.kept])) for name, one in presence.items()}
    alive = np.unique(np.concatenate([one.indices for one in rows.values()]))
    if len(alive) == 0:
        return None
    auroc = {
        name: detect_labels(csr_array(codes[:, alive]), presence[name].concepts[:, scored]).auroc
        for name, codes in rows.items()
    }
    found = compare_best(auroc["image"], auroc["text"])
    names = [concepts[int(place)].name for place in scored]
    assert count_columns(rows["image"]) == count_columns(rows["text"]), "both are codes of one dictionary"
    columns: dict[str, list[Any]] = {
        name: []
        for name in ("category_image", "category_text", "feature_image", "feature_text", "auroc_image", "auroc_text", "is_same")
    }
    for i, own in enumerate(names):
        for j, other in enumerate(names):
            best_image, best_text = int(found.image[i]), int(found.text[j])
            columns["category_image"].append(own)
            columns["category_text"].append(other)
            columns["feature_image"].append(int(alive[best_image]))
            columns["feature_text"].append(int(alive[best_text]))
            columns["auroc_image"].append(float(auroc["image"][best_image, i]))
            columns["auroc_text"].append(float(auroc["text"][best_image, j]))
            columns["is_same"].append(best_image == best_text)
    return Categories(columns, {"share": found.share, "chance": found.chance, "n": len(names)})
