"""Does a model behave the same with reconstructions? Loss and divergence recovered, zero-shot, retrieval."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import log_softmax

from thresher.analyze.metrics.needs import divide, need_equal, need_items, normalize_rows

ROWS_AT_ONCE = 2048


def recover_share(
    clean: Float[np.ndarray, "*any"], spliced: Float[np.ndarray, "*any"], ablated: Float[np.ndarray, "*any"]
) -> Float[np.ndarray, "*any"]:
    """(ablated - spliced) / (ablated - clean): 1 when the reconstruction does no damage, 0 when as much as the ablation.

    For losses, "CE recovered" of SAEBench (arXiv 2503.09532), which ablates to zero; zeros damage a model so much that almost
    anything recovers from them, so give it the ablation to the mean too. For divergences from the clean model, `clean` is 0:
    (KL_ablated - KL_spliced) / KL_ablated. NaN where the ablation does no damage. Negative when splicing is worse.
    """
    damage = ablated - clean
    return divide(ablated - spliced, np.where(damage > 0, damage, np.nan))


def diverge(logits: Float[np.ndarray, "row class"], changed: Float[np.ndarray, "row class"]) -> Float[np.ndarray, " row"]:
    """KL(softmax(logits) || softmax(changed)) of each row, in nats."""
    clean = log_softmax(np.asarray(logits, dtype=np.float64), axis=1)
    return (np.exp(clean) * (clean - log_softmax(np.asarray(changed, dtype=np.float64), axis=1))).sum(axis=1)


class ZeroShot(NamedTuple):
    """Zero-shot classification with reconstructions in place of the image embeddings."""

    correct: Bool[np.ndarray, " row"]
    """Whether the right class has the largest cosine with x_hat; a tie counts as wrong."""
    correct_before: Bool[np.ndarray, " row"]
    """The same with x."""
    agrees: Bool[np.ndarray, " row"]
    """Whether x and x_hat have the same best class."""
    divergence: Float[np.ndarray, " row"]
    """KL(softmax(logit_scale * cos(x, c)) || softmax(logit_scale * cos(x_hat, c))), nats."""


def classify_zero_shot(
    x: Float[np.ndarray, "row d_in"],
    x_hat: Float[np.ndarray, "row d_in"],
    classes: Float[np.ndarray, "class width"],
    label: Int[np.ndarray, " row"],
    logit_scale: float,
) -> ZeroShot:
    """CLIP's zero-shot protocol (arXiv 2103.00020) on embeddings and on their reconstructions.

    All vectors are in the model's own units (un-normalise reconstructions before) and get unit norm here. `logit_scale` is
    the model's, about 100 for CLIP; a bias as SigLIP has changes neither cosines nor the softmax. A reconstruction of length
    zero is tied among all classes, hence wrong. Raises AnalysisError: fewer than 2 classes, or widths differ.
    """
    need_items("zero-shot classification", len(classes), 2, "classes")
    need_equal("zero-shot classification", "widths of embeddings and classes", x.shape[1], classes.shape[1])
    directions = normalize_rows(classes).T
    before, after = normalize_rows(x) @ directions, normalize_rows(x_hat) @ directions
    return ZeroShot(
        correct=_is_best(after, label),
        correct_before=_is_best(before, label),
        agrees=before.argmax(axis=1) == after.argmax(axis=1),
        divergence=diverge(logit_scale * before, logit_scale * after),
    )


def rank_partners(
    queries: Float[np.ndarray, "query d"],
    targets: Float[np.ndarray, "target d"],
    query_group: Int[np.ndarray, " query"],
    target_group: Int[np.ndarray, " target"],
) -> Int[np.ndarray, " query"]:
    """Rank of the best target of each query's own group by cosine, 1 = first, among all targets.

    Five captions of one image share its group: any of them counts, and the others do not push it down. A target of another
    group that is exactly as similar is ranked before, so codes that collapsed to one point score worst instead of best.
    Blocks of queries bound the memory. Raises AnalysisError: a query without a target of its group.
    """
    if not np.isin(query_group, target_group).all():
        missing = int((~np.isin(query_group, target_group)).sum())
        need_items("retrieval", len(query_group) - missing, len(query_group), "queries with a target of their own group")
    wanted, ranks = normalize_rows(targets).T, np.empty(len(queries), dtype=np.int64)
    for start in range(0, len(queries), ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        cosine = normalize_rows(queries[part]) @ wanted
        own = query_group[part, None] == target_group[None, :]
        best = np.where(own, cosine, -np.inf).max(axis=1, keepdims=True)
        # Equal vectors have equal cosines only up to rounding in a matrix product.
        ranks[part] = 1 + ((cosine >= best - 1e-12) & ~own).sum(axis=1)
    return ranks


def _is_best(cosine: np.ndarray, label: np.ndarray) -> np.ndarray:
    right = np.take_along_axis(cosine, label[:, None], axis=1)
    return (cosine >= right - 1e-12).sum(axis=1) == 1
