"""Was a pursuit greedy? An audit in float64 along the path that was taken, so that near ties do not compound."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from thresher.train.kernels import Codes, Sign

CONVERGED = 0.1
"""Below this share of the row's norm, a residual in float32 carries the rounding of the row it came from, which a comparison
relative to the residual alone would count as a wrong pick."""


class Audit(NamedTuple):
    """Worst findings over all rows and steps; 0 everywhere for an exact pursuit."""

    gap: float
    """By how much the best score exceeded that of the atom picked, relative to the residual's norm at that step, or to
    `CONVERGED` of the row's norm where the residual is smaller."""
    value_error: float
    """Distance of a value from the inner product of its atom and the residual, relative to the row's norm."""
    residual_error: float
    """Distance of the returned residual from the row less its picks, relative to the row's norm."""
    stop_gap: float
    """Best score left where a row stopped without reaching the tolerance, relative to the row's norm."""
    n_late: int
    """Steps taken although the tolerance was reached (by more than 1e-5 of the limit)."""
    n_misplaced: int
    """Padded entries that are not (index 0, value 0), or stand before a pick."""


@torch.no_grad()
def audit_pursuit(
    x: Float[Tensor, "row d_in"],
    dictionary: Float[Tensor, "d_sae d_in"],
    codes: Codes,
    residual: Float[Tensor, "row d_in"],
    *,
    sign: Sign = "relu",
    reselect: bool = True,
    residual_tol: float | None = None,
) -> Audit:
    """Follow the picks in float64 and compare each with the best there was. Holds [row, d_sae] in float64."""
    x, dictionary, r = x.double(), dictionary.double(), x.double()
    norm = x.norm(dim=1)
    scale = torch.where(norm > 0, norm, 1)
    is_taken = torch.zeros(x.shape[0], dictionary.shape[0], dtype=torch.bool, device=x.device)
    is_going = codes.values != 0
    gaps, value_errors, stop_gaps, n_late = [x.new_zeros(1)], [x.new_zeros(1)], [x.new_zeros(1)], 0
    was_going = torch.ones_like(norm, dtype=torch.bool)
    for picks, value, going in zip(codes.indices.T, codes.values.double().T, is_going.T, strict=True):
        scores = r @ dictionary.T
        exact = scores.gather(1, picks[:, None])[:, 0]
        scores = (scores.abs() if sign == "abs" else scores).masked_fill(is_taken, -torch.inf)
        left, best, chosen = r.norm(dim=1), scores.amax(1), scores.gather(1, picks[:, None])[:, 0]
        gaps.append(((best - chosen) / left.maximum(CONVERGED * scale))[going])
        value_errors.append(((value - exact).abs() / scale)[going])
        limit = -1.0 if residual_tol is None else residual_tol
        n_late += int((going & (left < limit * norm * (1 - 1e-5))).sum())
        # A row of any sign goes on until its best score is zero, not only until it is not positive.
        unused = best.abs() if sign == "signed" else best
        stop_gaps.append((unused / scale)[was_going & ~going & (left > limit * norm * (1 + 1e-5))])
        r = r - torch.where(going, value, 0)[:, None] * dictionary[picks]
        if not reselect:
            is_taken.scatter_(1, picks[:, None], going[:, None])
        was_going = going
    is_padded = ~is_going
    n_misplaced = int((is_padded & (codes.indices != 0)).sum()) + int((is_padded[:, :-1] & is_going[:, 1:]).sum())
    error = (residual.double() - r).norm(dim=1) / scale
    worst = (float(torch.cat(found).max()) for found in (gaps, value_errors, [error, x.new_zeros(1)], stop_gaps))
    gap, value_error, residual_error, stop_gap = worst
    return Audit(gap, value_error, residual_error, max(stop_gap, 0.0), n_late, n_misplaced)
