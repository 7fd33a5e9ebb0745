"""The bootstrap by record: every measure is a function of weighted sums over records, so resampling is a matrix product.

A record's image and captions are resampled together (cluster bootstrap), since they are not independent. Weights are
Poisson(1) counts, which are independent between records: the sums can be taken in one pass, in chunks of any size
(Poisson bootstrap; Chamandy et al. 2012, "Estimating uncertainty for massive data streams").
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

BLOCK = 1024
"""Records that share one random stream; part of the definition of the weights."""
PRIOR = 2**63
"""Stream of the prior, far from the streams of the records."""


@dataclass(frozen=True)
class Resample:
    """Weights of `n_replicates` resamples of the records, a pure function of the seed; replicate 0 is the data as they are."""

    n_replicates: int
    seed: int

    def weights(self, start: int, stop: int) -> Float[np.ndarray, "replicate record"]:
        """Weights of records `start` to `stop` (exclusive), [1 + n_replicates, stop - start]; row 0 is all ones."""
        blocks = range(start // BLOCK, -(-stop // BLOCK))
        drawn = [self._stream(block).poisson(1.0, (BLOCK, self.n_replicates)) for block in blocks]
        weights = np.ones((stop - start, 1 + self.n_replicates))
        if drawn:
            offset = blocks[0] * BLOCK
            weights[:, 1:] = np.concatenate(drawn)[start - offset : stop - offset]
        return weights.T

    def weights_of(self, records: Int[np.ndarray, " record"]) -> Float[np.ndarray, "replicate record"]:
        """The same for records in any order. Memory: theirs, and one block."""
        weights = np.ones((len(records), 1 + self.n_replicates))
        order = np.argsort(records // BLOCK, kind="stable")
        blocks, first = np.unique(records[order] // BLOCK, return_index=True)
        for block, places in zip(blocks.tolist(), np.split(order, first[1:]), strict=True):
            weights[places, 1:] = self._stream(block).poisson(1.0, (BLOCK, self.n_replicates))[records[places] - block * BLOCK]
        return weights.T

    def pseudo_counts(self, n_features: int) -> Float[np.ndarray, "replicate modality feature"]:
        """Gamma(1/2, 1) draws [1 + n_replicates, 2, n_features], the Jeffreys prior of a rate; replicate 0 is 0."""
        drawn = np.zeros((1 + self.n_replicates, 2, n_features))
        drawn[1:] = self._stream(PRIOR).gamma(0.5, 1.0, (self.n_replicates, 2, n_features))
        return drawn

    def _stream(self, block: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=np.array([self.seed, block], dtype=np.uint64)))
