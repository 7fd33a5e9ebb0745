"""Activations row by row of the features on the items that their pages show."""

import base64
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import csr_array

from thresher.analyze.metrics.codes import to_matrix
from thresher.analyze.panels import Panel, split_rows
from thresher.analyze.site.choose import Chosen
from thresher.analyze.statistics.rows import read_entries, shape_of
from thresher.data.store import Store
from thresher.train.checkpoint import TrainedSAE

STEPS = 127
"""Steps from 0 to the largest |z| of a feature."""
LONGEST = 255
"""Rows that one byte can skip."""


class Wanted(NamedTuple):
    """Pairs of an item and a feature."""

    item: Int[np.ndarray, " pair"]
    feature: Int[np.ndarray, " pair"]


class Traces(NamedTuple):
    """The stored codes of wanted pairs, pair by pair in their order, row by row."""

    starts: Int[np.ndarray, " pair_and_end"]
    place: Int[np.ndarray, " entry"]
    """Row within the item, from 0."""
    value: Float[np.ndarray, " entry"]


class Chunk(NamedTuple):
    """Codes of some rows of a panel."""

    codes: csr_array
    item: Int[np.ndarray, " row"]
    place: Int[np.ndarray, " row"]
    """Row within the item, from 0."""


Tracer = Callable[[str, Wanted], Traces]
"""Gives the traces of pairs of a modality, all of them different."""


def trace(chunks: Iterator[Chunk], wanted: Wanted) -> Traces:
    """Look the codes of different pairs up. Memory: one chunk, and what is found."""
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    keys, order = np.zeros(0, np.int64), np.zeros(0, np.int64)
    for chunk in chunks:
        n_rows, n_features = shape_of(chunk.codes)
        if not found:
            every = wanted.item * n_features + wanted.feature
            order = np.argsort(every, kind="stable")
            keys = every[order]
        entries = read_entries(chunk.codes, slice(0, n_rows))
        asked = chunk.item[entries.row] * n_features + entries.feature
        at = np.minimum(np.searchsorted(keys, asked), len(keys) - 1)
        hit = keys[at] == asked if len(keys) else np.zeros(len(asked), bool)
        found.append((order[at[hit]], chunk.place[entries.row[hit]], entries.value[hit]))
    pair, place, value = (np.concatenate(part) for part in zip(*found, strict=True)) if found else (np.zeros(0, np.int64),) * 3
    sorting = np.lexsort((place, pair))
    starts = np.concatenate([[0], np.cumsum(np.bincount(pair, minlength=len(wanted.item)))]).astype(np.int64)
    return Traces(starts, place[sorting], value[sorting])


@torch.no_grad()
def encode_items(
    trained: TrainedSAE, store: Store, panel: Panel, items: Int[np.ndarray, " item"], chunk_rows: int
) -> Iterator[Chunk]:
    """Codes of all rows of some items of a panel, for atoms of unit norm."""
    norm = trained.sae.dictionary.detach().double().norm(dim=1).cpu().numpy()
    kept = np.flatnonzero(np.isin(panel.item, items))
    part = panel._replace(rows=panel.rows[kept], item=panel.item[kept])
    place = kept - np.searchsorted(panel.item, part.item)
    for rows in split_rows(part, chunk_rows) if len(kept) else ():
        x = store.read_rows(panel.hook_point, part.rows[rows]).float()
        codes = to_matrix(trained.encode(x, panel.hook_point), trained.sae.d_sae)
        codes.data = codes.data * norm[codes.indices]
        yield Chunk(codes, part.item[rows], place[rows])


class Packed(NamedTuple):
    """Traces of the shown items of one feature, as the pages read them."""

    traces: list[str]
    """Of the first items in the order of the page."""
    largest: float
    """The |z| that the largest number stands for."""
    peaks: list[int]
    """Row within the item of the largest |z|, of the same items; -1 where none was found."""


def pack_traces(tracer: Tracer, modality: str, chosen: Sequence[Chosen], budget: int) -> list[Packed]:
    """Traces of the items of every feature, strongest items first, of fewer items where all take more than `budget` bytes."""
    items = [np.concatenate([one.top, *one.bands]).astype(np.int64) for one in chosen]
    lengths = np.array([len(one) for one in items])
    feature = np.repeat(np.arange(len(items)), lengths)
    rank = np.arange(len(feature)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    item = np.concatenate(items) if items else np.zeros(0, np.int64)
    # A sample of the strongest quarter may be among the strongest too.
    unique, pairs = np.unique(np.stack([item, feature]), axis=1, return_inverse=True)
    found = tracer(modality, Wanted(unique[0], unique[1]))
    sizes = np.bincount(rank, weights=4 + np.diff(found.starts)[pairs] * 8 / 3)
    n_ranks = int((np.cumsum(sizes) <= budget).sum())
    largest = np.zeros(len(items))
    np.maximum.at(largest, np.repeat(unique[1], np.diff(found.starts)), np.abs(found.value))
    packed = [Packed([], float(one), []) for one in largest]
    for pair in np.flatnonzero(rank < n_ranks).tolist():
        part = slice(int(found.starts[pairs[pair]]), int(found.starts[pairs[pair] + 1]))
        place, value, own = found.place[part], found.value[part], packed[feature[pair]]
        own.traces.append(pack(place, value / (own.largest or 1.0)))
        own.peaks.append(int(place[np.abs(value).argmax()]) if len(place) else -1)
    return packed


def pack(place: Int[np.ndarray, " entry"], share: Float[np.ndarray, " entry"]) -> str:
    """Entries in base64: each is two bytes, the rows skipped since the one before and round(127 z / largest) as a signed byte.

    A byte 255 skips 255 rows and is no entry: the 0 after it says so.
    """
    gaps = np.diff(place, prepend=-1) - 1
    steps = np.clip(np.rint(share * STEPS), -STEPS, STEPS).astype(np.int64)
    fillers = gaps // LONGEST
    pairs = np.zeros((int(fillers.sum()) + len(place), 2), np.int64)
    pairs[:, 0] = LONGEST
    ends = np.cumsum(fillers + 1) - 1
    pairs[ends] = np.stack([gaps % LONGEST, steps], axis=1)
    return base64.b64encode((pairs % 256).astype(np.uint8).tobytes()).decode()
