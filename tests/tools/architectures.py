"""Every architecture that is trained in steps, small and at an L0 of about 3."""

from thresher.train.arch import (
    AbsTopK,
    Architecture,
    BatchTopK,
    DistanceWeighted,
    Gated,
    JumpRelu,
    MatchingPursuit,
    Matryoshka,
    NestedTopK,
    OrthogonalPursuit,
    PAnneal,
    Relu,
    Spade,
    TopK,
)
from thresher.train.arch.hull import HullConfig


def list_over_rows(d_sae: int, iterations: int) -> list[Architecture]:
    """Those whose loss is a mean over rows; what anneals does so within the iterations."""
    return [
        MatchingPursuit(d_sae=d_sae, k=3),
        MatchingPursuit(d_sae=d_sae, k=3, dropout=0.3, redraw=4, revive=0.01, dead_after=100),
        OrthogonalPursuit(d_sae=d_sae, k=3),
        Relu(d_sae=d_sae, l0=3.0),
        TopK(d_sae=d_sae, k=3),
        TopK(d_sae=d_sae, k=3, hull=HullConfig(points=100, mixed=4)),
        Gated(d_sae=d_sae, l0=3.0),
        AbsTopK(d_sae=d_sae, k=3),
        PAnneal(
            d_sae=d_sae,
            l0=3.0,
            anneal_from=iterations // 5,
            anneal_until=4 * iterations // 5,
            n_powers=4,
            n_remembered=2,
        ),
        NestedTopK(d_sae=d_sae, k=3),
        Spade(d_sae=d_sae, l0=3.0),
        DistanceWeighted(d_sae=d_sae, l0=3.0, unrolled=4),
    ]


def list_over_batches(d_sae: int) -> list[Architecture]:
    """Those in whose loss something is decided over the batch."""
    return [JumpRelu(d_sae=d_sae, l0=3.0), BatchTopK(d_sae=d_sae, k=2.5), Matryoshka(d_sae=d_sae, k=2.5)]
