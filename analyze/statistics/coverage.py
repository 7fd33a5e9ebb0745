"""How well the features of one dictionary are found among those of another, on the same rows."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_array

from thresher.analyze.metrics.matching import weighted_coverage
from thresher.analyze.metrics.needs import need_equal
from thresher.analyze.statistics.gram import iterate_gram
from thresher.analyze.statistics.paired import find_marginals, sum_pairs
from thresher.analyze.statistics.pairing import Pairing, derange, pair_codes
from thresher.analyze.statistics.partners import walk_gram
from thresher.analyze.statistics.rows import shape_of


class Coverage(NamedTuple):
    """What a dictionary B has of the features of a dictionary A."""

    best: Int[np.ndarray, " feature"]
    """The feature of B that correlates most with each feature of A; -1 where none does."""
    rho: Float[np.ndarray, " feature"]
    """Its correlation; NaN without one."""
    value: float
    """wMPPC(A -> B), see `weighted_coverage`."""
    by_chance: float
    """The same with the rows of B shuffled: what width and number of rows alone give."""


def cover(first: csr_array, second: csr_array, seed: int) -> Coverage:
    """Coverage of the features of `first` by those of `second`: codes [row, feature] of the same rows, of any widths.

    Measure D11. The rows may be those of two dictionaries on one modality, of two models, or of two seeds. Weights are sums of
    |z|. Raises AnalysisError when the rows differ in number.
    """
    (n, width), (n_other, other_width) = shape_of(first), shape_of(second)
    need_equal("coverage", "rows of the two dictionaries", n, n_other)
    widest, every = max(width, other_width), np.arange(n)
    pairing = pair_codes(_widen(first, widest), _widen(second, widest), np.column_stack([every, every]), every)
    weight = np.bincount(first.indices, weights=np.abs(first.data), minlength=width)
    best, rho = _find_best(pairing, width)
    _, chance = _find_best(derange(pairing, seed), width)
    return Coverage(best, rho, weighted_coverage(rho, weight), weighted_coverage(chance, weight))


def _widen(codes: csr_array, width: int) -> csr_array:
    return csr_array((codes.data, codes.indices, codes.indptr), shape=(shape_of(codes)[0], width))


def _find_best(pairing: Pairing, width: int) -> tuple[np.ndarray, np.ndarray]:
    sums = sum_pairs(pairing)
    rows, columns = np.flatnonzero(sums.image_fires), np.flatnonzero(sums.text_fires)
    best = walk_gram(iterate_gram(pairing, rows, columns), find_marginals(sums), 1).best
    return best.text_of_image[:width], best.rho_of_image[:width]
