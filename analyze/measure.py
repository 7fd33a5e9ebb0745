"""One pass over the held-out rows of a hook point: encode, decode, add up."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_array, diags_array
from torch import Tensor
from torch.nn import functional

from thresher.analyze.battery.steps import StepSums, add_steps, is_pursuit, sum_steps
from thresher.analyze.kinds import KindSums, add_kinds, read_kinds, sum_kinds
from thresher.analyze.metrics.activity import ActivitySums, add_activity, sum_activity
from thresher.analyze.metrics.codes import count_active, to_matrix
from thresher.analyze.metrics.grouping import max_rows, membership
from thresher.analyze.metrics.reconstruction import ReconstructionSums, add_reconstruction, sum_reconstruction
from thresher.analyze.metrics.resample import Resample
from thresher.analyze.panels import Panel, split_rows
from thresher.analyze.statistics.rows import RowsWriter
from thresher.data.store import Store
from thresher.errors import StoreError
from thresher.train.checkpoint import TrainedSAE
from thresher.train.codes import Codes
from thresher.train.split import name_nonfinite

BLOCK = 8192
"""Rows that are summed together, about: no record is cut. A constant, as in `statistics.rows`."""


class Measured(NamedTuple):
    """Everything the measures need, of one dictionary on one panel."""

    reconstruction: ReconstructionSums
    activity: ActivitySums
    items: csr_array
    """The largest |z| of each feature in each item [item, feature]."""
    codes: csr_array
    """The mean z of each feature over the rows of each item [item, feature]."""
    steps: StepSums | None
    """What each step of a pursuit adds; None where codes have no order."""
    kinds: KindSums | None = None
    """What features do on tokens of images and of texts; None where an item's rows are not of both."""


class _Sums(NamedTuple):
    """What is added up over blocks."""

    reconstruction: ReconstructionSums
    activity: ActivitySums
    steps: StepSums | None
    kinds: KindSums | None


@torch.no_grad()
def measure(
    trained: TrainedSAE,
    store: Store,
    panel: Panel,
    resample: Resample,
    chunk_rows: int,
    advance: Callable[[int], None],
    scratch: Path | None = None,
) -> Measured:
    """Sufficient statistics of a panel, rows encoded `chunk_rows` at once.

    Sums are those of blocks of a constant size added up in order, so chunks change no bit of them. Memory: activations of one
    block, what encoding one chunk takes, and [replicate, d_sae] sums; the items' codes (sparse) lie in files of `scratch`,
    without it in memory. Raises StoreError when an activation is not finite.
    """
    folders = [None if scratch is None else scratch / name for name in ("items", "codes")]
    items, codes = (RowsWriter(trained.sae.d_sae, folder) for folder in folders)
    norm = trained.sae.dictionary.detach().double().norm(dim=1).cpu().numpy()
    kinds = read_kinds(store, panel)
    total: _Sums | None = None
    for part in split_rows(panel, BLOCK):
        block, largest, mean = _measure_block(trained, store, panel, part, resample, norm, kinds, chunk_rows)
        total = block if total is None else _add(total, block)
        items.append(largest)
        codes.append(mean)
        advance(part.stop - part.start)
    assert total is not None, "a panel has rows"
    return Measured(total.reconstruction, total.activity, items.finish(), codes.finish(), total.steps, total.kinds)


def _measure_block(
    trained: TrainedSAE,
    store: Store,
    panel: Panel,
    part: slice,
    resample: Resample,
    norm: np.ndarray,
    kinds: np.ndarray | None,
    chunk_rows: int,
) -> tuple[_Sums, csr_array, csr_array]:
    x = store.read_rows(panel.hook_point, panel.rows[part]).float()
    if not x.isfinite().all():
        raise StoreError(
            f"{store.path}: {panel.hook_point}: activations that are not finite: {name_nonfinite(store, panel.hook_point)}; "
            "harvest again with on_nonfinite: drop, or in float32; of imported arrays leave such rows out"
        )
    codes, x_hat = _apply(trained, x, panel.hook_point, chunk_rows)
    matrix = to_matrix(codes, trained.sae.d_sae)
    item = panel.item[part]
    record = panel.record[item]
    weights = resample.weights(int(record[0]), int(record[-1]) + 1)
    from_first = record - record[0]
    sums = _Sums(
        reconstruction=sum_reconstruction(trained.normalizer.target(x), x_hat, count_active(matrix), from_first, weights),
        activity=sum_activity(matrix, from_first, weights),
        steps=sum_steps(codes, norm) if is_pursuit(trained) else None,
        kinds=None if kinds is None else sum_kinds(matrix, kinds[part]),
    )
    group, n_items = item - item[0], int(item[-1] - item[0]) + 1
    return sums, max_rows(matrix, group, n_items), _mean_rows(matrix, group, n_items)


def _apply(trained: TrainedSAE, x: Tensor, hook_point: str, chunk_rows: int) -> tuple[Codes, Tensor]:
    """Codes of rows, all as wide as the widest chunk, and what they stand for."""
    chunks = [trained.encode(part, hook_point) for part in x.split(chunk_rows)]
    x_hat = torch.cat([trained.decode(one, hook_point) for one in chunks])
    width = max(one.values.shape[1] for one in chunks)
    indices, values = (
        torch.cat([functional.pad(part, (0, width - part.shape[1])) for part in parts]) for parts in zip(*chunks, strict=True)
    )
    return Codes(indices, values), x_hat


def _mean_rows(matrix: csr_array, group: np.ndarray, n_groups: int) -> csr_array:
    if n_groups == len(group):
        return matrix
    sums = csr_array(membership(group, n_groups) @ matrix)
    sums.sum_duplicates()
    return csr_array(diags_array(1 / np.bincount(group, minlength=n_groups)) @ sums)


def _add(first: _Sums, second: _Sums) -> _Sums:
    steps = None if first.steps is None or second.steps is None else add_steps(first.steps, second.steps)
    return _Sums(
        reconstruction=add_reconstruction(first.reconstruction, second.reconstruction),
        activity=add_activity(first.activity, second.activity),
        steps=steps,
        kinds=None if first.kinds is None or second.kinds is None else add_kinds(first.kinds, second.kinds),
    )
