"""Which feature of the images is which of the texts: one to one, one to many, and how well another dictionary covers one."""

from collections.abc import Iterable
from typing import NamedTuple, cast

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csc_array, csr_array, vstack

from thresher.analyze.metrics.needs import divide, need_items
from thresher.analyze.metrics.pairs import correlate_rows
from thresher.analyze.statistics.gram import GramRows
from thresher.analyze.statistics.paired import Marginals
from thresher.analyze.statistics.rows import iterate_rows
from thresher.errors import AnalysisError

MOST = 16_384
"""Features matched one to one at most: the matrix takes 8 bytes per pair, the time grows with the 2.3rd power."""


class Matching(NamedTuple):
    """Image feature i[n] with text feature j[n], each at most once; ascending i."""

    i: Int[np.ndarray, " match"]
    j: Int[np.ndarray, " match"]
    rho: Float[np.ndarray, " match"]
    """Correlation of the two over pairs, signed."""


def match_one_to_one(
    blocks: Iterable[GramRows], marginals: Marginals, image: Int[np.ndarray, " row"], text: Int[np.ndarray, " column"]
) -> Matching:
    """The one-to-one matching of features with the largest sum of correlations (Hungarian). Measure D7.

    `blocks` is the Gram matrix of the features `image` x `text`, which should be alive: a dead feature has no partner, and the
    assignment would give it one all the same. Correlations are signed: features that exclude each other do not match.
    Raises AnalysisError for more than MOST features on a side; then choose those of most energy.
    """
    if max(len(image), len(text)) > MOST:
        raise AnalysisError(
            f"{len(image)} x {len(text)} features cannot be matched one to one; choose the {MOST} of most energy"
        )
    rho = np.zeros((len(image), len(text)))
    start = 0
    for rows in blocks:
        rho[start : start + len(rows.image)] = correlate_rows(rows, marginals)
        start += len(rows.image)
    i, j = linear_sum_assignment(rho, maximize=True)
    return Matching(image[i], text[j], rho[i, j])


class Group(NamedTuple):
    """An image feature and the text features that go with it."""

    image: int
    text: Int[np.ndarray, " member"]
    jaccard: float
    """Mean Jaccard of the firing sets of two members: near 0 when one feature was split into cases, near 1 when they are twins.
    NaN for a single member."""


def group_partners(
    i: Int[np.ndarray, " edge"],
    j: Int[np.ndarray, " edge"],
    rho: Float[np.ndarray, " edge"],
    least_rho: float,
    texts: csr_array,
) -> list[Group]:
    """1:N groups: text features with rho >= `least_rho` to an image feature, and how far the members fire together. D7.

    `texts` are the codes of the texts [row, feature]. For N:1 groups exchange the roles.
    """
    chosen = rho >= least_rho
    i, j = i[chosen], j[chosen]
    if len(i) == 0:
        return []
    order = np.lexsort((j, i))
    i, j = i[order], j[order]
    heads, first, counts = np.unique(i, return_index=True, return_counts=True)
    members = np.split(j, first[1:])
    # A single member has nothing to be compared with, so its codes are not read.
    wanted = np.unique(np.concatenate([j[:0], *(some for some in members if len(some) > 1)]))
    by_feature = csc_array(vstack([texts[rows][:, wanted] for rows in iterate_rows(texts)], format="csc"))
    within = [
        _within(csc_array(by_feature[:, np.searchsorted(wanted, some)])) if n > 1 else float("nan")
        for some, n in zip(members, counts, strict=True)
    ]
    return [Group(int(head), some, jaccard) for head, some, jaccard in zip(heads, members, within, strict=True)]


def _within(codes: csc_array) -> float:
    """Mean Jaccard of the firing sets of every two columns."""
    fired = csc_array((np.ones(codes.nnz), codes.indices, codes.indptr), shape=codes.shape)
    both = cast(csc_array, fired.T @ fired).toarray()
    count = np.diag(both)
    above = np.triu_indices(len(count), 1)
    if len(above[0]) == 0:
        return float("nan")
    either = (count[:, None] + count[None] - both)[above]
    return float(np.nan_to_num(divide(both[above], either)).mean())


def weighted_coverage(best: Float[np.ndarray, " feature"], weight: Float[np.ndarray, " feature"]) -> float:
    """wMPPC(A -> B) = sum_i w_i max_j rho_ij / sum_i w_i with w_i = sum_n z_i(n) (arXiv 2507.18512). Measure D11.

    `best` is max_j rho_ij (NaN without a partner counts as 0). It grows with the width of B and with 1 / sqrt(n): compare with
    the same on deranged pairs. Signed codes: give sums of |z| as the weight.
    """
    total = float(weight.sum())
    return float((np.nan_to_num(best) * weight).sum()) / total if total > 0 else float("nan")


def comparative_sharedness(
    score: Float[np.ndarray, " feature"],
    like: Float[np.ndarray, "model feature"],
    unlike: Float[np.ndarray, "other feature"],
) -> Float[np.ndarray, " feature"]:
    """Delta_i = S_i (min_G r_i^2 - max_H r_i^2), r_i the best correlation of feature i with a feature of another model. D11.

    Large when every model of G has the feature and none of H (arXiv 2507.18512). The published code starts the minimum at
    0, where it stays; it starts at infinity here. Raises AnalysisError without a model in G or H.
    """
    for name, group in (("like", like), ("unlike", unlike)):
        need_items(f"comparative sharedness ({name})", len(group), 1, "models")
    return score * ((np.nan_to_num(like) ** 2).min(axis=0) - (np.nan_to_num(unlike) ** 2).max(axis=0))
