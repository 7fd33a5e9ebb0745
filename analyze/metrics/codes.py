"""Codes as sparse matrices in which every atom stands once per row."""

import numpy as np
import torch
from jaxtyping import Int
from scipy.sparse import csr_array

from thresher.train.codes import Codes


def to_matrix(codes: Codes, d_sae: int) -> csr_array:
    """Codes as a float64 matrix [row, d_sae]; an atom picked twice (matching pursuit) has the sum of its coefficients.

    Padding (value 0) and picks that cancel exactly are not stored, so the stored entries of a row are its active atoms.
    """
    n_rows, k = codes.indices.shape
    # Copies: adding up repeats sorts a matrix in place, and the codes would lose their order of selection.
    values = codes.values.detach().to("cpu", torch.float64).numpy().flatten()
    indices = codes.indices.detach().cpu().numpy().flatten()
    starts = np.arange(n_rows + 1, dtype=np.int64) * k
    matrix = csr_array((values, indices, starts), shape=(n_rows, d_sae))
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    return matrix


def count_active(matrix: csr_array) -> Int[np.ndarray, " row"]:
    """L0 of each row: how many different atoms are active."""
    return np.diff(matrix.indptr).astype(np.int64)
