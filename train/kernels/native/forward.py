"""Matching pursuit on the CPU in compiled loops, without gradients."""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from thresher.train.kernels.forms import Picked
from thresher.train.kernels.native.gram import compute_gram, largest_off_diagonal
from thresher.train.kernels.native.loops import pursue_rows, pursue_rows_certified
from thresher.train.kernels.native.tables import Tables, Terms
from thresher.train.kernels.native.threads import share_rows
from thresher.train.kernels.prepared import Prepared
from thresher.train.kernels.rule import Rule

SCORES_AT_ONCE = 2**20
"""Scores held at once, but at least `ROWS_AT_ONCE` rows."""
ROWS_AT_ONCE = 256
"""Rows below which a matrix product slows down."""
ATOMS_PER_CANDIDATE = 16
"""With more candidates than one in so many atoms, products with all atoms are taken: cheaper each, being in order."""
CANDIDATES_AT_LEAST = 64


def prepare_gram(dictionary: Float[Tensor, "d_sae d_in"], reuse: Prepared | None = None) -> Prepared:
    """The Gram matrix in float32, in the memory of that of `reuse` if given."""
    return Prepared("numba_gram", dictionary, compute_gram(dictionary, reuse.gram if reuse else None))


def prepare_certified(dictionary: Float[Tensor, "d_sae d_in"], reuse: Prepared | None = None) -> Prepared:
    """The dictionary in bfloat16, its Gram matrix computed and stored in bfloat16, and bounds of what that loses.

    bfloat16 has 8 bits: a number below 2^e is off by at most 2^(e-9). The rounding of the sums behind the stored numbers
    is not in `gram_error`; the pursuit adds it.
    """
    low = dictionary.bfloat16()
    gram = compute_gram(low, reuse.gram if reuse else None)
    largest = largest_off_diagonal(gram)
    gram_error = torch.where(largest > 0, torch.ldexp(torch.ones_like(largest), torch.frexp(largest).exponent - 9), 0)
    return Prepared("numba_certified", dictionary, gram, low, (dictionary - low).norm(dim=1), gram_error)


def pursue_gram(x: Float[Tensor, "row d_in"], prepared: Prepared, rule: Rule) -> Picked:
    """Matching pursuit in the Gram form, each row's scores in the fastest cache: 2 row d_sae flops per step.

    Rounding of the scores can only change which of two nearly equal atoms is picked: values and residual are computed from
    the atoms themselves.
    """
    assert prepared.gram is not None
    indices, values, residual = found = _allocate(x, rule.k)
    tables = prepared.dictionary.numpy(), prepared.gram.numpy(), _read(rule)
    for rows in _chunk(len(x), len(prepared.dictionary)):
        scores = (x[rows] @ prepared.dictionary.T).numpy()
        places = (array[rows].numpy() for array in (residual, indices, values))
        share_rows(len(scores), pursue_rows, *tables, scores, *places)
    return found


def pursue_certified(x: Float[Tensor, "row d_in"], prepared: Prepared, rule: Rule) -> Picked:
    """Matching pursuit that looks for candidates in bfloat16 and decides between them in float32: see `run_certified`."""
    return run_certified(x, prepared, rule)[0]


def run_certified(
    x: Float[Tensor, "row d_in"], prepared: Prepared, rule: Rule, *, candidates_at_most: int | None = None
) -> tuple[Picked, Int[Tensor, "row 2"]]:
    """The picks and, per row, how many candidates were looked at and how often all atoms.

    Every step picks the atom whose inner product with the residual, as float32 computes it, is the largest, the first
    among equals: an error bound decides which atoms can be that one, exact products decide between them. So neither
    `candidates_at_most` (default: one in `ATOMS_PER_CANDIDATE`) nor the number of threads can change a bit of the result.
    """
    if candidates_at_most is None:
        candidates_at_most = max(len(prepared.dictionary) // ATOMS_PER_CANDIDATE, CANDIDATES_AT_LEAST)
    tables, terms = tabulate(prepared, candidates_at_most), _read(rule)
    assert prepared.low is not None
    indices, values, residual = found = _allocate(x, rule.k)
    counts = x.new_zeros(len(x), 2, dtype=torch.int64)
    for rows in _chunk(len(x), len(prepared.dictionary)):
        low = x[rows].bfloat16()
        scores = low @ prepared.low.T
        places = (array[rows].numpy() for array in (residual, indices, values, counts))
        share_rows(len(low), pursue_rows_certified, tables, terms, _see(low), _see(scores), *places)
    return found, counts


def tabulate(prepared: Prepared, candidates_at_most: int) -> Tables:
    assert prepared.low is not None
    assert prepared.low_error is not None
    assert prepared.gram is not None
    assert prepared.gram_error is not None
    error = float(prepared.low_error.max())
    # The diagonal is as exact as bfloat16 is; the atoms themselves are at most `error` longer than their low copies.
    norm = float(prepared.gram.diagonal().max()) ** 0.5 * (1 + 2**-7) + error
    return Tables(
        dictionary=prepared.dictionary.numpy(),
        low=_see(prepared.low),
        gram=_see(prepared.gram),
        gram_error=prepared.gram_error.numpy(),
        atom_error=np.float32(error),
        norm=np.float32(norm),
        candidates_at_most=candidates_at_most,
    )


def _read(rule: Rule) -> Terms:
    tolerance = -1.0 if rule.residual_tol is None else rule.residual_tol
    return Terms(rule.sign == "relu", rule.sign == "abs", rule.reselect, np.float32(tolerance))


def _allocate(x: Tensor, k: int) -> Picked:
    """Codes that are padding everywhere, and the rows: what the loops start from."""
    indices, values = x.new_zeros(len(x), k, dtype=torch.int64), x.new_zeros(len(x), k)
    return indices, values, x.clone(memory_format=torch.contiguous_format)


def _chunk(n_rows: int, n_atoms: int) -> Iterator[slice]:
    size = max(SCORES_AT_ONCE // n_atoms, ROWS_AT_ONCE)
    return (slice(start, start + size) for start in range(0, n_rows, size))


def _see(low: Tensor) -> NDArray[np.int16]:
    """The bits of a bfloat16 tensor, which numpy has no type for."""
    return low.view(torch.int16).numpy()
