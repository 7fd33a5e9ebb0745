"""NMF and semi-NMF as dictionaries: codes are not negative, and in NMF the atoms are not either."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from thresher.config import config
from thresher.errors import ConfigError
from thresher.progress import progress
from thresher.train.classical.base import FittedCoder, IteratedFields, check_rows
from thresher.train.classical.least import descend, fit_positive_values, keep_largest
from thresher.train.classical.library import find_sklearn, report_unfinished
from thresher.train.kernels import Codes

OFFSET = 0.2
"""Added to the first codes, so that none is stuck at zero (Ding et al. 2010, section 2.2)."""


@config
class FactorFields(IteratedFields):
    """Fields of both factorisations.

    A row's code is its non-negative least-squares fit on all atoms; of that the k longest contributions are kept, with the
    values that then fit it best.
    """

    encode_iterations: int = 50
    """Steps of accelerated projected gradient descent that each of the two fits of a code takes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.encode_iterations < 1:
            raise ConfigError(f"encode_iterations={self.encode_iterations}: take at least one")


@config
class NMF(FactorFields):
    """Non-negative matrix factorisation (coordinate descent, scikit-learn). Its rows must not be negative anywhere:
    `normalize.center: none`, and activations after a ReLU; others are for `semi_nmf`."""

    kind: Literal["nmf"] = "nmf"
    """Which method this is."""


@config
class SemiNMF(FactorFields):
    """Semi-NMF: non-negative codes, free atoms (Ding, Li & Jordan 2010, IEEE TPAMI 32:45)."""

    kind: Literal["semi_nmf"] = "semi_nmf"
    """Which method this is."""


class FactorCoder(FittedCoder):
    """Codes of non-negative least squares. The bias stays zero."""

    def __init__(self, settings: NMF | SemiNMF, d_in: int, generator: torch.Generator) -> None:
        super().__init__(d_in, settings, generator)
        self.settings = settings

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "row d_in"], k: int | None = None) -> Codes:
        """The atoms with the longest contributions, longest first."""
        n_iterations = self.settings.encode_iterations
        indices = keep_largest(descend(x, self.dictionary, n_iterations), self.settings.k if k is None else k)
        return fit_positive_values(x, self.dictionary, indices, n_iterations)


class NMFSAE(FactorCoder):
    """Atoms are not negative."""

    @torch.no_grad()
    def fit(self, rows: Float[Tensor, "row d_in"], seed: int) -> None:
        """Factorise the rows."""
        check_rows(rows, self.d_sae, "nmf")
        if bool((rows < 0).any()):
            raise ConfigError(
                f"sae.kind=nmf: rows must not be negative, found {float(rows.min()):.4g}; set normalize.center: none for "
                "activations that are not, and use semi_nmf for all others"
            )
        settings = {"init": "nndsvda", "max_iter": self.settings.iterations, "random_state": seed}
        found = find_sklearn("decomposition", "nmf").NMF(min(self.d_sae, *rows.shape), **settings)
        if self.d_sae > self.d_in:
            found.set_params(n_components=self.d_sae, init="random")
        with report_unfinished("nmf", self.settings.iterations):
            found.fit(rows.double().cpu().numpy())
        self.place(torch.from_numpy(found.components_), torch.zeros(self.d_in))


class SemiNMFSAE(FactorCoder):
    """Atoms may have any sign."""

    @torch.no_grad()
    def fit(self, rows: Float[Tensor, "row d_in"], seed: int) -> None:
        """Factorise the rows."""
        check_rows(rows, self.d_sae, "semi_nmf")
        atoms, _ = factorize(rows.double(), self.d_sae, self.settings.iterations, seed)
        self.place(atoms, torch.zeros(self.d_in))


def factorize(
    rows: Float[Tensor, "row d_in"], d_sae: int, iterations: int, seed: int
) -> tuple[Float[Tensor, "d_sae d_in"], list[float]]:
    """Atoms of X ~ Z D with Z >= 0, and the squared error after each iteration, which never grows (Ding et al. 2010, thm. 6).

    D = (Z^T Z)^-1 Z^T X, then Z <- Z sqrt(([X D^T]+ + Z [D D^T]-) / ([X D^T]- + Z [D D^T]+)), with [.]+ and [.]- the positive
    parts of a matrix and of its negative. Starts from random rows as atoms.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(rows), generator=generator)[:d_sae]
    atoms, errors = rows[chosen.to(rows.device)], list[float]()
    codes = (rows @ torch.nn.functional.normalize(atoms, dim=1).T).relu() + OFFSET
    with progress("fit semi_nmf", iterations, "iterations") as advance:
        for _ in range(iterations):
            atoms = torch.linalg.lstsq(codes, rows, driver="gelsd" if rows.device.type == "cpu" else None).solution
            products, gram = rows @ atoms.T, atoms @ atoms.T
            above = products.relu() + codes @ (-gram).relu()
            below = (-products).relu() + codes @ gram.relu()
            codes = codes * (above / below.clamp_min(torch.finfo(rows.dtype).tiny)).sqrt()
            errors.append(float((rows - codes @ atoms).square().sum()))
            advance(1, error=errors[-1])
    return atoms, errors
