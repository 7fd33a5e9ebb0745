"""One dictionary in training beside others: a session on a stream that it shares, with its cost."""

from collections.abc import Generator, Iterable, Mapping
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from thresher.data.stream import ActivationStream, StreamBatch
from thresher.runs import write_provenance
from thresher.train.config import TrainConfig
from thresher.train.inputs import build_sae, identify
from thresher.train.learner import Iteration, Learner
from thresher.train.resume import Progress, Running, load_state
from thresher.train.run import open_log
from thresher.train.session import Prepared, Session
from thresher.train.sweep.outcome import Cost, read_cost, write_cost
from thresher.train.sweep.source import Shared
from thresher.train.sweep.stopwatch import Stopwatch


class DivergedError(Exception):
    """The loss, its gradient or a parameter of a member is not finite any more. Never leaves this package."""


class Member(Session):
    """A training as in `thresher train` that is given its batches; goes on from its folder when made."""

    def __init__(
        self,
        config: TrainConfig,
        shared: Shared,
        stream: ActivationStream,
        batches: Generator[StreamBatch, None, None],
    ) -> None:
        sae = build_sae(config, stream.d_in, shared.layout)
        cast(nn.Module, sae).to(shared.device)
        learner = Learner(sae, config.optimizer, config.count_iterations(stream.n_rows))
        running = Running(learner, stream, Progress())
        run = identify(config, shared.store)
        prepared = Prepared(config, shared.store, shared.layout, shared.normalizer, running, run)
        start = load_state(config.out, running, run)
        # Only now: a configuration that cannot be trained must not stand in the way of the mended one.
        write_provenance(config.out, config, {"store": shared.store.fingerprint})
        self._train_log = open_log(config, start)
        super().__init__(prepared, self._train_log, shared.sample, batches)
        before = read_cost(config.out) if start else None
        self._stopwatch = Stopwatch(shared.device, before.seconds if before else 0.0)
        self._curve = [point for point in before.curve if point["iteration"] <= start] if before else []
        self.is_at_end = False
        """Whether it was trained to its end, or diverged."""

    @property
    def done(self) -> int:
        """Iterations done."""
        return self._learner.done

    @property
    def batch_size(self) -> int:
        """Rows of a step."""
        return self._config.stream.batch_size

    @property
    def n_iterations(self) -> int:
        """Iterations in all."""
        return self._learner.n_iterations

    def take(self, x: Float[Tensor, "row d_in"], position: Mapping[str, Any]) -> Iteration:
        """Take one step and count its time."""
        with self._stopwatch.running():
            return super().take(x, position)

    def advance(self, x: Float[Tensor, "row d_in"], position: Mapping[str, Any]) -> None:
        """Take one step, do what is due after it, and come to an end where that is: after the last, or diverged."""
        try:
            self.follow_up(self.take(x, position), must_save=False)
            if self.is_over:
                self.conclude()
            self.is_at_end = self.is_over
        except DivergedError as error:
            self._give_up(error)

    def stop(self) -> None:
        """Save what it takes to go on from here. Only right after a step: the stream's position goes with it."""
        try:
            self._refuse_nonfinite()
            self._save()
        except DivergedError as error:
            self._give_up(error)

    def conclude(self) -> None:
        """Evaluate on all held-out rows and save the finished checkpoint and its cost."""
        super().conclude()
        write_cost(self._config.out, self._count())

    def close(self) -> None:
        """Close its log."""
        self._train_log.__exit__(None, None, None)

    def _give_up(self, error: DivergedError) -> None:
        write_cost(self._config.out, self._count(str(error)))
        self.is_at_end = True

    def _refuse_nonfinite(self) -> None:
        found = self._watch.look()
        if found is not None:
            raise DivergedError(f"the loss or its gradient stopped being finite at iteration {found[0]}")
        parameters = cast(nn.Module, self._learner.sae).parameters()
        if not bool(torch.stack([each.isfinite().all() for each in parameters]).all()):
            raise DivergedError(f"a parameter is not finite after iteration {self.done}")

    def _evaluate(self, rows: Mapping[str, Iterable[Tensor]]) -> dict[str, Any]:
        found = super()._evaluate(rows)
        r2 = {name: each["r2"] for name, each in found["hook_points"].items()}
        self._curve.append({"iteration": self.done, "seconds": self._stopwatch.read(), "l0": found["l0"], "r2": r2})
        return found

    def _save(self) -> None:
        write_cost(self._config.out, self._count())
        super()._save()

    def _count(self, diverged: str | None = None) -> Cost:
        sizes = {name: tensor.nbytes for name, tensor in self._learner.state_dict().items()}
        parameters = sum(size for name, size in sizes.items() if name.startswith("sae."))
        return Cost(
            seconds=self._stopwatch.read(),
            clock=self._stopwatch.clock,
            parameter_bytes=parameters,
            state_bytes=sum(sizes.values()) - parameters,
            curve=tuple(self._curve),
            diverged=diverged,
        )
