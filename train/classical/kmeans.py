"""k-means as a dictionary: a row is its nearest centroid, or an affine mixture of its k nearest."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from thresher.config import config
from thresher.train.classical.base import FittedCoder, IteratedFields, check_rows
from thresher.train.classical.least import GATHERED_AT_ONCE
from thresher.train.classical.library import find_sklearn
from thresher.train.kernels import Codes

CONDITIONING = 1e-4
"""Share of a local covariance's trace that is added to its diagonal (LLC, section 3)."""


@config
class KMeans(IteratedFields):
    """k-means (Lloyd's algorithm from a k-means++ start, scikit-learn).

    A row's code is that of locality-constrained linear coding in its approximated form (LLC, Wang et al., CVPR 2010): its k
    nearest centroids with the weights of sum 1 that come nearest to it. With k=1 this is vector quantisation.
    """

    kind: Literal["kmeans"] = "kmeans"
    """Which method this is."""
    k: int = 1
    """Nearest centroids per row."""


class KMeansSAE(FittedCoder):
    """Atoms are centroids at unit norm, kept with their sizes; a value is a weight times the size of its centroid."""

    def __init__(self, settings: KMeans, d_in: int, generator: torch.Generator) -> None:
        super().__init__(d_in, settings, generator)
        self.settings = settings
        self.size = nn.Parameter(torch.ones(settings.d_sae), requires_grad=False)

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "row d_in"], k: int | None = None) -> Codes:
        """The nearest centroids, nearest first."""
        k = min(self.settings.k if k is None else k, self.d_sae)
        centroids = self.dictionary * self.size[:, None]
        distances = centroids.square().sum(1) - 2 * x @ centroids.T
        nearest = distances.topk(k, dim=1, largest=False).indices
        values = self._weigh(x, centroids, nearest) * self.size[nearest]
        return Codes(torch.where(values != 0, nearest, 0), values)

    @torch.no_grad()
    def fit(self, rows: Float[Tensor, "row d_in"], seed: int) -> None:
        """Move the centroids until they stay, or for `iterations`."""
        check_rows(rows, self.d_sae, "kmeans")
        found = find_sklearn("cluster", "kmeans").KMeans(
            self.d_sae, n_init=1, max_iter=self.settings.iterations, random_state=seed, copy_x=True
        )
        found.fit(rows.cpu().numpy())
        self.size.copy_(self.place(torch.from_numpy(found.cluster_centers_), torch.zeros(self.d_in)))

    def _weigh(self, x: Tensor, centroids: Tensor, nearest: Tensor) -> Tensor:
        """Weights of sum 1 that minimise ||x - sum_j w_j c_j||^2: w ~ C^-1 1 with C_ij = <c_i - x, c_j - x>."""
        k = nearest.shape[1]
        if k == 1 or not len(x):
            return torch.ones_like(nearest, dtype=x.dtype)
        weights = torch.empty_like(nearest, dtype=x.dtype)
        at_once = max(GATHERED_AT_ONCE // (k * self.d_in), 1)
        for start in range(0, len(x), at_once):
            part = slice(start, start + at_once)
            offsets = (centroids[nearest[part]] - x[part, None]).double()
            local = offsets @ offsets.mT
            trace = local.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]
            tiny = torch.finfo(torch.float32).tiny
            identity = torch.eye(k, dtype=local.dtype, device=x.device)
            raw = torch.linalg.solve(local + (CONDITIONING * trace + tiny) * identity, local.new_ones(len(local), k))
            weights[part] = (raw / raw.sum(1, keepdim=True)).to(x.dtype)
        return weights
