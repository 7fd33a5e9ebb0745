"""How well a dictionary reconstructs held-out rows, and how sparsely."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from thresher.errors import StoreError
from thresher.train.arch.batch import WholeBatch
from thresher.train.codes import count_active, mark_fired
from thresher.train.normalize import Normalizer
from thresher.train.protocol import SAE

ROWS_AT_ONCE = 8192


class Evaluation(NamedTuple):
    """Measured on raw activations (at unit norm where the normaliser brings them there)."""

    n_rows: int
    r2: float
    """1 - sum ||x - x_hat||^2 / sum ||x - mean||^2 with the mean vector of the same rows; per dimension, pooled."""
    fvu: float
    """1 - r2."""
    cosine: float
    """Mean cosine of x and x_hat."""
    l0: float
    """Mean number of different active atoms."""
    dead: float
    """Fraction of atoms that fire on none of the rows."""


class _Sums(NamedTuple):
    n_rows: int
    total: Float[Tensor, "d_in"]
    square: float
    error: float
    cosine: float
    l0: float
    fired: Bool[Tensor, "d_sae"]


@torch.no_grad()
def evaluate(
    sae: SAE,
    normalizer: Normalizer,
    rows: Mapping[str, Iterable[Float[Tensor, "_ d_in"]]],
    batch: WholeBatch | None = None,
) -> dict[str, Evaluation]:
    """Evaluate on chunks of raw rows by hook point, in the normaliser's order; the entry `pooled` is over all rows.

    With `batch` the rows are a share of them, and the numbers those of all shares.
    The pooled R2 centres by the pooled mean and so also counts the gap between the hook points as explained.
    Raises StoreError when a hook point has no rows or only equal ones.
    """
    sums = {name: _sum_up(sae, normalizer, group, chunks) for group, (name, chunks) in enumerate(rows.items())}
    if batch is not None:
        sums = {name: _add_up_shares(each, batch) for name, each in sums.items()}
    for name, each in sums.items():
        if not _vary(each):
            raise StoreError(f"{name}: {each.n_rows} held-out rows do not differ; harvest more records or hold out more")
    return {name: _conclude(each) for name, each in sums.items()} | {"pooled": _conclude(_add_up(list(sums.values())))}


def _sum_up(sae: SAE, normalizer: Normalizer, group: int, chunks: Iterable[Tensor]) -> _Sums:
    device = sae.dictionary.device
    total = torch.zeros(sae.d_in, dtype=torch.float64, device=device)
    fired = torch.zeros(sae.d_sae, dtype=torch.bool, device=device)
    n_rows, square, error, cosine, l0 = 0, 0.0, 0.0, 0.0, 0.0
    for x in (part.to(device) for chunk in chunks for part in chunk.split(ROWS_AT_ONCE)):
        codes = sae.encode(normalizer.normalize(x, group))
        x_hat, target = normalizer.invert(sae.decode(codes), group).double(), normalizer.target(x).double()
        n_rows += x.shape[0]
        total += target.sum(0)
        square += float(target.square().sum())
        error += float((target - x_hat).square().sum())
        cosine += float(functional.cosine_similarity(target, x_hat, dim=1).sum())
        l0 += float(count_active(codes).sum())
        fired |= mark_fired(codes, sae.d_sae)
    return _Sums(n_rows, total, square, error, cosine, l0, fired)


def _add_up_shares(sums: _Sums, batch: WholeBatch) -> _Sums:
    numbers = torch.tensor([sums.n_rows, sums.square, sums.error, sums.cosine, sums.l0], dtype=torch.float64)
    n_rows, square, error, cosine, l0 = batch.add_up(numbers.to(sums.total.device)).tolist()
    return _Sums(int(n_rows), batch.add_up(sums.total), square, error, cosine, l0, batch.any(sums.fired))


def _add_up(sums: list[_Sums]) -> _Sums:
    return _Sums(
        n_rows=sum(each.n_rows for each in sums),
        total=torch.stack([each.total for each in sums]).sum(0),
        square=sum(each.square for each in sums),
        error=sum(each.error for each in sums),
        cosine=sum(each.cosine for each in sums),
        l0=sum(each.l0 for each in sums),
        fired=torch.stack([each.fired for each in sums]).any(0),
    )


def _vary(sums: _Sums) -> float:
    """Sum of squared distances from the mean; 0 when it drowns in rounding."""
    if sums.n_rows == 0:
        return 0.0
    varied = sums.square - float(sums.total.square().sum()) / sums.n_rows
    return varied if varied > 1e-12 * sums.square else 0.0


def _conclude(sums: _Sums) -> Evaluation:
    fvu = sums.error / _vary(sums)
    return Evaluation(
        n_rows=sums.n_rows,
        r2=1 - fvu,
        fvu=fvu,
        cosine=sums.cosine / sums.n_rows,
        l0=sums.l0 / sums.n_rows,
        dead=1 - float(sums.fired.double().mean()),
    )
