"""How well a dictionary reconstructs held-out rows, and how sparsely."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from thresher.data.aligned import JOINT
from thresher.errors import StoreError
from thresher.train.aligned import AlignedSAE
from thresher.train.arch.batch import WholeBatch
from thresher.train.codes import Codes, count_active, mark_fired
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
    Of rows side by side those hook points are measured that `decode` gives; if these are several, `pooled` is over all of
    them at once as the normaliser scales them. Raises StoreError when a hook point has no rows or only equal ones.
    """
    if isinstance(sae, AlignedSAE):
        ((joint, chunks),) = rows.items()
        sums = _sum_up_aligned(sae, normalizer, joint.split(JOINT), chunks)
    else:
        sums = {name: _sum_up(sae, normalizer, group, chunks) for group, (name, chunks) in enumerate(rows.items())}
    if batch is not None:
        sums = {name: _add_up_shares(each, batch) for name, each in sums.items()}
    for name, each in sums.items():
        if not _vary(each):
            raise StoreError(f"{name}: {each.n_rows} held-out rows do not differ; harvest more records or hold out more")
    pooled = {} if "pooled" in sums else {"pooled": _conclude(_add_up(list(sums.values())))}
    return {name: _conclude(each) for name, each in sums.items()} | pooled


def summarize(measured: Mapping[str, Evaluation]) -> dict[str, Any]:
    """What `evaluate` gives as plain values: the pooled numbers, and those of each hook point under `hook_points`."""
    found = {name: each._asdict() for name, each in measured.items()}
    return found.pop("pooled") | {"hook_points": found}


def _sum_up(sae: SAE, normalizer: Normalizer, group: int, chunks: Iterable[Tensor]) -> _Sums:
    sums = [_count_nothing(sae, sae.d_in)]
    for x in (part.to(sae.dictionary.device) for chunk in chunks for part in chunk.split(ROWS_AT_ONCE)):
        codes = sae.encode(normalizer.normalize(x, group))
        sums.append(_count(normalizer.target(x), normalizer.invert(sae.decode(codes), group), codes, sae.d_sae))
    return _add_up(sums)


def _sum_up_aligned(
    sae: AlignedSAE, normalizer: Normalizer, names: Sequence[str], chunks: Iterable[Tensor]
) -> dict[str, _Sums]:
    """The sums of each decoded hook point, and where these are several those of all of them, scaled."""
    given, wanted, widths = normalizer.select(sae.encoded), normalizer.select(sae.decoded), list(sae.widths)
    parts = [normalizer.select([index]) for index in sae.decoded]
    sums = {names[index]: [_count_nothing(sae, widths[index])] for index in sae.decoded}
    pooled = [_count_nothing(sae, sum(wanted.widths))]
    for x in (part.to(sae.dictionary.device) for chunk in chunks for part in chunk.split(ROWS_AT_ONCE)):
        blocks = x.split(widths, dim=1)
        codes, found = sae.transcode(given.normalize(torch.cat([blocks[index] for index in sae.encoded], dim=1), 0))
        for index, part, x_hat in zip(sae.decoded, parts, found.split(list(wanted.widths), dim=1), strict=True):
            sums[names[index]].append(_count(part.target(blocks[index]), part.invert(x_hat, 0), codes, sae.d_sae))
        if len(parts) > 1:
            pooled.append(
                _count(wanted.normalize(torch.cat([blocks[index] for index in sae.decoded], dim=1), 0), found, codes, sae.d_sae)
            )
    return {name: _add_up(each) for name, each in sums.items()} | ({"pooled": _add_up(pooled)} if len(parts) > 1 else {})


def _count_nothing(sae: SAE, width: int) -> _Sums:
    device = sae.dictionary.device
    total = torch.zeros(width, dtype=torch.float64, device=device)
    return _Sums(0, total, 0.0, 0.0, 0.0, 0.0, torch.zeros(sae.d_sae, dtype=torch.bool, device=device))


def _count(target: Tensor, x_hat: Tensor, codes: Codes, d_sae: int) -> _Sums:
    target, x_hat = target.double(), x_hat.double()
    return _Sums(
        n_rows=target.shape[0],
        total=target.sum(0),
        square=float(target.square().sum()),
        error=float((target - x_hat).square().sum()),
        cosine=float(functional.cosine_similarity(target, x_hat, dim=1).sum()),
        l0=float(count_active(codes).sum()),
        fired=mark_fired(codes, d_sae),
    )


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
