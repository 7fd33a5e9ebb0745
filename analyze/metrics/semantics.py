"""Do a feature's items mean the same? MonoSemanticity within and across modalities, in linear time, with exact nulls.

The embeddings must come from another encoder than the one the codes were computed from: judged by its own input, a feature
looks monosemantic by construction. And they have to be centred (`centre`): on a cone every pair has a high cosine.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_array

from thresher.analyze.metrics.grouping import count_columns, count_rows
from thresher.analyze.metrics.needs import divide, need_equal, need_items, normalize_rows


def centre(embeddings: Float[np.ndarray, "row d_ext"]) -> Float[np.ndarray, "row d_ext"]:
    """Unit vectors around the mean of one modality: normalised, minus their mean, normalised again.

    Takes off the cone and, done per modality, the encoder's own modality gap, which would shift all scores across
    modalities by a constant. Raises AnalysisError: fewer than 2 rows.
    """
    need_items("centring", len(embeddings), 2, "rows")
    unit = normalize_rows(embeddings)
    return normalize_rows(unit - unit.mean(axis=0))


class SemanticSums(NamedTuple):
    """Sums over rows of one modality, float64; sums of two chunks are their sum. a = |z|, e = unit external embedding."""

    weighted: Float[np.ndarray, "feature d_ext"]
    """sum a e."""
    powers: Float[np.ndarray, "4 feature"]
    """sum a, sum a^2, sum a^3, sum a^4."""
    embedding: Float[np.ndarray, " d_ext"]
    """sum e."""
    gram: Float[np.ndarray, "d_ext d_ext"]
    """sum e e^T."""
    n_rows: float
    least: Float[np.ndarray, " feature"]
    """Smallest a over the rows: 0 but for features that fire on every row."""


def sum_semantics(codes: csr_array, embeddings: Float[np.ndarray, "row d_ext"]) -> SemanticSums:
    """Sums of one chunk of codes [row, d_sae] and the embeddings of its rows (unit norm, centred). Costs O(nnz * d_ext).

    Negative codes count by their size. Rows that copy each other (five captions of an image) raise every score:
    give one row per record. Raises AnalysisError: codes and embeddings of different rows.
    """
    need_equal("MonoSemanticity", "rows of codes and embeddings", count_rows(codes), len(embeddings))
    size = abs(codes)
    least = np.zeros(count_columns(codes))
    always = np.flatnonzero(np.bincount(size.indices, minlength=len(least)) == len(embeddings))
    if len(embeddings):
        least[always] = size.tocsc()[:, always].toarray().min(axis=0)
    return SemanticSums(
        weighted=size.T.tocsr() @ embeddings,
        powers=np.stack([np.asarray(size.power(power).sum(axis=0), dtype=np.float64) for power in (1, 2, 3, 4)]),
        embedding=embeddings.sum(axis=0),
        gram=embeddings.T @ embeddings,
        n_rows=float(len(embeddings)),
        least=least,
    )


def add_semantics(first: SemanticSums, second: SemanticSums) -> SemanticSums:
    """Sums of two chunks together."""
    return SemanticSums(
        weighted=first.weighted + second.weighted,
        powers=first.powers + second.powers,
        embedding=first.embedding + second.embedding,
        gram=first.gram + second.gram,
        n_rows=first.n_rows + second.n_rows,
        least=np.minimum(first.least, second.least),
    )


class Meaning(NamedTuple):
    """A similarity per feature beside what the same activations score on rows drawn at random."""

    score: Float[np.ndarray, " feature"]
    """NaN where the feature fires on fewer than two rows (or on one modality only)."""
    chance: Float[np.ndarray, " feature"]
    """Expectation when the activations are shuffled over the rows."""
    z: Float[np.ndarray, " feature"]
    """(score - chance) / standard deviation under that shuffling; NaN where it is 0."""


def measure_monosemanticity(sums: SemanticSums) -> Meaning:
    """MS_i = sum_{n != m} a_n a_m cos(e_n, e_m) / sum_{n != m} a_n a_m (arXiv 2504.02821), by its linear identity

    (||w||^2 - v) / (u^2 - v), w = sum a e, u = sum a, v = sum a^2 (arXiv 2602.12403). As in the paper the smallest |z| over the
    rows is taken off first, which matters for features that fire on every row; their range cancels.
    Chance and spread are exact for random assignment of the same activations to rows, so they match rate and amplitude:
    Mantel's moments (1967) of sum A_nm C_nm, from row sums of A = a a^T and C = cos, both without diagonals. They assume unit
    embeddings; rows whose embedding is 0 (equal to the mean) make them approximate. Read scores of features with at least 30
    firings: two near-duplicates score 1. Raises AnalysisError: fewer than 4 rows.
    """
    need_items("MonoSemanticity", int(sums.n_rows), 4, "rows")
    sums = _take_off_least(sums)
    u, v = sums.powers[:2]
    total = u**2 - v
    # What is left of u^2 - v for a single firing is rounding.
    pairs = np.where(total > 1e-12 * u**2, total, np.nan)
    mean, variance = _permute(_square_moments(sums.powers), _cosine_moments(sums), sums.n_rows)
    score = divide(np.square(sums.weighted).sum(axis=1) - v, pairs)
    chance = np.where(np.isnan(pairs), np.nan, divide(mean, pairs))
    spread = np.sqrt(np.maximum(variance, 0))
    spread = np.where(spread > 1e-9 * np.abs(pairs), spread, np.nan)
    return Meaning(score, chance, divide(score * pairs - mean, spread))


def measure_consistency(sums: SemanticSums) -> Float[np.ndarray, " feature"]:
    """(||w||^2 - v) / (u^2 - v) of activations as they are, nothing taken off: what MMS, whose activations keep their offset
    too, is compared with. NaN where the feature fires on fewer than two rows.
    """
    u, v = sums.powers[:2]
    total = u**2 - v
    return divide(np.square(sums.weighted).sum(axis=1) - v, np.where(total > 1e-12 * u**2, total, np.nan))


def sum_pairs(
    image: csr_array,
    text: csr_array,
    image_embeddings: Float[np.ndarray, "pair d_ext"],
    text_embeddings: Float[np.ndarray, "pair d_ext"],
) -> Float[np.ndarray, "2 feature"]:
    """What matched pairs add, per feature: sum_n a_n b_n cos(e_n, f_n) and sum_n a_n b_n. Row n of all four is one pair."""
    need_equal("MultiModal Similarity", "image and text rows of the pairs", count_rows(image), count_rows(text))
    both = abs(image).multiply(abs(text)).tocsr()
    cosine = (image_embeddings * text_embeddings).sum(axis=1)
    return np.stack([both.T @ cosine, np.asarray(both.sum(axis=0), dtype=np.float64)])


def measure_multimodal(image: SemanticSums, text: SemanticSums, pairs: Float[np.ndarray, "2 feature"] | None = None) -> Meaning:
    """MMS_i = sum_{n,m} a_n b_m cos(e_n, f_m) / sum_{n,m} a_n b_m over images n and texts m (arXiv 2601.20028), as
    <w_I, w_T> / (u_I u_T). With `pairs` (of `sum_pairs`), without the matched pairs themselves: so it measures a concept, not
    which caption belongs to which image. NaN for a feature that never fires on one modality, by any pair that counts.

    Chance and spread: activations shuffled over the images and, independently, over the texts; exact with all pairs. Without
    the matched ones the same spread is used; they are one in n of the n^2 pairs.
    """
    denominator = image.powers[0] * text.powers[0]
    shared = np.zeros_like(denominator) if pairs is None else pairs[1]
    rest = np.where(denominator - shared > 1e-12 * denominator, denominator - shared, np.nan)
    inner = (image.weighted * text.weighted).sum(axis=1) - (0 if pairs is None else pairs[0])
    mean_cosine = float(image.embedding @ text.embedding) / (image.n_rows * text.n_rows)
    spread = divide(_spread_across(image, text), denominator)
    score = divide(inner, rest)
    chance = np.where(np.isnan(score), np.nan, mean_cosine)
    return Meaning(score, chance, divide(score - chance, np.where(spread > 1e-9, spread, np.nan)))


def measure_edges(
    image: SemanticSums, text: SemanticSums, i: Int[np.ndarray, " edge"], j: Int[np.ndarray, " edge"]
) -> Float[np.ndarray, " edge"]:
    """MMS_ij = <w_i^I, w_j^T> / (u_i^I u_j^T): do image feature i and text feature j of a bridge mean the same? NaN if dead."""
    return divide((image.weighted[i] * text.weighted[j]).sum(axis=1), image.powers[0, i] * text.powers[0, j])


def compare_groups(similarity: Float[np.ndarray, "concept concept"]) -> tuple[float, float]:
    """Intra- and inter-similarity (VL-SAE, arXiv 2510.21323): mean of the diagonal, and of the rest. Raises: one concept.

    Entry [c, c'] is the mean similarity of the top images of c with the top texts of c' (`compare_tops`).
    """
    n = len(similarity)
    need_items("inter-similarity", n, 2, "concepts")
    intra = float(np.trace(similarity)) / n
    return intra, float(similarity.sum() - np.trace(similarity)) / (n * (n - 1))


def compare_tops(
    image: Float[np.ndarray, "concept top_image d_ext"], text: Float[np.ndarray, "concept top_text d_ext"]
) -> Float[np.ndarray, "concept concept"]:
    """Mean cosine of the top images of each concept with the top texts of each: a product of means of unit vectors."""
    means = [np.stack([normalize_rows(group).mean(axis=0) for group in side]) for side in (image, text)]
    return means[0] @ means[1].T


def _take_off_least(sums: SemanticSums) -> SemanticSums:
    """The sums of a - min a."""
    offset, n = sums.least, sums.n_rows
    u, v, third, fourth = sums.powers
    powers = np.stack(
        [
            u - n * offset,
            v - 2 * offset * u + n * offset**2,
            third - 3 * offset * v + 3 * offset**2 * u - n * offset**3,
            fourth - 4 * offset * third + 6 * offset**2 * v - 4 * offset**3 * u + n * offset**4,
        ]
    )
    # What is left of equal activations is rounding.
    powers = np.where(powers[1] > 1e-12 * v, powers, 0.0)
    return sums._replace(weighted=sums.weighted - np.outer(offset, sums.embedding), powers=powers)


def _square_moments(powers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of A = a a^T without its diagonal: sum, sum of squares, sum of squared row sums."""
    u, v, third, fourth = powers
    return u**2 - v, v**2 - fourth, u**2 * v - 2 * u * third + fourth


def _cosine_moments(sums: SemanticSums) -> tuple[float, float, float]:
    """Of C = cos without its diagonal of ones: sum, sum of squares, sum of squared row sums."""
    s, n = sums.embedding, sums.n_rows
    length = float(s @ s)
    return length - n, float(np.square(sums.gram).sum()) - n, float(s @ sums.gram @ s) - 2 * length + n


def _permute(
    a: tuple[np.ndarray, np.ndarray, np.ndarray], c: tuple[float, float, float], n: float
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of sum A_nm C_p(n)p(m) over all permutations p, for symmetric matrices without diagonals."""
    mean = a[0] * c[0] / (n * (n - 1))
    same, one, none = (
        2 * a[1] * c[1] / (n * (n - 1)),
        4 * (a[2] - a[1]) * (c[2] - c[1]) / (n * (n - 1) * (n - 2)),
        (a[0] ** 2 - 4 * a[2] + 2 * a[1]) * (c[0] ** 2 - 4 * c[2] + 2 * c[1]) / (n * (n - 1) * (n - 2) * (n - 3)),
    )
    return mean, same + one + none - mean**2


def _spread_across(image: SemanticSums, text: SemanticSums) -> np.ndarray:
    """Standard deviation of <w_I, w_T> when activations are shuffled within each modality, per feature."""
    means, covariances, factors = [], [], []
    for one in (image, text):
        mean, (u, v) = one.embedding / one.n_rows, one.powers[:2]
        means.append(u[:, None] * mean)
        covariances.append(one.gram - one.n_rows * np.outer(mean, mean))
        factors.append((v - u**2 / one.n_rows) / (one.n_rows - 1))
    variance = (
        factors[0] * (means[1] @ covariances[0] * means[1]).sum(axis=1)
        + factors[1] * (means[0] @ covariances[1] * means[0]).sum(axis=1)
        + factors[0] * factors[1] * float((covariances[0] * covariances[1]).sum())
    )
    return np.sqrt(np.maximum(variance, 0))
