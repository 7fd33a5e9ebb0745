"""What the classical dictionaries share: atoms, a bias, and rows that they are fitted to once instead of batches."""

import dataclasses
from typing import Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from thresher.config import config
from thresher.errors import ConfigError
from thresher.train.decoder import Decoder
from thresher.train.kernels import Codes, count_active, mark_fired
from thresher.train.protocol import SAE, Stats

Fields = TypeVar("Fields", bound="ClassicalFields")


@config
class ClassicalFields:
    """Fields of every classical dictionary: it is fitted once, to rows in memory, and `optimizer` plays no part."""

    d_sae: int = 512
    """Dictionary size: number of atoms."""
    k: int = 32
    """Atoms per row at most."""
    fit_rows: int = 100_000
    """Rows it is fitted to, all in memory: the first of the shuffled training rows, fewer where the budget or the store is
    smaller."""

    def __post_init__(self) -> None:
        if self.d_sae < 1:
            raise ConfigError(f"d_sae={self.d_sae}: a dictionary needs at least one atom")
        if not 0 < self.k <= self.d_sae:
            raise ConfigError(f"k={self.k}: keep between 1 and d_sae={self.d_sae} atoms")
        if self.fit_rows < 1:
            raise ConfigError(f"fit_rows={self.fit_rows}: fit to at least one row")

    def with_l0(self: Fields, target: float) -> Fields:
        """The same, set to reach `target` active atoms per row: k rounded."""
        return dataclasses.replace(self, k=max(round(target), 1))


@config
class IteratedFields(ClassicalFields):
    """Fields of those that are fitted in rounds."""

    iterations: int = 100
    """Most rounds of the fit over all rows."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.iterations < 1:
            raise ConfigError(f"iterations={self.iterations}: take at least one")


@runtime_checkable
class FittedSAE(SAE, Protocol):
    """A dictionary that is fitted once to rows in memory and not trained by gradients."""

    @property
    def fit_rows(self) -> int:
        """Rows that it wants."""
        ...

    def fit(self, rows: Float[Tensor, "row d_in"], seed: int) -> None:
        """Set all parameters; equal rows and seeds give equal ones. Raises ConfigError: rows that the method cannot take."""
        ...


class FittedCoder(Decoder):
    """A unit-norm dictionary and a decoder with bias. Nothing in it wants a gradient."""

    def __init__(self, d_in: int, settings: ClassicalFields, generator: torch.Generator) -> None:
        """Draw the atoms uniformly on the sphere; `fit` replaces them."""
        super().__init__()
        atoms = functional.normalize(torch.randn(settings.d_sae, d_in, generator=generator), dim=1)
        self.register_parameter("dictionary", nn.Parameter(atoms, requires_grad=False))
        self.bias = nn.Parameter(torch.zeros(d_in), requires_grad=False)
        self.fit_rows = settings.fit_rows

    def encode(self, x: Float[Tensor, "row d_in"], k: int | None = None) -> Codes:
        """The code of each row, at most `k` atoms."""
        raise NotImplementedError

    @torch.no_grad()
    def loss(self, x: Float[Tensor, "row d_in"]) -> tuple[Float[Tensor, ""], Stats]:
        """Mean squared error per dimension; it has no gradient."""
        codes = self.encode(x)
        residual = x - self.decode(codes)
        error = residual.square().mean()
        variance = (x - x.mean(0)).square().mean()
        l0 = count_active(codes).float().mean()
        parts = {"loss": error, "reconstruction": error, "fvu": error / variance, "l0": l0}
        return error, Stats(parts, mark_fired(codes, self.d_sae), x.shape[0])

    @torch.no_grad()
    def constrain(self) -> None:
        """Scale every atom to unit norm."""
        functional.normalize(self.dictionary, dim=1, out=self.dictionary.data)

    def observe(self, stats: Stats) -> None:
        """Remember nothing: no batch changes a fitted dictionary."""

    @torch.no_grad()
    def place(self, atoms: Float[Tensor, "d_sae d_in"], bias: Float[Tensor, " d_in"]) -> Float[Tensor, " d_sae"]:
        """Take atoms of any norms, at unit norm, and the bias; returns the norms. An atom of norm 0 keeps its direction."""
        norms = torch.linalg.vector_norm(atoms, dim=1)
        unit = torch.where(norms[:, None] > 0, functional.normalize(atoms, dim=1), self.dictionary.to(atoms))
        self.dictionary.copy_(functional.normalize(unit, dim=1))
        self.bias.copy_(bias)
        return norms


def check_rows(rows: Float[Tensor, "row d_in"], d_sae: int, kind: str) -> None:
    """Raises ConfigError for fewer rows than atoms."""
    if len(rows) < d_sae:
        raise ConfigError(
            f"d_sae={d_sae}: {kind} needs at least as many rows as atoms, it was given {len(rows)}; lower d_sae, or give a "
            "larger store, or more `rows`, `epochs` or `fit_rows` where these are what limits"
        )
