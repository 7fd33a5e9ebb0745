"""What a stream draws from: every hook point of every store."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from thresher.data.holdout import held_out
from thresher.data.mixture import Mixture
from thresher.data.readable import Readable
from thresher.data.records import Modality
from thresher.errors import ConfigError, StoreError


class Origin(NamedTuple):
    """A hook point of one store."""

    store: Readable
    group: int
    """Index of the hook point."""
    held_out: npt.NDArray[np.bool_]
    """Of the store's items of the modality."""
    weight: float
    """Among the stores that have the hook point."""


def list_origins(
    store: Readable, hook_points: Sequence[str], holdout: float, seed: int, store_weights: Sequence[float] | None
) -> list[Origin]:
    """For each hook point every store that has it; without `store_weights` a store weighs as many as its rows."""
    n_stores = len(store.stores) if isinstance(store, Mixture) else 1
    if store_weights is not None and len(store_weights) != n_stores:
        raise ConfigError(f"store_weights={list(store_weights)}: give one for each of {n_stores} stores")
    modalities: set[Modality] = {store.hook_points[name].modality for name in hook_points}
    held = {modality: held_out(store, modality, holdout, seed) for modality in modalities}
    sources: list[Origin] = []
    for group, name in enumerate(hook_points):
        modality = store.hook_points[name].modality
        if not isinstance(store, Mixture):
            sources.append(Origin(store, group, held[modality], 1.0))
            continue
        for index in store.find_stores(name):
            each = store.stores[index]
            weight = float(each.rows(name)) if store_weights is None else store_weights[index]
            sources.append(Origin(each, group, held[modality][store.items_of(index, modality)], weight))
    return sources


def find_width(store: Readable, hook_points: Sequence[str]) -> int:
    """The width that all hook points have. Raises ConfigError (none, one twice), StoreError (unknown, different widths)."""
    if not hook_points or len(set(hook_points)) < len(hook_points):
        raise ConfigError(f"hook_points={list(hook_points)}: give at least one, each once")
    unknown = [name for name in hook_points if name not in store.hook_points]
    if unknown:
        raise StoreError(f"{store.path}: no hook point {unknown[0]!r}; the store has {', '.join(store.hook_points)}")
    widths = {name: store.hook_points[name].width for name in hook_points}
    if len(set(widths.values())) > 1:
        found = ", ".join(f"{name} has {width}" for name, width in widths.items())
        raise StoreError(f"{store.path}: one dictionary needs hook points of one width, but {found}; train one for each width")
    return widths[hook_points[0]]
