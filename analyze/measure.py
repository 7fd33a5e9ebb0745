"""One pass over the held-out rows of a hook point: encode, decode, add up."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from scipy.sparse import csr_array, vstack

from thresher.analyze.metrics.activity import ActivitySums, add_activity, sum_activity
from thresher.analyze.metrics.codes import count_active, to_matrix
from thresher.analyze.metrics.grouping import max_rows
from thresher.analyze.metrics.reconstruction import ReconstructionSums, add_reconstruction, sum_reconstruction
from thresher.analyze.metrics.resample import Resample
from thresher.analyze.panels import Panel, split_rows
from thresher.data.store import Store
from thresher.train.checkpoint import TrainedSAE


class Measured(NamedTuple):
    """Everything the measures need, of one dictionary on one panel."""

    reconstruction: ReconstructionSums
    activity: ActivitySums
    items: csr_array
    """The largest |z| of each feature in each item [item, feature]."""


@torch.no_grad()
def measure(
    trained: TrainedSAE,
    store: Store,
    panel: Panel,
    resample: Resample,
    chunk_rows: int,
    advance: Callable[[int], None],
) -> Measured:
    """Sufficient statistics of a panel. Memory: one chunk, [replicate, d_sae] sums, and the items' codes (sparse)."""
    total: Measured | None = None
    for part in split_rows(panel, chunk_rows):
        chunk = _measure_chunk(trained, store, panel, part, resample)
        total = chunk if total is None else _add(total, chunk)
        advance(part.stop - part.start)
    assert total is not None, "a panel has rows"
    return total


def _measure_chunk(trained: TrainedSAE, store: Store, panel: Panel, part: slice, resample: Resample) -> Measured:
    x = store.read_rows(panel.hook_point, panel.rows[part]).float()
    codes = trained.encode(x, panel.hook_point)
    x_hat = trained.decode(codes, panel.hook_point)
    matrix = to_matrix(codes, trained.sae.d_sae)
    item = panel.item[part]
    record = panel.record[item]
    weights = resample.weights(int(record[0]), int(record[-1]) + 1)
    from_first = record - record[0]
    return Measured(
        reconstruction=sum_reconstruction(trained.normalizer.target(x), x_hat, count_active(matrix), from_first, weights),
        activity=sum_activity(matrix, from_first, weights),
        items=max_rows(matrix, item - item[0], int(item[-1] - item[0]) + 1),
    )


def _add(first: Measured, second: Measured) -> Measured:
    return Measured(
        reconstruction=add_reconstruction(first.reconstruction, second.reconstruction),
        activity=add_activity(first.activity, second.activity),
        items=csr_array(vstack([first.items, second.items])),
    )
