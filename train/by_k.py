"""R2 and L0 of a dictionary at every number of steps, from one pursuit."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from thresher.train.arch.batch import WholeBatch
from thresher.train.kernels import Nested
from thresher.train.normalize import Normalizer
from thresher.train.protocol import SAE

ROWS_AT_ONCE = 8192


@runtime_checkable
class NestedSAE(SAE, Protocol):
    """A sparse autoencoder whose codes of fewer steps are the beginnings of those of more."""

    @property
    def k(self) -> int:
        """Steps in training."""
        ...

    def encode_nested(self, x: Float[Tensor, "row d_in"], k_max: int) -> Nested:
        """The codes of up to `k_max` steps with the norms of the error that each number of them leaves."""
        ...


class AtK(NamedTuple):
    """What so many steps reach."""

    r2: float
    """As in `Evaluation`."""
    l0: float
    """Mean number of different active atoms."""


@torch.no_grad()
def evaluate_by_k(
    sae: NestedSAE,
    normalizer: Normalizer,
    rows: Mapping[str, Iterable[Float[Tensor, "_ d_in"]]],
    batch: WholeBatch | None = None,
) -> dict[int, AtK]:
    """R2 and L0 at 1, 2, 4, ... steps up to twice those of training, and at those of training, pooled over all rows.

    Takes chunks of raw rows by hook point in the normaliser's order, as `evaluate` does, and measures the same R2.
    With `batch` the rows are a share of them.
    """
    k_max, device = 2 * sae.k, sae.dictionary.device
    error = torch.zeros(k_max + 1, dtype=torch.float64, device=device)
    active, total = torch.zeros_like(error), torch.zeros(sae.d_in, dtype=torch.float64, device=device)
    n_rows, square = 0, torch.zeros((), dtype=torch.float64, device=device)
    for group, chunks in enumerate(rows.values()):
        for x in (part.to(device) for chunk in chunks for part in chunk.split(ROWS_AT_ONCE)):
            nested = sae.encode_nested(normalizer.normalize(x, group), k_max)
            target = normalizer.target(x).double()
            error += (nested.norms.double() / normalizer.scale[group].double()).square().sum(0)
            active += nested.count_active().sum(0)
            total, square, n_rows = total + target.sum(0), square + target.square().sum(), n_rows + x.shape[0]
    if batch is not None:
        error, active, total, square = (batch.add_up(each) for each in (error, active, total, square))
        n_rows = int(batch.add_up(torch.tensor(n_rows, device=device)))
    r2 = 1 - error / (square - total.square().sum() / n_rows)
    ks = sorted({sae.k} | {2**i for i in range(k_max.bit_length())})
    return {k: AtK(float(r2[k]), float(active[k]) / n_rows) for k in ks}
