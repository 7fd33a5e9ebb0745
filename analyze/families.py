"""Parents and children: does a feature stand for a whole family of concepts, or for one member?"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from thresher.analyze.metrics.association import count_together
from thresher.analyze.truth import Evidence, Matches, Tracking
from thresher.data.records import Concept

MODALITIES = ("image", "text")


class Family(NamedTuple):
    """One parent concept with two or more scorable children."""

    parent: str
    n_children: int
    parent_features: int
    """Features that track the parent better than any of its children."""
    child_features: int
    """Features that track one of the children best."""
    children_with_feature: int
    """Children that have such a feature of their own."""
    best_feature: int
    """The feature that tracks the parent best, -1 when none does."""
    modality: str
    """Where it does."""
    phi: float
    """How well; NaN when none does."""
    least_child: str
    """The child on which that feature fires most rarely."""
    least_recall: float
    """How often it fires on that child's items. Far below its recall on the family: a hole, as absorption makes them."""
    family_recall: float
    """How often it fires on all of the family's items."""


def describe_families(
    image: Evidence, text: Evidence, concepts: Sequence[Concept], found: Tracking, matches: Matches
) -> list[Family]:
    """One entry per parent concept. Recall counts firing, so a feature that always fires has no holes: read phi first."""
    recalls = [_recall(one) for one in (image, text)]
    families: list[Family] = []
    for parent, concept in enumerate(concepts):
        children = [i for i, other in enumerate(concepts) if other.parent == concept.name and found.testable[:, i].any()]
        if len(children) >= 2:
            families.append(_describe(parent, children, concepts, found, matches, recalls))
    return families


def _describe(
    parent: int,
    children: Sequence[int],
    concepts: Sequence[Concept],
    found: Tracking,
    matches: Matches,
    recalls: Sequence[Float[np.ndarray, "feature concept"]],
) -> Family:
    per_child = [int((matches.concept == child).sum()) for child in children]
    score = np.where(found.detects[:, :, parent], found.phi[:, :, parent], 0.0)
    modality, feature = (int(i) for i in np.unravel_index(int(score.argmax()), score.shape))
    none = score[modality, feature] == 0
    recall = recalls[modality][feature]
    seen = [child for child in children if found.testable[modality, child]] or list(children)
    least = min(seen, key=lambda child: recall[child])
    return Family(
        parent=concepts[parent].name,
        n_children=len(children),
        parent_features=int((matches.concept == parent).sum()),
        child_features=sum(per_child),
        children_with_feature=sum(n > 0 for n in per_child),
        best_feature=-1 if none else feature,
        modality="" if none else MODALITIES[modality],
        phi=float("nan") if none else float(score[modality, feature]),
        least_child="" if none else concepts[least].name,
        least_recall=float("nan") if none else float(recall[least]),
        family_recall=float("nan") if none else float(recall[parent]),
    )


def _recall(one: Evidence) -> Float[np.ndarray, "feature concept"]:
    """P(the feature fires | the concept is present), 0 for concepts that never are."""
    counts = count_together(one.fired, one.present, one.weights[:1])
    return counts.both[0] / np.maximum(counts.concept[0], 1)
