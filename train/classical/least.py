"""Least-squares coefficients on chosen atoms."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from thresher.train.kernels import Codes, sparse_encode

GATHERED_AT_ONCE = 2**21
"""Numbers of gathered atoms held at once."""
RIDGE = 1e-9
"""Added to the diagonal of Gram matrices of unit vectors, so that dependent atoms have a solution."""


def keep_largest(contributions: Float[Tensor, "row d_sae"], k: int) -> Int[Tensor, "row k"]:
    """The k entries of each row that are largest in absolute value, in that order."""
    return contributions.abs().topk(min(k, contributions.shape[1]), dim=1).indices


def fit_values(x: Float[Tensor, "row d_in"], dictionary: Float[Tensor, "d_sae d_in"], indices: Int[Tensor, "row k"]) -> Codes:
    """The code with these atoms that is nearest to each row."""
    if x.shape[0] == 0:
        return Codes(indices, x.new_zeros(indices.shape))
    products, grams = _gather(x, dictionary, indices)
    factor = torch.linalg.cholesky(grams + RIDGE * torch.eye(indices.shape[1], dtype=grams.dtype, device=x.device))
    return _code(indices, torch.cholesky_solve(products[:, :, None], factor)[:, :, 0].to(x.dtype))


def fit_positive_values(
    x: Float[Tensor, "row d_in"], dictionary: Float[Tensor, "d_sae d_in"], indices: Int[Tensor, "row k"], n_iterations: int
) -> Codes:
    """The code with these atoms and no negative value that is nearest to each row, approached by `n_iterations`."""
    if x.shape[0] == 0:
        return Codes(indices, x.new_zeros(indices.shape))
    products, grams = _gather(x, dictionary, indices)
    # A product of each row with its own Gram matrix, as `descend` takes the rows' product with a common one.
    bound = grams.abs().sum(2).amax(1)[:, None]
    values = torch.zeros_like(products)
    ahead = values
    for t in range(n_iterations):
        gradient = (grams @ ahead[:, :, None])[:, :, 0] - products
        before, values = values, (ahead - gradient / bound).clamp_min(0)
        ahead = values + t / (t + 3) * (values - before)
    return _code(indices, values.to(x.dtype))


def descend(
    x: Float[Tensor, "row d_in"], dictionary: Float[Tensor, "d_sae d_in"], n_iterations: int
) -> Float[Tensor, "row d_sae"]:
    """Non-negative z that come near min ||x - z D||^2: accelerated projected gradient descent from 0 (FISTA).

    The step 1 / max_i sum_j |<d_i, d_j>| is at most that of the largest eigenvalue.
    """
    products, gram = x @ dictionary.T, dictionary @ dictionary.T
    step = 1 / gram.abs().sum(1).amax()
    values = ahead = torch.zeros_like(products)
    for t in range(n_iterations):
        before, values = values, (ahead - step * (ahead @ gram - products)).clamp_min(0)
        ahead = values + t / (t + 3) * (values - before)
    return values


def _gather(x: Tensor, dictionary: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Inner products of each row with its atoms, and of these among themselves, in float64."""
    k, d_in = indices.shape[1], dictionary.shape[1]
    grams = torch.empty(len(x), k, k, dtype=torch.float64, device=x.device)
    at_once = max(GATHERED_AT_ONCE // (k * d_in), 1)
    for start in range(0, len(x), at_once):
        atoms = dictionary[indices[start : start + at_once]].double()
        grams[start : start + at_once] = atoms @ atoms.mT
    return sparse_encode(x.double(), dictionary.double(), indices), grams


def _code(indices: Tensor, values: Tensor) -> Codes:
    return Codes(torch.where(values != 0, indices, 0), values)
