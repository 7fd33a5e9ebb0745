"""Training as an iterator. It knows the protocol `SAE`, never an architecture, and never logs, saves or stops."""

from collections.abc import Callable, Iterable, Iterator

from jaxtyping import Float
from torch import Tensor
from torch.optim import Optimizer

from thresher.train.learner import Iteration, take_step
from thresher.train.protocol import SAE

__all__ = ["Iteration", "fit"]


def fit(
    sae: SAE,
    batches: Iterable[Float[Tensor, "_ d_in"]],
    optimizer: Optimizer,
    *,
    learning_rate: Callable[[int], float],
    clip: float | None = None,
    start: int = 0,
) -> Iterator[Iteration]:
    """Take one optimizer step per batch and yield what it did; the caller logs, saves and stops.

    For an optimizer of one's own; `Learner` adds the schedule and all else that training is configured with. `start`
    iterations were done before; `learning_rate` maps their number to the rate of the next. `clip` bounds the norm of the
    whole gradient.
    """
    for done, x in enumerate(batches, start):
        lr = learning_rate(done)
        stats, norm = take_step(sae, x, optimizer, lr=lr, clip=clip)
        yield Iteration(done + 1, stats.n_rows, {**stats.parts, "gradient_norm": norm}, lr)
