"""Archetypal dictionaries: every atom stays near what non-negative mixtures of data points can be."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from thresher.config import config
from thresher.errors import ConfigError
from thresher.train.kernels import Codes, sparse_decode, sparse_encode

FITS_PER_STEP = 4
"""Steps of steepest descent that follow an atom's mixture after each optimizer step; they go on from the last ones."""


@config
class HullConfig:
    """Relaxed archetypal dictionary (RA-SAE, arXiv 2502.12892) with sparse mixtures."""

    delta: float = 0.01
    """Largest distance of a unit-norm atom from a mixture of its points: 0 is the archetypal SAE, 1 leaves atoms free."""
    points: int = 32_000
    """Data points to mix: the first training rows, brought to unit norm. Before they are there, atoms are free."""
    mixed: int = 64
    """Points that an atom may mix: those nearest to it when all points are there."""

    def __post_init__(self) -> None:
        if not 0 <= self.delta <= 1:
            raise ConfigError(f"delta={self.delta}: give a distance from 0 to 1")
        if not 0 < self.mixed <= self.points:
            raise ConfigError(f"mixed={self.mixed}: an atom mixes between 1 and points={self.points} data points")


class Hull(nn.Module):
    """Projects unit-norm atoms onto those within `delta` of the cone of their points.

    The published dictionary is W C + L with rows of W on the simplex and |L_i| <= delta, trained through W and L. Codes
    carry the norm of a unit-norm atom, so that its convex hull becomes a cone; and the constraint is kept here by
    projection after each optimizer step, so that it serves every encoder and optimizer. Memory: points d_in + d_sae mixed.
    """

    points: Tensor
    candidates: Tensor
    weights: Tensor

    def __init__(self, settings: HullConfig, d_in: int, d_sae: int) -> None:
        super().__init__()
        self.settings = settings
        self.n_points = 0
        self.register_buffer("points", torch.zeros(settings.points, d_in))
        self.register_buffer("candidates", torch.zeros(d_sae, settings.mixed, dtype=torch.int64))
        self.register_buffer("weights", torch.zeros(d_sae, settings.mixed))

    @property
    def n_wanted(self) -> int:
        """Points that are still to come."""
        return self.settings.points - self.n_points

    @torch.no_grad()
    def collect(self, rows: Float[Tensor, "row d_in"], atoms: Float[Tensor, "d_sae d_in"]) -> None:
        """Take the rows that are wanted as points; with the last ones, choose the points of each atom and project it."""
        rows = rows[: self.n_wanted]
        self.points[self.n_points : self.n_points + len(rows)] = functional.normalize(rows, dim=1)
        self.n_points += len(rows)
        if len(rows) and not self.n_wanted:
            for some, at in zip(atoms.split(1024), range(0, len(atoms), 1024), strict=True):
                nearest = (some @ self.points.T).topk(self.settings.mixed, dim=1).indices
                self.candidates[at : at + 1024] = nearest
            self.weights[:, 0] = 1
            self.project(atoms)

    @torch.no_grad()
    def project(self, atoms: Float[Tensor, "d_sae d_in"]) -> None:
        """Move unit-norm atoms in place, once all points are there; they keep unit norm.

        An atom d turns in the plane of itself and its mixture c until the sine of their angle is `delta` at most: then its
        distance from the cone is too, however good the fit of c is.
        """
        if self.n_wanted:
            return
        mixture = functional.normalize(self._fit(atoms), dim=1)
        along = (atoms * mixture).sum(1, keepdim=True)
        across = atoms - along * mixture
        sine = torch.linalg.vector_norm(across, dim=1, keepdim=True)
        is_near = (sine <= self.settings.delta) & (along > 0)
        turned = math.sqrt(1 - self.settings.delta**2) * mixture + self.settings.delta * functional.normalize(across, dim=1)
        atoms.copy_(torch.where(is_near, atoms, functional.normalize(turned, dim=1)))

    def _fit(self, atoms: Tensor) -> Tensor:
        """Follow the non-negative least-squares fit of each atom by its points, and return the mixtures; none is zero."""
        for _ in range(FITS_PER_STEP):
            mixture = sparse_decode(Codes(self.candidates, self.weights), self.points)
            gradient = sparse_encode(mixture - atoms, self.points, self.candidates)
            # Where a weight is at its bound and would leave it, nothing moves.
            gradient = torch.where((self.weights > 0) | (gradient < 0), gradient, 0)
            change = sparse_decode(Codes(self.candidates, gradient), self.points).square().sum(1, keepdim=True)
            tiny = torch.finfo(atoms.dtype).tiny
            self.weights.sub_(gradient * (gradient.square().sum(1, keepdim=True) / change.clamp_min(tiny))).clamp_min_(0)
            is_empty = ~self.weights.any(1)
            self.weights[:, 0] = torch.where(is_empty, 1, self.weights[:, 0])
        return sparse_decode(Codes(self.candidates, self.weights), self.points)

    def get_extra_state(self) -> Tensor:
        """How many points are there; kept on the host, which asks for it at every batch."""
        return torch.tensor([self.n_points])

    def set_extra_state(self, state: Tensor) -> None:
        """Go on collecting where `state` was taken."""
        self.n_points = int(state[0])
