"""Structure of the codes: which atoms are active together, how alike those are, and how many directions the codes use."""

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_array
from scipy.sparse.linalg import eigsh

from thresher.analyze.metrics.grouping import count_columns, count_rows
from thresher.analyze.metrics.needs import need_equal, need_items, normalize_rows
from thresher.analyze.metrics.space import count_effective

ROWS_AT_ONCE = 512
DENSE_BELOW = 64
"""Matrices smaller than this are decomposed whole; Lanczos needs room."""


def measure_active_babel(
    indices: Int[np.ndarray, "row k"], values: Float[np.ndarray, "row k"], dictionary: Float[np.ndarray, "d_sae d_in"]
) -> Float[np.ndarray, " row"]:
    """Babel function of the atoms that are active together, per row: max_j sum_{i != j} |cos_ij| over the active atoms
    (arXiv 2506.03093). 0 for a row with fewer than two.

    An atom picked twice counts once. Costs O(row k^2 d_in). Compare with `measure_babel` at r = L0 - 1: matching pursuit is
    said to have a higher one over the dictionary and a lower one over what it selects.
    """
    unit, found = normalize_rows(dictionary), np.zeros(len(indices))
    for start in range(0, len(indices), ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        chosen, active = indices[part], _mark_first(indices[part], values[part])
        atoms = unit[chosen]
        cosine = np.abs(atoms @ atoms.transpose(0, 2, 1))
        diagonal = np.arange(chosen.shape[1])
        cosine[:, diagonal, diagonal] = 0
        cosine *= active[:, :, None] & active[:, None, :]
        found[part] = cosine.sum(axis=2).max(axis=1, initial=0)
    return found


def measure_code_rank(codes: csr_array) -> float:
    """exp of the entropy of the eigenvalues of Z^T Z over their sum (arXiv 2506.03093): rank of the codes Z [row, d_sae], not
    of the dictionary; NaN when all codes are 0.

    From the smaller of Z^T Z (alive features only) and Z Z^T, which have the same non-zero eigenvalues: O(min^3), so give it
    a sample of some 10,000 rows. Not centred. Raises AnalysisError: no rows.
    """
    need_items("effective rank of the codes", count_rows(codes), 1, "rows")
    alive = codes[:, np.unique(codes.indices)]
    gram = alive.T @ alive if count_columns(alive) <= count_rows(codes) else alive @ alive.T
    if codes.nnz == 0:
        return float("nan")
    eigenvalues = np.linalg.eigvalsh(gram.toarray())
    return count_effective(np.where(eigenvalues > eigenvalues[-1] * 1e-13, eigenvalues, 0.0))


def measure_connectivity(codes: csr_array) -> float:
    """1 - ||Z^T Z||_0 / d_sae^2: the share of ordered pairs of features, each with itself included, that are never active
    together (arXiv 2502.12892, where the denominator is printed as d^2).

    Falls as rows are added: compare at equal numbers of rows, some 50,000 at most for the memory of Z^T Z. Products that
    cancel to 0 count as active together.
    """
    need_items("connectivity", count_rows(codes), 1, "rows")
    fired = csr_array((np.ones(codes.nnz), codes.indices, codes.indptr), shape=codes.shape)
    together = (fired.T @ fired).tocsr()
    return 1 - together.nnz / count_columns(codes) ** 2


def measure_negative_interference(codes: csr_array, dictionary: Float[np.ndarray, "d_sae d_in"]) -> float:
    """||ReLU(-(Z^T Z) * (D D^T))||_2, the spectral norm (arXiv 2502.12892): how much features that are active together cancel.

    Z^T Z is divided by the rows, unlike the paper, whose number grows with them. Cosines only where features are active
    together: O(nnz(Z^T Z) d_in). Scaling codes against atoms changes nothing. Raises AnalysisError: no rows, other sizes.
    """
    need_items("negative interference", count_rows(codes), 1, "rows")
    need_equal("negative interference", "features of codes and dictionary", count_columns(codes), len(dictionary))
    gram = (codes.T @ codes).tocoo()
    values = np.empty(gram.nnz)
    for start in range(0, gram.nnz, 1 << 16):
        part = slice(start, start + (1 << 16))
        inner = (dictionary[gram.row[part]] * dictionary[gram.col[part]]).sum(axis=1)
        values[part] = np.maximum(-gram.data[part] * inner / count_rows(codes), 0)
    kept = np.flatnonzero(values)
    if len(kept) == 0:
        return 0.0
    involved, place = np.unique(np.stack([gram.row[kept], gram.col[kept]]), return_inverse=True)
    entries = (values[kept], tuple(place.reshape(2, -1)))
    matrix = csr_array(entries, shape=(len(involved), len(involved)))
    if len(involved) < DENSE_BELOW:
        return float(np.linalg.norm(matrix.toarray(), 2))
    start_vector = np.ones(len(involved))
    # Symmetric and non-negative: the largest eigenvalue is the norm (Perron).
    return float(eigsh(matrix, k=1, which="LA", v0=start_vector, return_eigenvectors=False)[0])


def _mark_first(indices: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Active entries, an atom's repeats left out."""
    equal = indices[:, :, None] == indices[:, None, :]
    earlier = np.tril(np.ones(equal.shape[1:], dtype=bool), -1)
    repeats = (equal & earlier & (values != 0)[:, None, :]).any(axis=2)
    return (values != 0) & ~repeats
