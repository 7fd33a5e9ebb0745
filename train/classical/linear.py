"""PCA and ICA as dictionaries: linear codes, of which the k largest parts are kept."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from thresher.config import config
from thresher.errors import ConfigError
from thresher.train.classical.base import ClassicalFields, FittedCoder, IteratedFields, check_rows
from thresher.train.classical.least import fit_values, keep_largest
from thresher.train.classical.library import find_sklearn, report_unfinished
from thresher.train.kernels import Codes


@config
class PCA(ClassicalFields):
    """Principal components; of each row the k largest in absolute value, which is the nearest code of k components."""

    kind: Literal["pca"] = "pca"
    """Which method this is."""


class PCASAE(FittedCoder):
    """Atoms are the leading eigenvectors of the covariance, orthonormal, the leading one first; the bias is the mean."""

    def __init__(self, settings: PCA, d_in: int, generator: torch.Generator) -> None:
        check_width(settings, d_in)
        super().__init__(d_in, settings, generator)
        self.settings = settings
        self.dictionary.copy_(torch.linalg.qr(self.dictionary.T)[0].T)

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "row d_in"], k: int | None = None) -> Codes:
        """The largest coordinates, largest first."""
        coordinates = (x - self.bias) @ self.dictionary.T
        indices = keep_largest(coordinates, self.settings.k if k is None else k)
        values = coordinates.gather(1, indices)
        return Codes(torch.where(values != 0, indices, 0), values)

    @torch.no_grad()
    def fit(self, rows: Float[Tensor, "row d_in"], seed: int) -> None:
        """Take the eigenvectors; of each the sign that makes its largest entry positive."""
        check_rows(rows, self.d_sae, "pca")
        mean = rows.double().mean(0)
        centred = rows.double() - mean
        atoms = torch.linalg.eigh(centred.T @ centred)[1].T.flip(0)[: self.d_sae]
        largest = atoms.gather(1, atoms.abs().argmax(1, keepdim=True))
        self.place(atoms * largest.sign(), mean)


@config
class ICA(IteratedFields):
    """Independent components (FastICA, Hyvarinen 1999, scikit-learn).

    A row keeps the k components that contribute the longest vectors, with the values that then fit it best.
    """

    kind: Literal["ica"] = "ica"
    """Which method this is."""
    iterations: int = 200
    """Most rounds of the fit over all rows."""


class ICASAE(FittedCoder):
    """Atoms are the columns of the mixing matrix at unit norm; `encoder` is its inverse, in their units."""

    def __init__(self, settings: ICA, d_in: int, generator: torch.Generator) -> None:
        check_width(settings, d_in)
        super().__init__(d_in, settings, generator)
        self.settings = settings
        self.encoder = nn.Parameter(self.dictionary.detach().clone(), requires_grad=False)

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "row d_in"], k: int | None = None) -> Codes:
        """The components with the longest contributions, longest first."""
        centred = x - self.bias
        indices = keep_largest(centred @ self.encoder.T, self.settings.k if k is None else k)
        return fit_values(centred, self.dictionary, indices)

    @torch.no_grad()
    def fit(self, rows: Float[Tensor, "row d_in"], seed: int) -> None:
        """Turn the whitened rows until the components are as independent as they get, or for `iterations`."""
        check_rows(rows, self.d_sae, "ica")
        settings = {"max_iter": self.settings.iterations, "random_state": seed, "whiten": "unit-variance"}
        found = find_sklearn("decomposition", "ica").FastICA(self.d_sae, **settings)
        with report_unfinished("ica", self.settings.iterations):
            found.fit(rows.double().cpu().numpy())
        norms = self.place(torch.from_numpy(found.mixing_.T), torch.from_numpy(found.mean_))
        self.encoder.copy_(torch.from_numpy(found.components_) * norms[:, None])


def check_width(settings: ClassicalFields, d_in: int) -> None:
    """Raises ConfigError for more atoms than dimensions."""
    if settings.d_sae > d_in:
        raise ConfigError(f"d_sae={settings.d_sae}: components are at most as many as activations are wide, {d_in}")
