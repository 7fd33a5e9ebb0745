"""Fast forms of matching pursuit without gradients, in pure torch."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from thresher.train.kernels.prepared import Prepared
from thresher.train.kernels.rule import Rule

ARGMAX_BLOCK = 64
"""Columns per block of `argmax_first`: amax is vectorised on the CPU, argmax is not (measured 3 to 5 times faster)."""
CPU_CHUNK = 2**18
"""Scores held at once on a CPU: 1 MB of fp32, so that a chunk's updates stay in the second-level cache."""
CUDA_CHUNK = 2**28
"""Scores held at once on a GPU: 1 GB of fp32."""
GRAM_BLOCK = 1024
"""Rows per block when the Gram matrix is built from its upper triangle."""

Picked = tuple[Int[Tensor, "row k"], Float[Tensor, "row k"], Float[Tensor, "row d_in"]]
"""Indices, values, residual."""


def prepare_residual(dictionary: Float[Tensor, "d_sae d_in"]) -> Prepared:
    """Nothing but the dictionary."""
    return Prepared("residual", dictionary)


def prepare_gram(dictionary: Float[Tensor, "d_sae d_in"]) -> Prepared:
    """The Gram matrix: d_sae^2 numbers, d_sae^2 d_in flops."""
    return Prepared("gram", dictionary, compute_gram(dictionary))


def pursue_by_residual(x: Float[Tensor, "row d_in"], prepared: Prepared, rule: Rule) -> Picked:
    """Pursuit with one product of residual and dictionary per step: 2 row d_sae d_in flops each."""
    return _pursue_in_chunks(x, prepared.dictionary, None, rule)


def pursue_by_gram(x: Float[Tensor, "row d_in"], prepared: Prepared, rule: Rule) -> Picked:
    """Pursuit that updates the inner products by rows of the Gram matrix: 2 row d_sae flops per step.

    Rounding of the updated inner products can only change which of two nearly equal atoms is picked: coefficients and
    residual are computed from the atoms themselves.
    """
    return _pursue_in_chunks(x, prepared.dictionary, prepared.gram, rule)


def compute_gram(dictionary: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, "d_sae d_sae"]:
    """Inner products of all atoms; large ones from the upper triangle of blocks, for half of the flops."""
    n = dictionary.shape[0]
    if n < 2 * GRAM_BLOCK:
        return dictionary @ dictionary.T
    gram = torch.empty(n, n, dtype=dictionary.dtype, device=dictionary.device)
    for start in range(0, n, GRAM_BLOCK):
        stop = min(start + GRAM_BLOCK, n)
        gram[start:stop, start:] = dictionary[start:stop] @ dictionary[start:].T
        gram[stop:, start:stop] = gram[start:stop, stop:].T
    return gram


def argmax_first(scores: Float[Tensor, "row d_sae"]) -> Int[Tensor, "row"]:
    """Index of the largest score of each row, the lowest one among equals."""
    n = scores.shape[1]
    if scores.device.type != "cpu" or n < 4 * ARGMAX_BLOCK:
        return scores.argmax(1)
    blocks = scores.unfold(1, ARGMAX_BLOCK, ARGMAX_BLOCK)
    block_max = blocks.amax(2)
    block = block_max.argmax(1, keepdim=True)
    inside = blocks.take_along_dim(block[:, :, None], 1)[:, 0].argmax(1)
    best = block[:, 0] * ARGMAX_BLOCK + inside
    whole = n - n % ARGMAX_BLOCK
    if whole == n:
        return best
    rest = scores[:, whole:]
    is_in_rest = rest.amax(1) > block_max.gather(1, block)[:, 0]
    return torch.where(is_in_rest, rest.argmax(1) + whole, best)


def _pursue_in_chunks(x: Tensor, dictionary: Tensor, gram: Tensor | None, rule: Rule) -> Picked:
    n_rows, n_atoms = x.shape[0], dictionary.shape[0]
    scores_at_once = CPU_CHUNK if x.device.type == "cpu" else CUDA_CHUNK
    rows_at_once = max(scores_at_once // n_atoms, 64 if gram is not None else 256)
    indices = torch.empty(n_rows, rule.k, dtype=torch.int64, device=x.device)
    values = torch.empty(n_rows, rule.k, dtype=x.dtype, device=x.device)
    residual = x.clone(memory_format=torch.contiguous_format)
    for start in range(0, n_rows, rows_at_once):
        chunk = slice(start, start + rows_at_once)
        _pursue_chunk(residual[chunk], dictionary, gram, rule, indices[chunk], values[chunk])
    return indices, values, residual


def _pursue_chunk(
    residual: Tensor, dictionary: Tensor, gram: Tensor | None, rule: Rule, indices: Tensor, values: Tensor
) -> None:
    """Run the pursuit in place: `residual` holds the rows at first and the residual at the end."""
    limit = None if rule.residual_tol is None else rule.residual_tol * residual.norm(dim=1)
    is_going = torch.ones(residual.shape[0], dtype=torch.bool, device=residual.device)
    is_taken = (
        None if rule.reselect else torch.zeros(residual.shape[0], dictionary.shape[0], dtype=torch.bool, device=residual.device)
    )
    scores = residual @ dictionary.T
    update = torch.empty_like(scores) if gram is not None else scores
    for step in range(rule.k):
        picks = _choose(scores, rule, is_taken)
        atoms = dictionary.index_select(0, picks)
        value = (atoms * residual).sum(1)
        is_going &= (value > 0) if rule.sign == "relu" else (value != 0)
        if limit is not None:
            is_going &= residual.norm(dim=1) > limit
        value = torch.where(is_going, value, 0)
        residual.addcmul_(atoms, value[:, None], value=-1)
        indices[:, step] = torch.where(is_going, picks, 0)
        values[:, step] = value
        if is_taken is not None:
            is_taken.scatter_(1, picks[:, None], True)
        if step + 1 == rule.k:
            return
        if gram is None:
            torch.mm(residual, dictionary.T, out=scores)
        else:
            torch.index_select(gram, 0, picks, out=update)
            scores.addcmul_(update, value[:, None], value=-1)


def _choose(scores: Tensor, rule: Rule, is_taken: Tensor | None) -> Tensor:
    if rule.sign == "abs":
        scores = scores.abs()
    if is_taken is not None:
        scores = scores.masked_fill(is_taken, -torch.inf)
    return argmax_first(scores)
