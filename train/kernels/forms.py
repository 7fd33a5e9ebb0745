"""Fast forms of matching pursuit without gradients, in pure torch."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from thresher.train.kernels.prepared import Prepared
from thresher.train.kernels.rule import Rule

ARGMAX_BLOCK = 64
"""Columns per block of `argmax_first`: amax is vectorised on the CPU, argmax is not (measured 3 to 5 times faster)."""
CPU_CHUNK = 2**20
"""Scores held at once on a CPU: 4 MB of fp32, measured best of 1 to 16 MB (32 MB of third-level cache)."""
CUDA_CHUNK = 2**28
"""Scores held at once on a GPU: 1 GB of fp32."""
GRAM_BLOCK = 512
"""Rows per block when the Gram matrix is built from its upper triangle."""
KEPT_AT_MOST = 0.75
"""Rows that have stopped are dropped from a chunk when at most this share of its rows goes on."""

Picked = tuple[Int[Tensor, "row k"], Float[Tensor, "row k"], Float[Tensor, "row d_in"]]
"""Indices, values, residual."""


def prepare_residual(dictionary: Float[Tensor, "d_sae d_in"], reuse: Prepared | None = None) -> Prepared:
    """Nothing but the dictionary."""
    return Prepared("residual", dictionary)


def prepare_gram(dictionary: Float[Tensor, "d_sae d_in"], reuse: Prepared | None = None) -> Prepared:
    """The Gram matrix: d_sae^2 numbers, d_sae^2 d_in flops."""
    return Prepared("gram", dictionary, compute_gram(dictionary, reuse.gram if reuse else None))


def pursue_by_residual(x: Float[Tensor, "row d_in"], prepared: Prepared, rule: Rule) -> Picked:
    """Pursuit with one product of residual and dictionary per step: 2 row d_sae d_in flops each."""
    return _pursue_in_chunks(x, prepared, rule)


def pursue_by_gram(x: Float[Tensor, "row d_in"], prepared: Prepared, rule: Rule) -> Picked:
    """Pursuit that updates the inner products by rows of the Gram matrix: 2 row d_sae flops per step.

    Rounding of the updated inner products can only change which of two nearly equal atoms is picked: coefficients and
    residual are computed from the atoms themselves.
    """
    return _pursue_in_chunks(x, prepared, rule)


def compute_gram(
    dictionary: Float[Tensor, "d_sae d_in"], out: Float[Tensor, "d_sae d_sae"] | None = None
) -> Float[Tensor, "d_sae d_sae"]:
    """Inner products of all atoms; large ones from the upper triangle of blocks, for little more than half of the flops.

    Written into `out` if given: fresh memory takes a quarter longer on a CPU, for its page faults.
    """
    n = dictionary.shape[0]
    gram = torch.empty(n, n, dtype=dictionary.dtype, device=dictionary.device) if out is None else out
    if n < 2 * GRAM_BLOCK:
        return torch.mm(dictionary, dictionary.T, out=gram)
    for start in range(0, n, GRAM_BLOCK):
        stop = min(start + GRAM_BLOCK, n)
        torch.mm(dictionary[start:stop], dictionary[start:].T, out=gram[start:stop, start:])
        for below in range(stop, n, GRAM_BLOCK):
            beside = slice(below, below + GRAM_BLOCK)
            gram[beside, start:stop] = gram[start:stop, beside].T
    return gram


def argmax_first(scores: Float[Tensor, "row d_sae"]) -> Int[Tensor, "row"]:
    """Index of the largest score of each row, the lowest one among equals."""
    n = scores.shape[1]
    if scores.device.type != "cpu" or n < 4 * ARGMAX_BLOCK:
        return scores.argmax(1)
    whole = n - n % ARGMAX_BLOCK
    blocks = scores[:, :whole].unflatten(1, (-1, ARGMAX_BLOCK))
    block_max = blocks.amax(2)
    block = block_max.argmax(1, keepdim=True)
    inside = blocks[torch.arange(len(scores), device=scores.device), block[:, 0]].argmax(1)
    best = block[:, 0] * ARGMAX_BLOCK + inside
    if whole == n:
        return best
    rest = scores[:, whole:]
    is_in_rest = rest.amax(1) > block_max.gather(1, block)[:, 0]
    return torch.where(is_in_rest, rest.argmax(1) + whole, best)


def _pursue_in_chunks(x: Tensor, prepared: Prepared, rule: Rule) -> Picked:
    n_rows, n_atoms = x.shape[0], prepared.dictionary.shape[0]
    scores_at_once = CPU_CHUNK if x.device.type == "cpu" else CUDA_CHUNK
    rows_at_once = min(max(scores_at_once // n_atoms, 64), max(n_rows, 1))
    indices = torch.zeros(n_rows, rule.k, dtype=torch.int64, device=x.device)
    values = torch.zeros(n_rows, rule.k, dtype=x.dtype, device=x.device)
    residual = x.clone(memory_format=torch.contiguous_format)
    scores = x.new_empty(rows_at_once, n_atoms)
    spare = torch.empty_like(scores) if prepared.gram is not None or rule.sign == "abs" else scores
    for start in range(0, n_rows, rows_at_once):
        part = slice(start, start + rows_at_once)
        chunk = _Chunk(residual[part], indices[part], values[part], scores, spare)
        _pursue_chunk(chunk, prepared, rule)
    return indices, values, residual


def _pursue_chunk(chunk: "_Chunk", prepared: Prepared, rule: Rule) -> None:
    """Run the pursuit in place: the chunk's residual holds the rows at first and the residual at the end."""
    dictionary, gram = prepared.dictionary, prepared.gram
    limit = None if rule.residual_tol is None else rule.residual_tol * chunk.left.norm(dim=1)
    torch.mm(chunk.left, dictionary.T, out=chunk.scores)
    for step in range(rule.k):
        picks = chunk.choose(rule, step)
        atoms = dictionary.index_select(0, picks)
        value = (atoms * chunk.left).sum(1)
        is_going = (value > 0) if rule.sign == "relu" else (value != 0)
        if limit is not None:
            is_going &= chunk.left.norm(dim=1) > limit
        value = chunk.take(step, picks, atoms, value, is_going)
        if step + 1 == rule.k:
            break
        keep = chunk.drop_finished()
        if keep is not None:
            if not len(keep):
                break
            picks, value, limit = picks[keep], value[keep], None if limit is None else limit[keep]
        if gram is None:
            torch.mm(chunk.left, dictionary.T, out=chunk.scores)
        else:
            torch.index_select(gram, 0, picks, out=chunk.spare)
            chunk.scores.addcmul_(chunk.spare, value[:, None], value=-1)
    chunk.finish()


