"""Geometry of a dictionary alone: how alike its atoms are, how many directions they use, how near to the data they lie."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from thresher.analyze.metrics.needs import divide, need_equal, need_items, normalize_rows
from thresher.analyze.metrics.space import count_effective

ATOMS_AT_ONCE = 1024


class Coherence(NamedTuple):
    """How alike different atoms are, by |cos|."""

    largest: float
    """max_{i != j} |cos_ij|: the mutual coherence."""
    nearest: Float[np.ndarray, " d_sae"]
    """Each atom's largest |cos| with another; its mean is "mean max cosine"."""
    neighbour: Int[np.ndarray, " d_sae"]
    """That other atom."""
    most_similar: Float[np.ndarray, " d_sae"]
    """Each atom's largest cos with another, signs kept (SAEBench's "max decoder cosine")."""
    histogram: Int[np.ndarray, " bin"]
    """Ordered pairs i != j by cos_ij, equal bins over [-1, 1]."""


def measure_coherence(dictionary: Float[np.ndarray, "d_sae d_in"], n_bins: int) -> Coherence:
    """Cosines of all pairs of atoms, in blocks: O(d_sae^2 d_in), memory O(d_sae). Raises AnalysisError: fewer than 2 atoms."""
    need_items("coherence", len(dictionary), 2, "atoms")
    unit = normalize_rows(dictionary)
    nearest, neighbour, most_similar = np.empty(len(unit)), np.empty(len(unit), dtype=np.int64), np.empty(len(unit))
    counts = np.zeros(n_bins, dtype=np.int64)
    for start in range(0, len(unit), ATOMS_AT_ONCE):
        cosine, part = _block(unit, start)
        counts += np.histogram(np.clip(cosine, -1, 1), bins=n_bins, range=(-1.0, 1.0))[0]
        rows = np.arange(len(cosine))
        counts -= np.histogram(np.clip(cosine[rows, start + rows], -1, 1), bins=n_bins, range=(-1.0, 1.0))[0]
        cosine[rows, start + rows] = -np.inf
        most_similar[part] = cosine.max(axis=1)
        cosine[rows, start + rows] = 0
        neighbour[part] = np.abs(cosine).argmax(axis=1)
        nearest[part] = np.abs(cosine[rows, neighbour[part]])
    return Coherence(float(nearest.max()), nearest, neighbour, most_similar, counts)


def measure_babel(dictionary: Float[np.ndarray, "d_sae d_in"], sizes: Sequence[int]) -> Float[np.ndarray, " size"]:
    """mu_1(r) = max over sets L of r atoms and j outside L of sum_{i in L} |<d_i, d_j>| (Tropp 2004; arXiv 2506.03093).

    Exact: for each j the best set is its r most alike, so mu_1(r) = max_j of the sum of its r largest |cos|. In blocks,
    O(d_sae^2 d_in). At most r. Raises AnalysisError: no more atoms than the largest r.
    """
    need_items("Babel function", len(dictionary), max(sizes) + 1, "atoms")
    unit, found, most = normalize_rows(dictionary), np.zeros(len(sizes)), max(sizes)
    for start in range(0, len(unit), ATOMS_AT_ONCE):
        cosine = np.abs(_block(unit, start)[0])
        rows = np.arange(len(cosine))
        cosine[rows, start + rows] = -1
        top = -np.sort(np.partition(-cosine, most - 1, axis=1)[:, :most], axis=1)
        found = np.maximum(found, np.cumsum(top, axis=1)[:, np.array(sizes) - 1].max(axis=0))
    return found


class Ranks(NamedTuple):
    """Ranks of the dictionary D itself, not of the codes (see `measure_code_rank`)."""

    stable: float
    """||D||_F^2 / ||D||_2^2."""
    effective: float
    """exp of the entropy of the singular values over their sum (arXiv 2502.12892)."""


def measure_ranks(dictionary: Float[np.ndarray, "d_sae d_in"]) -> Ranks:
    """Stable and effective rank of the atoms as given; NaN when all are 0. Raises AnalysisError: no atoms."""
    need_items("rank of the dictionary", len(dictionary), 1, "atoms")
    singular = np.linalg.svd(dictionary, compute_uv=False)
    return Ranks(float(divide(np.square(singular).sum(), singular[0] ** 2)), count_effective(singular))


def measure_overlap(dictionary: Float[np.ndarray, "d_sae d_in"]) -> float:
    """Mean squared cosine of two different atoms (MSAE's decoder orthogonality, arXiv 2502.20578), 1 / d_in for random ones.

    By ||D D^T||_F = ||D^T D||_F, so O(d_sae d_in^2). Raises AnalysisError: fewer than 2 atoms.
    """
    n = len(dictionary)
    need_items("decoder orthogonality", n, 2, "atoms")
    unit = normalize_rows(dictionary)
    own = np.square(unit).sum(axis=1)
    return float(np.square(unit.T @ unit).sum() - np.square(own).sum()) / (n * (n - 1))


def measure_distance(
    dictionary: Float[np.ndarray, "d_sae d_in"], x: Float[np.ndarray, "row width"]
) -> Float[np.ndarray, " d_sae"]:
    """1 - max_n <d_i, x_n> with unit atoms and rows; the mean is the OOD score of arXiv 2502.12892 (section 5.1).

    0 for an atom that is a data point. `x` in the units the dictionary works in. Given rows of one modality only, it says
    whether an atom lies near images or near texts. Falls with more rows: compare at equal numbers. In blocks of rows.
    Raises AnalysisError: no rows, or widths differ.
    """
    need_items("OOD score", len(x), 1, "rows")
    need_equal("OOD score", "widths of dictionary and rows", dictionary.shape[1], x.shape[1])
    unit, best = normalize_rows(dictionary), np.full(len(dictionary), -np.inf)
    for start in range(0, len(x), ATOMS_AT_ONCE):
        best = np.maximum(best, (normalize_rows(x[start : start + ATOMS_AT_ONCE]) @ unit.T).max(axis=0))
    return 1 - best


def compare_encoder(
    encoder: Float[np.ndarray, "d_sae d_in"], dictionary: Float[np.ndarray, "d_sae d_in"]
) -> Float[np.ndarray, " d_sae"]:
    """cos of each feature's encoder row with its atom (SAEBench, arXiv 2503.09532); 1 for tied weights, NaN where one is 0."""
    lengths = np.linalg.norm(encoder, axis=1) * np.linalg.norm(dictionary, axis=1)
    return divide((encoder * dictionary).sum(axis=1), lengths)


def _block(unit: np.ndarray, start: int) -> tuple[np.ndarray, slice]:
    part = slice(start, min(start + ATOMS_AT_ONCE, len(unit)))
    return unit[part] @ unit.T, part
