"""The fast form of orthogonal matching pursuit, without gradients, in pure torch."""

import torch
from jaxtyping import Float
from torch import Tensor

from thresher.train.kernels.forms import KEPT_AT_MOST, Picked, argmax_first
from thresher.train.kernels.reference import DEPENDENT, ROUNDING_STEPS
from thresher.train.kernels.rule import Rule

NUMBERS_AT_ONCE = {"cpu": 2**21, "cuda": 2**28}
"""Scores and basis vectors held at once."""


def pursue_by_basis(x: Float[Tensor, "row d_in"], dictionary: Float[Tensor, "d_sae d_in"], rule: Rule) -> Picked:
    """OMP with one product of residual and dictionary per step and an orthonormal basis of each row's atoms.

    2 row d_sae d_in flops per step, and 8 t row d_in at step t for the basis (Gram-Schmidt, done twice, which keeps it
    orthogonal to rounding). The residual loses its part along each new basis vector, so nothing is fitted before the end,
    where one triangular system per row gives the values.
    """
    d_sae, (n_rows, d_in) = dictionary.shape[0], x.shape
    numbers_per_row = d_sae * (2 if rule.sign == "abs" else 1) + rule.k * (d_in + rule.k)
    at_once = max(NUMBERS_AT_ONCE.get(x.device.type, NUMBERS_AT_ONCE["cuda"]) // numbers_per_row, 16)
    indices = torch.zeros(n_rows, rule.k, dtype=torch.int64, device=x.device)
    values, residual = x.new_zeros(n_rows, rule.k), torch.empty_like(x, memory_format=torch.contiguous_format)
    for start in range(0, n_rows, at_once):
        part = slice(start, start + at_once)
        _Chunk(x[part], rule, (indices[part], values[part], residual[part])).pursue(dictionary)
    return indices, values, residual


class _Chunk:
    """Rows that are pursued together. On a CPU, rows that have stopped are dropped on the way and cost nothing more."""

    def __init__(self, x: Tensor, rule: Rule, found: Picked) -> None:
        n_rows, k = x.shape[0], rule.k
        self.rule, self.found = rule, found
        self.rows = torch.arange(n_rows, device=x.device)
        """Where in the chunk the rows are that are still worked on; everything below holds only these."""
        self.left = x.clone(memory_format=torch.contiguous_format)
        self.norm = x.norm(dim=1)
        self.indices = torch.zeros(n_rows, k, dtype=torch.int64, device=x.device)
        self.is_going = torch.ones(n_rows, dtype=torch.bool, device=x.device)
        self.basis = x.new_zeros(n_rows, k, x.shape[1])
        self.triangle = torch.eye(k, dtype=x.dtype, device=x.device).repeat(n_rows, 1, 1)
        """Inner products of basis vectors (rows) and picks (columns)."""
        self.parts = x.new_zeros(n_rows, k)
        """Inner products of the row and its basis vectors."""

    def pursue(self, dictionary: Tensor) -> None:
        for step in range(self.rule.k):
            picks, value = self.choose(dictionary, step)
            self.take(dictionary.index_select(0, picks), picks, value, step)
            if self.left.device.type == "cpu" and int(self.is_going.sum()) <= KEPT_AT_MOST * len(self.rows):
                self.drop_finished()
                if not len(self.rows):
                    return
        self.write(slice(None))

    def choose(self, dictionary: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """The best atoms not picked yet, and their inner products with the residual."""
        scores = self.left @ dictionary.T
        candidates = scores.abs() if self.rule.sign == "abs" else scores
        picks = argmax_first(candidates.scatter_(1, self.indices[:, :step], -torch.inf))
        value = scores.gather(1, picks[:, None])[:, 0]
        return picks, value if self.rule.sign == "relu" else value.abs()

    def take(self, atoms: Tensor, picks: Tensor, value: Tensor, step: int) -> None:
        """Add the picks to the basis and subtract their parts, in the rows that go on."""
        basis, outside, along = self.basis[:, :step], atoms[:, None], atoms.new_zeros(len(atoms), 1, step)
        # Row times matrix: as matrix times column the same products take torch ten times longer on a CPU.
        for _ in range(2):
            part = torch.bmm(outside, basis.mT)
            outside = torch.baddbmm(outside, part, basis, alpha=-1)
            along += part
        outside = outside[:, 0]
        length, dtype = outside.norm(dim=1), atoms.dtype
        self.is_going &= value > ROUNDING_STEPS * torch.finfo(dtype).eps * self.norm
        self.is_going &= length > DEPENDENT[dtype] * atoms.norm(dim=1)
        if self.rule.residual_tol is not None:
            self.is_going &= self.left.norm(dim=1) > self.rule.residual_tol * self.norm
        is_going = self.is_going[:, None]
        vector = torch.where(is_going, outside / length[:, None], 0)
        part = (vector * self.left).sum(1, keepdim=True)
        self.left.addcmul_(vector, part, value=-1)
        self.indices[:, step] = torch.where(self.is_going, picks, 0)
        self.basis[:, step], self.parts[:, step] = vector, part[:, 0]
        self.triangle[:, :step, step] = torch.where(is_going, along[:, 0], 0)
        self.triangle[:, step, step] = torch.where(self.is_going, length, 1)

    def drop_finished(self) -> None:
        """Write down the rows that have stopped and keep the others."""
        self.write((~self.is_going).nonzero()[:, 0])
        keep = self.is_going.nonzero()[:, 0]
        self.rows, self.left, self.norm = self.rows[keep], self.left[keep], self.norm[keep]
        self.indices, self.is_going, self.parts = self.indices[keep], self.is_going[keep], self.parts[keep]
        self.basis, self.triangle = self.basis[keep], self.triangle[keep]

    def write(self, which: Tensor | slice) -> None:
        """Put the results of these rows where they belong."""
        indices, values, residual = self.found
        fitted = torch.linalg.solve_triangular(self.triangle, self.parts[:, :, None], upper=True)[:, :, 0]
        for target, found in ((indices, self.indices), (values, fitted), (residual, self.left)):
            target[self.rows[which]] = found[which]