class _Chunk:
    """Rows that are pursued together. On a CPU, rows that have stopped are dropped on the way and cost nothing more."""

    def __init__(self, residual: Tensor, indices: Tensor, values: Tensor, scores: Tensor, spare: Tensor) -> None:
        self.residual, self.indices, self.values = residual, indices, values
        n_rows = residual.shape[0]
        self.left = residual
        """Residuals of the rows that are still worked on."""
        self.scores, self.spare = scores[:n_rows], spare[:n_rows]
        self.is_updated = spare is not scores
        """Whether the scores of a step are made from those of the step before."""
        self.is_going = torch.ones(n_rows, dtype=torch.bool, device=residual.device)
        self.rows: Tensor | None = None
        """Where in the chunk the rows of `left` are; None while they are all there."""

    def choose(self, rule: Rule, step: int) -> Tensor:
        scores = torch.abs(self.scores, out=self.spare) if rule.sign == "abs" else self.scores
        if not rule.reselect and step:
            taken = self.indices[:, :step] if self.rows is None else self.indices[self.rows, :step]
            # A score of -inf stays so under the updates. Rows that have stopped lose atom 0, which they no longer need.
            scores.scatter_(1, taken, -torch.inf)
        return argmax_first(scores)

    def take(self, step: int, picks: Tensor, atoms: Tensor, value: Tensor, is_going: Tensor) -> Tensor:
        """Subtract the picks of the rows that go on, write them down, and return their values (0 for the other rows)."""
        self.is_going &= is_going
        value = torch.where(self.is_going, value, 0)
        picks = torch.where(self.is_going, picks, 0)
        self.left.addcmul_(atoms, value[:, None], value=-1)
        if self.rows is None:
            self.indices[:, step], self.values[:, step] = picks, value
        else:
            self.indices[self.rows, step], self.values[self.rows, step] = picks, value
        return value

    def drop_finished(self) -> Tensor | None:
        """Drop the rows that have stopped once they are many enough; return the positions kept, None for all."""
        if self.residual.device.type != "cpu":
            return None
        n_going = int(self.is_going.sum())
        if n_going > KEPT_AT_MOST * len(self.is_going):
            return None
        keep = self.is_going.nonzero()[:, 0]
        self.finish()
        self.rows = keep if self.rows is None else self.rows[keep]
        self.left, self.is_going = self.left[keep], self.is_going[keep]
        if self.is_updated:
            torch.index_select(self.scores, 0, keep, out=self.spare[:n_going])
            self.scores, self.spare = self.spare, self.scores
        self.scores, self.spare = self.scores[:n_going], self.spare[:n_going]
        return keep

    def finish(self) -> None:
        """Put the residuals back that were taken out of the chunk."""
        if self.rows is not None:
            self.residual[self.rows] = self.left
