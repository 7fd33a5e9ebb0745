"""Dictionaries over hook points side by side: what they are asked for, and what a training gives them."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from thresher.data.aligned import AlignedStore
from thresher.data.mixture import Mixture
from thresher.data.store import Store
from thresher.errors import ConfigError
from thresher.train.arch import Architecture, BatchTopKCrosscoder, Crosscoder
from thresher.train.arch.crosscoder import relative_norms
from thresher.train.arch.transcoder import TranscoderFields
from thresher.train.codes import Codes
from thresher.train.normalize import NormalizeConfig, Normalizer, measure, shape_rows
from thresher.train.protocol import SAE

Aligned = Crosscoder | BatchTopKCrosscoder | TranscoderFields
"""Architectures whose hook points stand side by side in a row."""


@runtime_checkable
class AlignedSAE(SAE, Protocol):
    """Trains on rows of several hook points side by side; `encode` reads some of these blocks, `decode` gives some."""

    @property
    def widths(self) -> tuple[int, ...]:
        """Of the blocks of a training row."""
        ...

    @property
    def encoded(self) -> tuple[int, ...]:
        """Blocks that `encode` reads."""
        ...

    @property
    def decoded(self) -> tuple[int, ...]:
        """Blocks that `decode` gives."""
        ...

    def transcode(self, x: Float[Tensor, "row d_in"]) -> tuple[Codes, Float[Tensor, "row d_out"]]:
        """The codes of rows of the encoded blocks, and all that the module makes of them for the decoded ones."""
        ...


S = TypeVar("S", bound=Store | Mixture)


def align(store: S, hook_points: tuple[str, ...], sae: Architecture) -> S | AlignedStore:
    """What `sae` is trained on: the store, or its hook points side by side. Raises as `AlignedStore` does."""
    return AlignedStore(store, hook_points) if isinstance(sae, Aligned) else store


def with_widths(sae: Architecture, store: Store | Mixture | AlignedStore) -> Architecture:
    """The architecture with the widths of its blocks. Raises ConfigError when others were given."""
    if not isinstance(sae, Aligned) or not isinstance(store, AlignedStore):
        return sae
    if sae.widths and sae.widths != store.widths:
        raise ConfigError(f"sae.widths={list(sae.widths)}: {store.joint} has {list(store.widths)}; leave them out")
    return dataclasses.replace(sae, widths=store.widths)


def measure_aligned(store: AlignedStore, settings: NormalizeConfig, *, holdout: float, seed: int) -> Normalizer:
    """Each hook point's own mean and scale over the aligned training rows; one pass for each. `joint` is `per_hook_point`."""
    found = [measure(store, [name], settings, holdout=holdout, seed=seed, balance="rows") for name in store.names]
    mean = torch.zeros(len(found), max(store.widths))
    for row, each, width in zip(mean, found, store.widths, strict=True):
        row[:width] = each.mean[0]
    return shape_rows(settings)._replace(mean=mean, scale=torch.cat([each.scale for each in found]), widths=store.widths)


@torch.no_grad()
def describe_norms(sae: SAE, hook_points: Sequence[str]) -> dict[str, Any]:
    """Of a crosscoder, under `relative_norms`: for each hook point the deciles (0 to 1, eleven numbers) of its share in the
    atoms' decoder norms. Nothing for others. See `relative_norms` for those of each atom."""
    if not isinstance(sae, AlignedSAE) or len(sae.decoded) < 2:
        return {}
    shares = relative_norms(sae.dictionary, sae.widths).double()
    deciles = shares.quantile(torch.linspace(0, 1, 11, dtype=shares.dtype, device=shares.device), dim=0)
    return {"relative_norms": {name: own.tolist() for name, own in zip(hook_points, deciles.T, strict=True)}}
