"""The settings of a stream."""

import math
from dataclasses import field

from thresher.config import config
from thresher.data.mixing import Balance
from thresher.data.reads import Reads
from thresher.errors import ConfigError


@config
class StreamConfig:
    """How training reads a store."""

    batch_size: int = 4096
    """Rows of a batch."""
    holdout: float = 0.05
    """Fraction of the source's records that training never sees; they serve evaluation and analysis."""
    pool_rows: int = 1_000_000
    """Rows held in memory, of all hook points together. What fits is shuffled uniformly, more piece by piece."""
    balance: Balance = "equal"
    """`equal`: every batch has as many rows of each hook point; `rows`: in proportion to their rows in the store."""
    weights: dict[str, float] = field(default_factory=dict[str, float])
    """Rows of a batch by hook point, relative to each other (`{text.embed: 5, vision.embed: 1}`); 1 for one that is not named.
    Where any is given, `balance` is not used."""
    store_weights: tuple[float, ...] | None = None
    """Rows of each of several stores, relative to each other, within those of a hook point; by their rows when not given."""
    reads: Reads = "auto"
    """`cached`: through the page cache, which the trainers on a machine share; `direct`: past it (O_DIRECT), for a store on a
    disk of this machine that is larger than its memory; `auto`: `direct` for such a one, if one process alone trains on it."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"batch_size={self.batch_size}: give at least 1")
        if not 0 <= self.holdout < 1:
            raise ConfigError(f"holdout={self.holdout}: give a fraction from 0 to below 1")
        if self.pool_rows < 1:
            raise ConfigError(f"pool_rows={self.pool_rows}: give at least 1; a million shuffles well")
        if not all(0 < weight < math.inf for weight in (*self.weights.values(), *(self.store_weights or ()))):
            found = f"weights={self.weights}, store_weights={self.store_weights}"
            raise ConfigError(f"{found}: weights are positive and finite; leave out what is not to be trained on")
