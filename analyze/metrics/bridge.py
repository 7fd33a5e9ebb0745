"""The bridge matrix: which pairs of features carry the similarity of an image and its text.

With x = sum_i z_i d_i the reconstruction without its bias, <x^image, x^text> = sum_ij z_i^image z_j^text <d_i, d_j>. So a mean
over pairs divides exactly among pairs of features. Signed codes: as they are; the identities hold for any sign.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from thresher.analyze.statistics.gram import GramRows
from thresher.analyze.statistics.paired import Marginals

N_TOP = 200
"""How many of the strongest bridges the summary averages."""


def uncentred_bridge(
    products: Float[np.ndarray, "*#any"], n_pairs: float, inner: Float[np.ndarray, "*#any"]
) -> Float[np.ndarray, "*#any"]:
    """B_ij = E_pair[z_i^image z_j^text] <d_i, d_j>, the BridgeScore of arXiv 2504.11695. Measure D3; only to reproduce.

    sum_ij B_ij = E_pair[<x^image, x^text>]. Independent codes have it too: it ranks frequent features, not bridges.
    """
    return products * (inner / n_pairs)


def centred_bridge(
    products: Float[np.ndarray, "*#any"],
    n_pairs: float,
    image_mean: Float[np.ndarray, "*#any"],
    text_mean: Float[np.ndarray, "*#any"],
    inner: Float[np.ndarray, "*#any"],
) -> Float[np.ndarray, "*#any"]:
    """Bc_ij = (E_pair[z_i^image z_j^text] - E_pair[z_i^image] E_pair[z_j^text]) <d_i, d_j>. Measure D3.

    sum_ij Bc_ij = E_pair[<x^image, x^text>] - <E_pair x^image, E_pair x^text>: the contrastive margin, matched minus unmatched.
    """
    centred = products / n_pairs
    centred -= image_mean * text_mean
    centred *= inner
    return centred


class BridgeSums(NamedTuple):
    """Sums over all pairs of features of the bridge matrix B and the centred one, Bc."""

    uncentred: float
    """sum B."""
    centred: float
    """sum Bc, the margin."""
    absolute: float
    """sum |Bc|."""
    square: float
    """sum Bc^2."""
    own: float
    """sum Bc_ii, features with themselves."""
    rows: Float[np.ndarray, "2 feature"]
    """sum_j |B_ij| and sum_j |Bc_ij| of each image feature."""
    columns: Float[np.ndarray, "2 feature"]
    """The same over i, of each text feature."""
    regions: Float[np.ndarray, "3 labelling label label"]
    """sum of |B|, of Bc and of |Bc| by the labels of (i, j)."""
    strongest: Float[np.ndarray, " bridge"]
    """The largest |Bc|, descending."""


def start_bridges(n_features: int, n_labellings: int, n_labels: int) -> BridgeSums:
    """Sums of nothing yet, for so many labellings of features by so many labels."""
    regions = np.zeros((3, n_labellings, n_labels, n_labels))
    return BridgeSums(0.0, 0.0, 0.0, 0.0, 0.0, np.zeros((2, n_features)), np.zeros((2, n_features)), regions, np.zeros(0))


def add_bridges(
    sums: BridgeSums,
    rows: GramRows,
    marginals: Marginals,
    dictionary: Float[np.ndarray, "feature d_in"],
    labels: Int[np.ndarray, "labelling feature"],
) -> BridgeSums:
    """The sums after a further block of the Gram matrix. `labels` gives each feature a small number, in several ways."""
    inner = dictionary[rows.image] @ dictionary[rows.text].T
    raw = uncentred_bridge(rows.products, marginals.n, inner)
    means = marginals.image[rows.image, None], marginals.text[None, rows.text]
    centred = centred_bridge(rows.products, marginals.n, *means, inner)
    # Not `vdot`: its bits depend on the number of threads.
    uncentred, square = float(raw.sum()), float(np.einsum("ij,ij->", centred, centred))
    both, at_row, at_column = np.intersect1d(rows.image, rows.text, assume_unique=True, return_indices=True)
    own = float(centred[at_row, at_column].sum()) if len(both) else 0.0
    marks = _mark(labels[:, rows.text], sums.regions.shape[-1])
    regions, row_sums, column_sums = sums.regions.copy(), sums.rows.copy(), sums.columns.copy()
    by_label = [centred @ marks]
    size = np.abs(centred, out=centred)
    for index, part in enumerate((np.abs(raw, out=raw), size)):
        by_label.append(part @ marks)
        row_sums[index, rows.image] += part.sum(1)
        column_sums[index, rows.text] += part.sum(0)
    total = float(by_label[0].sum()) / len(labels)
    for index, part in enumerate((by_label[1], by_label[0], by_label[2])):
        regions[index] += _fold(part, labels[:, rows.image], regions.shape[-1])
    return BridgeSums(
        uncentred=sums.uncentred + uncentred,
        centred=sums.centred + total,
        absolute=sums.absolute + float(size.sum()),
        square=sums.square + square,
        own=sums.own + own,
        rows=row_sums,
        columns=column_sums,
        regions=regions,
        strongest=_largest(sums.strongest, size),
    )


def _mark(labels: np.ndarray, n_labels: int) -> np.ndarray:
    """1 where a feature has a label [feature, labelling * label]."""
    return np.concatenate(list(np.eye(n_labels)[labels]), axis=1)


def _fold(by_label: np.ndarray, labels: np.ndarray, n_labels: int) -> np.ndarray:
    """Sums by the label of the row as well [labelling, label, label], from sums by the label of the column."""
    parts = np.split(by_label, len(labels), axis=1)
    return np.stack([np.eye(n_labels)[line].T @ part for line, part in zip(labels, parts, strict=True)])


def _largest(strongest: np.ndarray, size: np.ndarray) -> np.ndarray:
    least = strongest[-1] if len(strongest) == N_TOP else 0.0
    values = np.concatenate([strongest, size[size > least]])
    kept = values if len(values) <= N_TOP else np.partition(values, len(values) - N_TOP)[-N_TOP:]
    return np.sort(kept)[::-1]


class BridgeSummary(NamedTuple):
    """What the whole bridge matrix looks like; NaN where there is none."""

    margin: float
    """sum Bc: mean similarity of matched minus unmatched pairs."""
    matched: float
    """sum B: mean similarity of matched pairs."""
    self_share: float
    """sum Bc_ii / sum |Bc|: how much goes from a feature to itself."""
    participation: float
    """(sum |Bc|)^2 / sum Bc^2: how many pairs of features, of equal size, it amounts to."""
    strongest: float
    """Mean of the N_TOP largest |Bc|, as a share of the margin."""


def summarize_bridges(sums: BridgeSums) -> BridgeSummary:
    """Summary statistics of the centred bridge. Measure D3."""
    if sums.absolute == 0:
        return BridgeSummary(sums.centred, sums.uncentred, np.nan, np.nan, np.nan)
    strongest = float(sums.strongest.mean() / sums.centred) if sums.centred else np.nan
    return BridgeSummary(sums.centred, sums.uncentred, sums.own / sums.absolute, sums.absolute**2 / sums.square, strongest)


class BridgeNorms(NamedTuple):
    """How useful each feature is for alignment."""

    energy: Float[np.ndarray, " feature"]
    """Mean of the row and the column sum of |B|."""
    modality: Float[np.ndarray, " feature"]
    """Row sum / (row + column sum): 1 when it bridges as an image feature only; NaN when it bridges nothing."""


def bridge_norms(rows: Float[np.ndarray, " feature"], columns: Float[np.ndarray, " feature"]) -> BridgeNorms:
    """E_B^image = |B| 1, E_B^text = 1^T |B|, their mean, and mu_B = E_B^image / (E_B^image + E_B^text). Measure D4.

    arXiv 2602.06218. Of |B| as published, or of |Bc|; `BridgeSums` has the sums of both.
    """
    total = rows + columns
    return BridgeNorms(total / 2, np.divide(rows, total, out=np.full_like(total, np.nan), where=total > 0))


class AlignmentRatio(NamedTuple):
    """Whether features of both modalities carry more of the alignment than of the energy."""

    value: float
    """(alpha / e) (1 - e) / (1 - alpha); infinite when no bridge is without such a feature. Unstable there: read the two."""
    alpha: float
    """Share of the mass of the bridges that touch a bimodal feature at either end."""
    energy: float
    """Share e of the energy that lies in bimodal features."""


def alignment_ratio(mass: Float[np.ndarray, "label label"], bimodal: int, energy_share: float) -> AlignmentRatio:
    """Odds of the bridge mass that touches bimodal features over the odds of their energy (arXiv 2602.06218). Measure D5.

    `mass` is one labelling of `BridgeSums.regions`: of |B| as published, or of |Bc| for a claim about alignment.
    """
    total = float(mass.sum())
    if total == 0 or not 0 < energy_share < 1:
        return AlignmentRatio(np.nan, np.nan, energy_share)
    others = np.delete(np.delete(mass, bimodal, 0), bimodal, 1)
    alpha = 1 - float(others.sum()) / total
    odds = alpha / (1 - alpha) if alpha < 1 else np.inf
    return AlignmentRatio(odds * (1 - energy_share) / energy_share, alpha, energy_share)
