"""Crosscoders: one code for the rows of several hook points, each with its own block of encoder and decoder."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from thresher.config import config
from thresher.errors import ConfigError
from thresher.train.arch.batch_topk import BatchTopKFields, BatchTopKSAE
from thresher.train.arch.relu import PenaltyFields, ReluSAE
from thresher.train.kernels import Codes, pack
from thresher.train.protocol import Stats


@config
class Crosscoder(PenaltyFields):
    """Crosscoder with an L1 penalty weighted by decoder norms (Lindsey et al. 2024, transformer-circuits.pub).

    Its `hook_points` stand side by side in a row: several layers, both towers, or one place in several models. They may
    differ in width; each is normalised on its own.
    """

    kind: Literal["crosscoder"] = "crosscoder"
    """Which architecture this is."""
    widths: tuple[int, ...] = ()
    """Widths of the hook points, in their order; training reads them from the store."""


@config
class BatchTopKCrosscoder(BatchTopKFields):
    """Crosscoder that selects over a batch by value times decoder norms, with AuxK (arXiv 2504.02922)."""

    kind: Literal["batch_topk_crosscoder"] = "batch_topk_crosscoder"
    """Which architecture this is."""
    widths: tuple[int, ...] = ()
    """Widths of the hook points, in their order; training reads them from the store."""


def block_norms(dictionary: Float[Tensor, "d_sae d_in"], widths: tuple[int, ...]) -> Float[Tensor, "d_sae block"]:
    """The norm of each atom's part for each hook point, in normalised activations."""
    return torch.stack([torch.linalg.vector_norm(part, dim=1) for part in dictionary.split(widths, dim=1)], dim=1)


def relative_norms(dictionary: Float[Tensor, "d_sae d_in"], widths: tuple[int, ...]) -> Float[Tensor, "d_sae block"]:
    """Relative decoder norms: the share of each hook point in the sum of an atom's norms; rows sum to 1.

    An atom of two hook points alone has (1, 0), one that both share alike (1/2, 1/2).
    """
    norms = block_norms(dictionary, widths)
    return norms / norms.sum(1, keepdim=True).clamp_min(torch.finfo(norms.dtype).tiny)


class CrosscoderSAE(ReluSAE):
    """Minimises sum_l ||x_l - x_hat_l||^2 + l1 sum_j z_j sum_l ||d_jl||, per dimension.

    An atom's blocks together have unit norm. That takes nothing away: neither term changes when z_j is multiplied and all of
    d_j divided by the same number.
    """

    def __init__(self, settings: Crosscoder, d_in: int, generator: torch.Generator) -> None:
        self.widths = check_widths(settings.widths, d_in)
        super().__init__(settings, d_in, generator)

    @property
    def encoded(self) -> tuple[int, ...]:
        """All blocks."""
        return tuple(range(len(self.widths)))

    decoded = encoded

    def loss(self, x: Float[Tensor, "row d_in"]) -> tuple[Float[Tensor, ""], Stats]:
        """Squared error and penalty over d_in, mean over rows."""
        activations, atoms = self.preactivate(x).relu(), self.atoms()
        residual = x - activations @ atoms - self.bias
        sparsity = self.l1 * (activations @ block_norms(atoms, self.widths).sum(1)).mean() / self.d_in
        loss = residual.square().mean() + sparsity
        is_active = activations.detach() > 0
        parts = {"loss": loss, "sparsity": sparsity, "l1": self.l1.clone()}
        return loss, self.describe(x, residual, is_active.sum(1), is_active.any(0), parts)

    def transcode(self, x: Float[Tensor, "row d_in"]) -> tuple[Codes, Float[Tensor, "row d_in"]]:
        """The codes, and what they decode to."""
        codes = self.encode(x)
        return codes, self.decode(codes)


class BatchTopKCrosscoderSAE(BatchTopKSAE):
    """Keeps the largest z_j sum_l ||d_jl|| of a batch; encodes by a threshold for these."""

    def __init__(self, settings: BatchTopKCrosscoder, d_in: int, generator: torch.Generator) -> None:
        self.widths = check_widths(settings.widths, d_in)
        super().__init__(settings, d_in, generator)

    @property
    def encoded(self) -> tuple[int, ...]:
        """All blocks."""
        return tuple(range(len(self.widths)))

    decoded = encoded

    def encode(self, x: Float[Tensor, "row d_in"], k: int | None = None) -> Codes:
        """The positive outputs that reach the threshold at their atoms' norms, in that order; at most `k` of them."""
        norms = self._norms()
        weighed = self.preactivate(x).relu() * norms
        codes = pack(torch.where(weighed >= self.threshold, weighed, 0), k)
        return Codes(codes.indices, codes.values / norms.index_select(0, codes.indices.flatten()).view_as(codes.indices))

    def select(self, preactivations: Tensor) -> tuple[Tensor, Tensor]:
        """As BatchTopK, but by value times norms; the smallest kept one is given so too."""
        norms = self._norms()
        kept, smallest = super().select(preactivations * norms)
        return kept / norms, smallest

    def transcode(self, x: Float[Tensor, "row d_in"]) -> tuple[Codes, Float[Tensor, "row d_in"]]:
        """The codes, and what they decode to."""
        codes = self.encode(x)
        return codes, self.decode(codes)

    def _norms(self) -> Tensor:
        """Sums of the atoms' block norms, at least 1; what is selected gives no gradient for them."""
        return block_norms(self.dictionary.detach(), self.widths).sum(1)


def check_widths(widths: tuple[int, ...], d_in: int) -> tuple[int, ...]:
    """The widths of at least two hook points that make `d_in` together. Raises ConfigError."""
    if len(widths) < 2 or min(widths) < 1 or sum(widths) != d_in:
        raise ConfigError(f"widths={list(widths)}: give those of at least two hook points, {d_in} together")
    return widths
