"""What a sweep reads: its store, and what is measured on it once for all members."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from thresher.data.mixture import open_stores
from thresher.devices import find_device
from thresher.team import Team
from thresher.train.config import TrainConfig
from thresher.train.inputs import Opened, arrange, measure_normalizer, name_hook_points, open_stream, sample_held_out
from thresher.train.normalize import Normalizer
from thresher.train.parallel.layout import Layout


class Shared(NamedTuple):
    """What all members of one stream train with."""

    hook_points: tuple[str, ...]
    """Whose rows the stream has."""
    store: Opened
    layout: Layout
    """Of this one process."""
    normalizer: Normalizer
    """On the device."""
    sample: Mapping[str, Sequence[Tensor]]
    """Held-out rows by hook point for the evaluations on the way."""
    n_rows: int
    """Training rows of an epoch."""
    device: torch.device


class Source:
    """The store. Architectures that want hook points side by side (crosscoders, transcoders) have a stream of their own."""

    def __init__(self, base: TrainConfig, team: Team) -> None:
        self.store = open_stores(base.store, cache=base.cache)
        self.device = find_device(base.device)
        self.team = team
        """The processes that share the members; each trains its own alone."""
        self._layout = Layout(Team(0, 1, None), 1, self.device)
        self._shared: dict[tuple[str, ...], Shared] = {}

    def arrange(self, config: TrainConfig) -> tuple[TrainConfig, Shared]:
        """A member's training as it is run, and what it shares with others of its stream (measured for the first of them).

        All processes do this with the same members in the same order. Raises ConfigError, StoreError.
        """
        arranged, store = arrange(config, self.store)
        names = name_hook_points(arranged, store)
        if names not in self._shared:
            stream = open_stream(arranged, store, self.device)
            stream.close()
            normalizer = self.team.agree(lambda: measure_normalizer(arranged, store)).to(self.device)
            sample = sample_held_out(arranged, store)
            self._shared[names] = Shared(names, store, self._layout, normalizer, sample, stream.n_rows, self.device)
        return arranged, self._shared[names]
