"""One sparse autoencoder in training: module, optimizer, schedule and what surrounds a step. It knows no architecture."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

from thresher.errors import CheckpointError
from thresher.train.anneal import at_k, compute_k, find_k
from thresher.train.average import Average
from thresher.train.optimizer import OptimizerConfig, Precision, compute_learning_rate, make_adam
from thresher.train.protocol import SAE, Stats

Synchronize = Callable[[Sequence[nn.Parameter]], Tensor]
"""What training by several processes does to gradients: it makes those of all processes equal, in place, and gives the norm
of the whole gradient, parts in other processes included."""


class Iteration(NamedTuple):
    """What one optimizer step did. Tensors stay on their device until somebody reads them."""

    number: int
    """Iterations done, this one included."""
    n_rows: int
    """Rows in its batch."""
    parts: Mapping[str, Tensor]
    """Scalars in float32: the architecture's own (`Stats.parts`) and `gradient_norm` before clipping."""
    lr: float
    """Learning rate it was taken with."""


class Learner:
    """A module in training. What a step does follows from its state, the batch and the number of iterations, nothing else.

    `synchronize` is called with the parameters between the backward pass and clipping. Raises ConfigError when `settings`
    anneal the k of an architecture that has none.
    """

    def __init__(
        self, sae: SAE, settings: OptimizerConfig, n_iterations: int, *, synchronize: Synchronize | None = None
    ) -> None:
        self.sae, self.settings, self.n_iterations = sae, settings, n_iterations
        self.done = 0
        """Iterations done."""
        self.optimizer = make_adam(cast(nn.Module, sae), settings)
        self._synchronize = synchronize
        self._k = find_k(sae, settings) if settings.k_start is not None else None
        self._average = None if settings.ema is None else Average(sae, settings.ema)
        self._best: dict[str, Tensor] = {}

    def step(self, x: Float[Tensor, "row d_in"]) -> Iteration:
        """Take one optimizer step with one batch."""
        settings, lr = self.settings, compute_learning_rate(self.settings, self.done, self.n_iterations)
        k = None if self._k is None else compute_k(settings, self._k, self.done, self.n_iterations)
        with nullcontext() if k is None else at_k(self.sae, k):
            stats, norm = take_step(
                self.sae,
                x,
                self.optimizer,
                lr=lr,
                clip=settings.clip,
                precision=settings.precision,
                micro_batches=settings.micro_batches,
                synchronize=self._synchronize,
            )
        if self._average is not None:
            self._average.update(self.sae, self.done)
        self.done += 1
        return Iteration(self.done, stats.n_rows, {**stats.parts, "gradient_norm": norm}, lr)

    def usable(self) -> SAE:
        """The module to evaluate and to save: a copy with the averaged weights where they are asked for, else the module."""
        return self.sae if self._average is None else self._average.apply(self.sae)

    def remember(self) -> None:
        """Keep a copy of what `usable` gives now, in the place of an earlier one; it is part of the state."""
        tensors = {name: value.detach().clone() for name, value in cast(nn.Module, self.usable()).state_dict().items()}
        self._best = tensors | {"done": torch.tensor(self.done)}

    def recall(self) -> None:
        """Let the module and `done` be what was remembered, if anything was. No step can be taken after it."""
        if self._best:
            self.done, self._average = int(self._best["done"]), None
            cast(nn.Module, self.sae).load_state_dict({name: value for name, value in self._best.items() if name != "done"})

    def state_dict(self) -> dict[str, Tensor]:
        """All that training changes, as tensors by name. Not copied: they change with the next step."""
        tensors = {f"sae.{name}": value for name, value in cast(nn.Module, self.sae).state_dict().items()}
        for index, averages in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in averages.items()}
        if self._average is not None:
            tensors |= {f"average.{name}": value for name, value in self._average.tensors.items()}
        tensors |= {f"best.{name}": value for name, value in self._best.items()}
        return tensors | {"done": torch.tensor(self.done)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on where `state` was taken, bit for bit on a CPU. Raises CheckpointError: tensors missing or of other shapes."""
        try:
            cast(nn.Module, self.sae).load_state_dict(_under(state, "sae."))
            _load_optimizer(self.optimizer, _under(state, "optimizer."))
            if self._average is not None:
                self._average.load(_under(state, "average."))
            self.done, self._best = int(state["done"]), _under(state, "best.")
        except (KeyError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"the saved state does not fit this training ({error}); train from the start") from error


def take_step(
    sae: SAE,
    x: Float[Tensor, "row d_in"],
    optimizer: Optimizer,
    *,
    lr: float,
    clip: float | None = None,
    precision: Precision = "fp32",
    micro_batches: int = 1,
    synchronize: Synchronize | None = None,
) -> tuple[Stats, Float[Tensor, ""]]:
    """One optimizer step: the statistics of the batch, and the norm of the gradient before it was clipped to `clip`."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.zero_grad()
    stats = accumulate_gradient(sae, x, precision=precision, micro_batches=micro_batches)
    norm = _measure_norm(parameters) if synchronize is None else synchronize(parameters)
    clip_grads_with_norm_(parameters, math.inf if clip is None else clip, norm)
    optimizer.step()
    sae.constrain()
    sae.observe(stats)
    return stats, norm


def accumulate_gradient(
    sae: SAE, x: Float[Tensor, "row d_in"], *, precision: Precision = "fp32", micro_batches: int = 1
) -> Stats:
    """Add the gradient of the mean loss of the rows to the parameters; the statistics of all of them.

    Micro-batches take every n-th row, because the rows of a hook point stand together in a batch. What an architecture
    decides over a batch (the selection of `batch_topk` and `matryoshka`, the share of the error in AuxK) it decides over
    each micro-batch; all else is the gradient of the whole batch to rounding.
    """
    found: list[Stats] = []
    for start in range(min(micro_batches, max(x.shape[0], 1))):
        part = x if micro_batches == 1 else x[start::micro_batches].contiguous()
        with lower(x.device, precision):
            loss, stats = sae.loss(part)
        (loss if micro_batches == 1 else loss * (part.shape[0] / x.shape[0])).backward()
        found.append(stats)
    return _merge(found)


def lower(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """Where products of matrices are taken in `precision`; parameters, gradients and pursuits stay in float32."""
    return nullcontext() if precision == "fp32" else torch.autocast(device.type, torch.bfloat16)


def _measure_norm(parameters: Sequence[nn.Parameter]) -> Tensor:
    return get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])


def _merge(found: Sequence[Stats]) -> Stats:
    """The statistics of a batch from those of its micro-batches: means by rows."""
    n_rows = sum(stats.n_rows for stats in found)
    if len(found) == 1:
        return found[0]._replace(parts={name: part.float() for name, part in found[0].parts.items()})
    parts = {
        name: torch.stack([stats.parts[name].float() * (stats.n_rows / n_rows) for stats in found]).sum(0)
        for name in found[0].parts
    }
    fired = torch.stack([stats.fired for stats in found]).any(0)
    # As many as a whole batch would keep, from every micro-batch its share.
    kept = [stats.kept[start :: len(found)] for start, stats in enumerate(found) if stats.kept is not None]
    points = [stats.points for stats in found if stats.points is not None]
    return Stats(parts, fired, n_rows, torch.cat(kept) if kept else None, torch.cat(points) if points else None)


def _load_optimizer(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    averages: dict[int, dict[str, Any]] = {}
    for name, value in tensors.items():
        index, _, field = name.partition(".")
        averages.setdefault(int(index), {})[field] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": averages})


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
