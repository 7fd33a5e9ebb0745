"""Ground truth of the held-out items, in the form that scoring takes."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_array

from thresher.analyze.metrics.resample import Resample
from thresher.analyze.panels import Panel
from thresher.analyze.truth import Evidence, close_upward, one_per_record
from thresher.data.store import Store

MOST_ITEMS = 20_000
"""Items scored per modality; more would narrow no interval that matters, and cost memory."""


class Present(NamedTuple):
    """Concepts of one item per record of a panel, and that item's bootstrap weights."""

    kept: Int[np.ndarray, " item"]
    """Positions in the panel's items."""
    concepts: Bool[np.ndarray, "item concept"]
    weights: Float[np.ndarray, "replicate item"]


def read_presence(store: Store, panels: Mapping[str, Panel], resample: Resample, seed: int) -> dict[str, Present]:
    """Ground truth of the panels; empty when the store has none or one modality only."""
    if not store.concepts or len(panels) < 2:
        return {}
    return {name: _read(store, panel, resample, seed) for name, panel in panels.items()}


def _read(store: Store, panel: Panel, resample: Resample, seed: int) -> Present:
    kept = one_per_record(panel.record, seed)
    if len(kept) > MOST_ITEMS:
        kept = np.sort(np.random.default_rng(seed).choice(kept, MOST_ITEMS, replace=False))
    stated = store.items(panel.modality, columns=["concepts"])["concepts"].take(pa.array(panel.items[kept])).to_pylist()
    weights = resample.weights_of(panel.record[kept])
    return Present(kept, close_upward([found or () for found in stated], store.concepts), weights)


def make_evidence(present: Present, items: csr_array) -> Evidence:
    """Which of the scored items each feature fires on; `items` is [item, feature] over the whole panel."""
    fired = csr_array(items[present.kept])
    fired.data = np.ones_like(fired.data)
    return Evidence(fired, present.concepts, present.weights)


def count_items(present: Mapping[str, Present]) -> Int[np.ndarray, "2 concept"]:
    """Scored items per concept: images, texts."""
    return np.stack([present["image"].concepts.sum(axis=0), present["text"].concepts.sum(axis=0)]).astype(np.int64)
