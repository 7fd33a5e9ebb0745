"""Matching pursuit and OMP as plainly as they can be written, in any floating type, for plain autograd: the definitions."""

import torch
from jaxtyping import Float
from torch import Tensor

from thresher.train.kernels.codes import Codes
from thresher.train.kernels.rule import Rule


def pursue_plainly(
    x: Float[Tensor, "row d_in"], dictionary: Float[Tensor, "d_sae d_in"], rule: Rule
) -> tuple[Codes, Float[Tensor, "row d_in"]]:
    """Explain each row by `rule.k` greedy picks; return the codes and the residual.

    A row stops for good when its best coefficient is 0 (for `relu`: not positive) or its residual is small enough; the
    rest of its code is padding, through which no gradient flows. Supports are locally constant: no gradient either.
    Holds [row, d_sae] per step. Mallat & Zhang 1993; arXiv 2506.03093, Alg. 1.
    """
    residual = x
    limit = None if rule.residual_tol is None else rule.residual_tol * x.norm(dim=1)
    is_going = torch.ones(x.shape[0], dtype=torch.bool, device=x.device)
    is_free = torch.ones(x.shape[0], dictionary.shape[0], dtype=torch.bool, device=x.device)
    indices: list[Tensor] = []
    values: list[Tensor] = []
    for _ in range(rule.k):
        with torch.no_grad():
            scores = residual @ dictionary.T
            scores = scores.abs() if rule.sign == "abs" else scores
            picks = torch.where(is_free, scores, -torch.inf).argmax(1)
        value = (dictionary[picks] * residual).sum(1)
        is_going = is_going & (value > 0 if rule.sign == "relu" else value != 0)
        if limit is not None:
            is_going = is_going & (residual.norm(dim=1) > limit)
        value = torch.where(is_going, value, 0)
        residual = residual - value[:, None] * dictionary[picks]
        indices.append(torch.where(is_going, picks, 0))
        values.append(value)
        if not rule.reselect:
            is_free = is_free.scatter(1, picks[:, None], False)
    return Codes(torch.stack(indices, 1), torch.stack(values, 1)), residual


DEPENDENT = {torch.float32: 1e-3, torch.float64: 1e-6}
"""An atom whose part outside the span of a row's earlier picks is at most this share of it counts as dependent on them."""
ROUNDING_STEPS = 32
"""Scores of at most this many units of rounding, relative to the row's norm, count as 0 in OMP."""


def pursue_orthogonally(
    x: Float[Tensor, "row d_in"], dictionary: Float[Tensor, "d_sae d_in"], rule: Rule
) -> tuple[Codes, Float[Tensor, "row d_in"]]:
    """Orthogonal matching pursuit: after each pick, all values are the least-squares fit to the row.

    Picks are those of matching pursuit on the residual of that fit. A row also stops when its best score is rounding, or
    the atom depends on those picked before. Supports carry no gradient, the fit does. Pati et al. 1993.
    """
    with torch.no_grad():
        indices, is_going = _choose_orthogonally(x, dictionary, rule)
        indices = torch.where(is_going, indices, 0)
    # The fit gives atoms of zeros rounding noise.
    values = torch.where(is_going, _fit(x, dictionary[indices] * is_going[:, :, None]), 0)
    return Codes(indices, values), x - (values[:, :, None] * dictionary[indices]).sum(1)


def _choose_orthogonally(x: Tensor, dictionary: Tensor, rule: Rule) -> tuple[Tensor, Tensor]:
    """The picks of each row, and whether each was made before the row stopped."""
    norm, residual = x.norm(dim=1), x
    going = torch.ones(x.shape[0], dtype=torch.bool, device=x.device)
    is_free = torch.ones(x.shape[0], dictionary.shape[0], dtype=torch.bool, device=x.device)
    indices, was_going = torch.empty(x.shape[0], 0, dtype=torch.int64, device=x.device), going[:, None][:, :0]
    for _ in range(rule.k):
        scores = residual @ dictionary.T
        picks = torch.where(is_free, scores.abs() if rule.sign == "abs" else scores, -torch.inf).argmax(1)
        atoms, before = dictionary[picks], dictionary[indices] * was_going[:, :, None]
        value = scores.gather(1, picks[:, None])[:, 0]
        outside = atoms - (_fit(atoms, before)[:, :, None] * before).sum(1)
        going = going & ((value if rule.sign == "relu" else value.abs()) > ROUNDING_STEPS * torch.finfo(x.dtype).eps * norm)
        going = going & (outside.norm(dim=1) > DEPENDENT[x.dtype] * atoms.norm(dim=1))
        if rule.residual_tol is not None:
            going = going & (residual.norm(dim=1) > rule.residual_tol * norm)
        indices, was_going = torch.cat([indices, picks[:, None]], 1), torch.cat([was_going, going[:, None]], 1)
        is_free = is_free.scatter(1, picks[:, None], False)
        fitted = dictionary[indices] * was_going[:, :, None]
        residual = x - (_fit(x, fitted)[:, :, None] * fitted).sum(1)
    return indices, was_going


def _fit(x: Tensor, atoms: Float[Tensor, "row k d_in"]) -> Float[Tensor, "row k"]:
    """Least-squares coefficients of each row on its own atoms; 0 for an atom of zeros, the others being independent."""
    k = atoms.shape[1]
    if k == 0 or x.shape[0] == 0:
        return x.new_zeros(x.shape[0], k)
    # One more equation per atom of zeros, which says that its coefficient is 0, gives the matrix full rank.
    is_zero = (atoms == 0).all(2).to(x.dtype)
    matrix = torch.cat([atoms.transpose(1, 2), torch.diag_embed(is_zero)], 1)
    return torch.linalg.lstsq(matrix, torch.cat([x, x.new_zeros(x.shape[0], k)], 1)[:, :, None]).solution[:, :, 0]
