"""Do other seeds find the same dictionary? Matched cosines beside those of random dictionaries, and matched activations."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array

from thresher.analyze.metrics.grouping import count_columns, count_rows
from thresher.analyze.metrics.needs import divide, need_equal, need_items, normalize_rows


class Matching(NamedTuple):
    """The one-to-one matching of two dictionaries that has the largest sum of cosines."""

    partner: Int[np.ndarray, " d_sae"]
    """Atom of the second dictionary for each of the first; -1 where the second is smaller."""
    cosine: Float[np.ndarray, " d_sae"]
    """Their cosine; NaN without a partner. This is each feature's own stability."""

    @property
    def stability(self) -> float:
        """Mean over matched atoms: (1 / M) Tr(D^T P D') of arXiv 2502.12892, section 5.3. Read it beside `draw_null`."""
        return float(np.nanmean(self.cosine))


def match_dictionaries(first: Float[np.ndarray, "d_sae d_in"], second: Float[np.ndarray, "d_other width"]) -> Matching:
    """Hungarian matching by cosine; for dictionaries whose codes are never negative.

    Costs O(d_sae^3) in the worst case and 8 d_sae^2 bytes: above some 16,000 atoms give it those of most energy.
    Raises AnalysisError: no atoms, or widths differ.
    """
    return _match(_compare(first, second))


def match_signed_dictionaries(first: Float[np.ndarray, "d_sae d_in"], second: Float[np.ndarray, "d_other width"]) -> Matching:
    """The same up to sign, by |cos|; only for codes that may be negative, whose atoms d and -d are the same feature."""
    return _match(np.abs(_compare(first, second)))


class Null(NamedTuple):
    """Stability of unrelated dictionaries of the same size."""

    mean: float
    spread: float
    """Standard deviation over draws; NaN for one draw."""


def draw_null(d_sae: int, d_in: int, n_draws: int, seed: int, *, n_other: int | None = None, signed: bool = False) -> Null:
    """Match pairs of dictionaries with atoms uniform on the sphere: 0.146 at 2,048 atoms of width 512 (unsigned).

    Subtract it: a larger dictionary has closer matches by chance alone, and so have few atoms among many: the second
    dictionary has `n_other` atoms, as many as the first when not given. Raises AnalysisError: no draws.
    """
    need_items("random-dictionary null", n_draws, 1, "draws")
    generator, match = np.random.default_rng(seed), match_signed_dictionaries if signed else match_dictionaries
    sizes = (d_sae, d_sae if n_other is None else n_other)
    drawn = [match(*(generator.normal(size=(size, d_in)) for size in sizes)).stability for _ in range(n_draws)]
    return Null(float(np.mean(drawn)), float(np.std(drawn, ddof=1)) if n_draws > 1 else float("nan"))


def trace_stability(matched: Matching, energy: Float[np.ndarray, " d_sae"], tops: Sequence[int]) -> Float[np.ndarray, " top"]:
    """Mean matched cosine of the K atoms of most energy in the first run, for each K: common concepts are stable, rare ones
    are not (arXiv 2504.11695).

    All atoms are matched with all once and then read off. Matching top K with top K would compare by rank, and indexing one
    run by the other's order compares nothing.
    """
    need_items("stability by energy", len(energy), max(tops), "atoms")
    ranked = matched.cosine[np.argsort(-energy, kind="stable")]
    return np.array([np.nanmean(ranked[:top]) for top in tops])


def measure_mmcs(first: Float[np.ndarray, "d_sae d_in"], second: Float[np.ndarray, "d_other width"]) -> float:
    """Mean over the first dictionary of the largest cosine with any atom of the second (not one-to-one, not symmetric)."""
    return float(_compare(first, second).max(axis=1).mean())


def correlate_matched(first: csr_array, second: csr_array, matched: Matching) -> Float[np.ndarray, " d_sae"]:
    """Pearson correlation of the activations of matched features on the same rows; immune to how the decoder is rotated.

    Codes [row, d_sae] of the same rows. NaN without a partner or where one is constant. Raises AnalysisError: other rows or
    features.
    """
    need_equal("functional stability", "rows of the two codes", count_rows(first), count_rows(second))
    need_equal("functional stability", "features of codes and matching", count_columns(first), len(matched.partner))
    other, n = second.tocsc()[:, np.maximum(matched.partner, 0)].tocsr(), count_rows(first)
    means = [np.asarray(z.sum(axis=0), dtype=np.float64) / n for z in (first, other)]
    squares = [np.asarray(z.power(2).sum(axis=0), dtype=np.float64) / n for z in (first, other)]
    variances = [np.where(s - m**2 > 1e-12 * s, s - m**2, np.nan) for s, m in zip(squares, means, strict=True)]
    covariance = np.asarray(first.multiply(other).sum(axis=0), dtype=np.float64) / n - means[0] * means[1]
    return np.where(matched.partner < 0, np.nan, divide(covariance, np.sqrt(variances[0] * variances[1])))


def _compare(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    for dictionary in (first, second):
        need_items("stability", len(dictionary), 1, "atoms")
    need_equal("stability", "widths of the dictionaries", first.shape[1], second.shape[1])
    return normalize_rows(first) @ normalize_rows(second).T


def _match(similarity: np.ndarray) -> Matching:
    rows, columns = linear_sum_assignment(similarity, maximize=True)
    partner, cosine = np.full(len(similarity), -1, dtype=np.int64), np.full(len(similarity), np.nan)
    partner[rows], cosine[rows] = columns, similarity[rows, columns]
    return Matching(partner, cosine)
