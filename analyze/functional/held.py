"""Held-out pairs as functional tests take them: raw activations, codes, and what decodes them."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_array

from thresher.analyze.battery.sides import Sides
from thresher.analyze.metrics.estimate import Estimate, estimate
from thresher.analyze.metrics.grouping import membership
from thresher.analyze.metrics.needs import divide
from thresher.analyze.metrics.resample import Resample
from thresher.analyze.panels import Panel
from thresher.data.store import Store
from thresher.train.checkpoint import TrainedSAE
from thresher.train.codes import Codes

LEAST_IMAGES = 20
"""With fewer images nothing here says anything."""


class Half(NamedTuple):
    """Items of one modality."""

    x: Float[np.ndarray, "item d_in"]
    """Raw activations, means over an item's rows; of rows at unit norm where the dictionary sees them so."""
    codes: csr_array
    """Codes [item, feature] for unit atoms, means over rows."""
    atoms: Float[np.ndarray, "feature d_in"]
    """What a code of 1 adds to a reconstruction, in raw units."""
    offset: Float[np.ndarray, " d_in"]
    """What no code at all reconstructs."""
    items: Int[np.ndarray, " item"]
    """Positions in the panel."""
    group: Int[np.ndarray, " item"]
    """Which of the images it belongs to."""
    weights: Float[np.ndarray, "replicate item"]
    """Bootstrap weights of its record; line 0 is ones."""

    def rebuild(self, kept: Bool[np.ndarray, " feature"] | None = None) -> Float[np.ndarray, "item d_in"]:
        """Reconstructions, of all features or of those that are kept; codes stay as they are."""
        atoms = self.atoms if kept is None else self.atoms * kept[:, None]
        return self.offset + self.codes @ atoms

    def average(self, values: np.ndarray) -> Float[np.ndarray, "replicate measure"]:
        """Mean of values [item, measure] over items in each resample."""
        return divide(self.weights @ values, self.weights.sum(axis=1, keepdims=True))

    def choose(self, kept: Bool[np.ndarray, " item"]) -> "Half":
        """Some of the items; groups keep their numbers."""
        rows = np.flatnonzero(kept)
        return self._replace(
            x=self.x[rows],
            codes=csr_array(self.codes[rows]),
            items=self.items[rows],
            group=self.group[rows],
            weights=self.weights[:, rows],
        )


class Held(NamedTuple):
    """Images with all their captions."""

    image: Half
    text: Half
    seed: int

    def split(self) -> tuple["Held", "Held"]:
        """Two halves of the images at random, each with its captions: one to fit on, one to judge on."""
        n = len(self.image.items)
        is_first = np.zeros(n, dtype=bool)
        is_first[np.random.default_rng(self.seed).permutation(n)[: n // 2]] = True
        parts = (is_first, ~is_first)
        first, second = (Held(self.image.choose(one), self.text.choose(one[self.text.group]), self.seed) for one in parts)
        return first, second


def hold(
    trained: TrainedSAE, store: Store, panels: Mapping[str, Panel], sides: Sides, resample: Resample, n_images: int
) -> Held | None:
    """Draw images that have captions, at most `n_images`; None with fewer than 20."""
    images = np.unique(sides.pairs[:, 0])
    if min(len(images), n_images) < LEAST_IMAGES:
        return None
    if len(images) > n_images:
        images = np.sort(np.random.default_rng(resample.seed).choice(images, n_images, replace=False))
    pairs = sides.pairs[np.isin(sides.pairs[:, 0], images)]
    texts, first = np.unique(pairs[:, 1], return_index=True)
    owner = np.searchsorted(images, pairs[first, 0]).astype(np.int64)
    norm = np.linalg.norm(trained.sae.dictionary.detach().double().cpu().numpy(), axis=1)
    chosen = {"image": (images, np.arange(len(images)), sides.image), "text": (texts, owner, sides.text)}
    halves: dict[str, Half] = {}
    for name, (items, group, side) in chosen.items():
        offset, atoms = read_decoder(trained, panels[name].hook_point)
        halves[name] = Half(
            x=_read(trained, store, panels[name], items),
            codes=csr_array(side.codes[items]),
            atoms=_scale(atoms, norm),
            offset=offset,
            items=items.astype(np.int64),
            group=group,
            weights=resample.weights_of(side.record[items]),
        )
    return Held(halves["image"], halves["text"], resample.seed)


def read_decoder(trained: TrainedSAE, hook_point: str) -> tuple[Float[np.ndarray, " d_in"], Float[np.ndarray, "feature d_in"]]:
    """What a reconstruction of this hook point is without codes, and what a code of 1 of each feature adds; raw units."""
    device, d_sae = trained.sae.dictionary.device, trained.sae.d_sae
    indices = torch.arange(-1, d_sae, device=device).clamp(min=0)[:, None]
    values = torch.ones(d_sae + 1, 1, device=device)
    values[0] = 0
    decoded = trained.decode(Codes(indices, values), hook_point).double().cpu().numpy()
    return decoded[0], decoded[1:] - decoded[0]


def describe(
    replicates: Float[np.ndarray, "replicate measure"], names: tuple[str, ...], n: int, unit: str
) -> dict[str, Estimate]:
    """One estimate per measure; intervals are made to hold the value (a norm is longer in resamples than in the data)."""
    return {name: hold_value(estimate(replicates[:, column], n, unit)) for column, name in enumerate(names)}


def hold_value(found: Estimate) -> Estimate:
    """The estimate with an interval that reaches as far as its value."""
    if found.value is None or found.low is None or found.high is None:
        return found
    return found._replace(low=min(found.low, found.value), high=max(found.high, found.value))


def _scale(atoms: np.ndarray, norm: np.ndarray) -> np.ndarray:
    return np.divide(atoms, norm[:, None], out=np.zeros_like(atoms), where=norm[:, None] > 0)


def _read(
    trained: TrainedSAE, store: Store, panel: Panel, items: Int[np.ndarray, " item"], rows_at_once: int = 8192
) -> Float[np.ndarray, "item d_in"]:
    place = np.full(len(panel.items), -1)
    place[items] = np.arange(len(items))
    rows = np.flatnonzero(place[panel.item] >= 0)
    total = np.zeros((len(items), store.hook_points[panel.hook_point].width))
    for start in range(0, len(rows), rows_at_once):
        part = rows[start : start + rows_at_once]
        x = trained.normalizer.target(store.read_rows(panel.hook_point, panel.rows[part]).float()).double().numpy()
        total += membership(place[panel.item[part]].astype(np.int64), len(items)) @ x
    return total / np.bincount(place[panel.item[rows]], minlength=len(items))[:, None]
