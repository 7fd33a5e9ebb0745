"""Some rows of a panel with their codes in the order of selection, for measures that cost too much on all rows."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import csr_array
from torch import Tensor

from thresher.analyze.battery.steps import is_pursuit
from thresher.analyze.metrics.codes import to_matrix
from thresher.analyze.metrics.grouping import sum_rows
from thresher.analyze.metrics.progressive import order_by_size
from thresher.analyze.panels import Panel
from thresher.data.store import Store
from thresher.train.checkpoint import TrainedSAE
from thresher.train.codes import Codes

MOST_ROWS = 1000
"""Rows of a modality. Ranks and connectivity depend on how many there are: compare at equal numbers."""
ROWS_PER_ITEM = 32
"""Rows of an item that its mean is taken over, evenly spaced."""


class Sample(NamedTuple):
    """Rows of one modality as the dictionary sees them: x is approximately bias + sum z d."""

    x: Float[np.ndarray, "row d_in"]
    """What reconstructions are compared with."""
    indices: Int[np.ndarray, "row k"]
    values: Float[np.ndarray, "row k"]
    """In the order of selection, or the largest first."""
    dictionary: Float[np.ndarray, "d_sae d_in"]
    """Atoms in the units of x."""
    bias: Float[np.ndarray, " d_in"]
    codes: csr_array
    """The same codes [row, d_sae], for atoms of unit norm."""
    working: Float[np.ndarray, "row d_in"]
    """The rows as the dictionary is given them, without its bias: what a pursuit starts from."""


def read_sample(store: Store, panel: Panel) -> Float[Tensor, "row d_in"]:
    """At most MOST_ROWS rows of the panel, evenly spaced, so over all records."""
    n = len(panel.rows)
    chosen = np.linspace(0, n - 1, min(n, MOST_ROWS)).astype(np.int64)
    return store.read_rows(panel.hook_point, panel.rows[chosen]).float()


@torch.no_grad()
def encode_sample(trained: TrainedSAE, hook_point: str, x: Float[Tensor, "row d_in"], k: int | None = None) -> Sample:
    """Codes of raw rows, with `k` atoms at most if it is given."""
    codes = trained.encode(x, hook_point, k)
    group = trained.hook_points.index(hook_point)
    indices, values = codes.indices.cpu().numpy(), to_numpy(codes.values)
    if not is_pursuit(trained):
        indices, values = order_by_size(indices, values)
    nothing = Codes(torch.zeros_like(codes.indices[:1, :1]), torch.zeros_like(codes.values[:1, :1]))
    atoms = to_numpy(trained.sae.dictionary)
    norm = np.linalg.norm(atoms, axis=1)
    matrix = to_matrix(codes, trained.sae.d_sae)
    bias = trained.sae.decode(nothing)
    return Sample(
        x=to_numpy(trained.normalizer.target(x)),
        indices=indices.astype(np.int64),
        values=values,
        dictionary=atoms / float(trained.normalizer.scale[group]),
        bias=to_numpy(trained.normalizer.invert(bias, group))[0],
        codes=csr_array((matrix.data * norm[matrix.indices], matrix.indices, matrix.indptr), shape=matrix.shape),
        working=to_numpy(trained.normalizer.normalize(x.to(bias.device), group) - bias),
    )


def read_items(store: Store, hook_point: str, items: Int[np.ndarray, " item"]) -> Float[np.ndarray, "item d_in"]:
    """Mean activation of at most ROWS_PER_ITEM rows of each of these items of the store's table; NaN for one without rows."""
    place = np.full(store.items(store.hook_points[hook_point].modality, columns=["key"]).num_rows, -1)
    place[items] = np.arange(len(items))
    of_row = place[store.item_of(hook_point)]
    kept = np.flatnonzero(of_row >= 0)
    kept = kept[np.argsort(of_row[kept], kind="stable")]
    rows = [_thin(one) for one in np.split(kept, np.cumsum(np.bincount(of_row[kept], minlength=len(items)))[:-1])]
    counts = np.array([len(one) for one in rows])
    if counts.sum() == 0:
        return np.full((len(items), store.hook_points[hook_point].width), np.nan)
    x = to_numpy(store.read_rows(hook_point, np.concatenate(rows)))
    sums = sum_rows(x, np.repeat(np.arange(len(items)), counts), len(items))
    return np.divide(sums, counts[:, None], out=np.full(sums.shape, np.nan), where=counts[:, None] > 0)


def list_prefixes(k: int) -> Sequence[int]:
    """1, 2, 4, ... and `k` itself."""
    return sorted({2**power for power in range(k.bit_length()) if 2**power <= k} | {k})


def to_numpy(x: Tensor) -> np.ndarray:
    """As a float64 array."""
    return x.detach().to("cpu", torch.float64).numpy()


def _thin(rows: Int[np.ndarray, " row"]) -> Int[np.ndarray, " kept"]:
    if len(rows) <= ROWS_PER_ITEM:
        return rows
    return rows[np.linspace(0, len(rows) - 1, ROWS_PER_ITEM).astype(np.int64)]
