"""Matching pursuit as plainly as it can be written, in any floating type, for plain autograd: the definition."""

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
