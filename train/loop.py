"""The one training loop. It knows the protocol `SAE`, never an architecture, and never logs, saves or stops."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from thresher.train.protocol import SAE


class Iteration(NamedTuple):
    """What one optimizer step did. Tensors stay on their device until somebody reads them."""

    number: int
    """Iterations done, this one included."""
    n_rows: int
    """Rows in its batch."""
    parts: Mapping[str, Tensor]
    """Scalars: the architecture's own (`Stats.parts`) and `gradient_norm` before clipping."""
    lr: float
    """Learning rate it was taken with."""


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

    `start` iterations were done before; `learning_rate` maps their number to the rate of the next. `clip` bounds the
    norm of the whole gradient.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for done, x in enumerate(batches, start):
        lr = learning_rate(done)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad()
        loss, stats = sae.loss(x)
        loss.backward()
        norm = clip_grad_norm_(parameters, math.inf if clip is None else clip)
        optimizer.step()
        sae.constrain()
        sae.observe(stats)
        yield Iteration(done + 1, stats.n_rows, {**stats.parts, "gradient_norm": norm}, lr)
