"""One dictionary in training beside others: its learner, its log, its checkpoints, its cost."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from thresher.data.mixture import Mixture
from thresher.data.store import Store
from thresher.data.stream import ActivationStream
from thresher.runs import write_provenance
from thresher.train.by_k import NestedSAE, evaluate_by_k
from thresher.train.checkpoint import TrainedSAE, read_description, save_sae
from thresher.train.config import TrainConfig
from thresher.train.evaluate import evaluate
from thresher.train.learner import Iteration, Learner
from thresher.train.log import TrainLog
from thresher.train.normalize import Normalizer
from thresher.train.resume import STATE, Running, load_state, save_state
from thresher.train.run import build_sae, identify, read_all_held_out
from thresher.train.sweep.outcome import Cost, read_cost, write_cost
from thresher.train.sweep.stopwatch import Stopwatch


class Shared(NamedTuple):
    """What all members of a sweep train with."""

    store: Store | Mixture
    normalizer: Normalizer
    """On the device."""
    sample: Mapping[str, Sequence[Tensor]]
    """Held-out rows by hook point for the evaluations on the way."""
    device: torch.device


class Member:
    """Takes the steps of one training and does what is due after them; goes on from its folder when made."""

    def __init__(self, config: TrainConfig, shared: Shared, stream: ActivationStream) -> None:
        self.config, self._shared = config, shared
        sae = build_sae(config, stream.d_in)
        cast(nn.Module, sae).to(shared.device)
        self._learner = Learner(sae, config.optimizer, config.count_iterations(stream.n_rows))
        self._running = Running(self._learner, stream)
        self._run = identify(config, shared.store)
        start = load_state(config.out, self._running, self._run)
        before = read_cost(config.out) if start else None
        self._watch = Stopwatch(shared.device, before.seconds if before else 0.0)
        self._curve = [point for point in before.curve if point["iteration"] <= start] if before else []
        self._is_finite = torch.ones((), dtype=torch.bool, device=shared.device)
        # Only now: a configuration that cannot be trained must not stand in the way of the mended one.
        write_provenance(config.out, config, {"store": shared.store.fingerprint})
        self._log = TrainLog(config.out, start)
        self._evaluation: Mapping[str, Any] = {}
        if start:
            self._evaluation = read_description(config.out)["evaluation"]
        else:
            self._evaluate(shared.sample)
        self.is_over = False
        """Whether it was trained to its end, or diverged."""

    @property
    def done(self) -> int:
        """Iterations done."""
        return self._learner.done

    @property
    def n_iterations(self) -> int:
        """Iterations in all."""
        return self._learner.n_iterations

    def step(self, x: Float[Tensor, "row d_in"]) -> None:
        """Take one step, and log, evaluate, save and end where that is due."""
        with self._watch.running():
            iteration = self._learner.step(x)
        parts = iteration.parts
        self._is_finite = self._is_finite & parts["reconstruction"].isfinite() & parts["gradient_norm"].isfinite()
        config, is_last = self.config, self.done == self.n_iterations
        due = {every: is_last or self.done % every == 0 for every in (config.log_every, config.evaluate_every)}
        is_saved = self.done % config.checkpoint_every == 0 and not is_last
        if (any(due.values()) or is_saved) and not self._is_sound():
            self._give_up()
            return
        if due[config.log_every]:
            self._log.write(self.done, "train", _read(iteration))
        if is_last:
            self._finish()
            return
        if due[config.evaluate_every]:
            self._evaluate(self._shared.sample)
        if is_saved:
            self.save()

    def save(self) -> None:
        """Write what it takes to go on from here. Only right after a step: the stream's position goes with it."""
        write_cost(self.config.out, self._count())
        save_state(self.config.out, self._running, self._run)
        save_sae(self.config.out, self._describe(is_finished=False))

    def close(self) -> None:
        """Close its log."""
        self._log.__exit__(None, None, None)

    def _finish(self) -> None:
        self._evaluate(read_all_held_out(self.config, self._shared.store))
        sae = self._learner.usable()
        if isinstance(sae, NestedSAE):
            found = evaluate_by_k(sae, self._shared.normalizer, read_all_held_out(self.config, self._shared.store))
            self._evaluation = {**self._evaluation, "by_k": {str(k): each._asdict() for k, each in found.items()}}
        write_cost(self.config.out, self._count())
        save_sae(self.config.out, self._describe(is_finished=True))
        (self.config.out / STATE).unlink(missing_ok=True)
        self.is_over = True

    def _is_sound(self) -> bool:
        """Whether every loss so far and every parameter is finite; waits for the device."""
        parameters = cast(nn.Module, self._learner.sae).parameters()
        return bool(torch.stack([self._is_finite, *(each.isfinite().all() for each in parameters)]).all())

    def _give_up(self) -> None:
        since = max(self.done - self.config.log_every, 0)
        reason = f"the loss, its gradient or a parameter stopped being finite between iterations {since} and {self.done}"
        write_cost(self.config.out, self._count(reason))
        self.is_over = True

    def _count(self, diverged: str | None = None) -> Cost:
        sizes = {name: tensor.nbytes for name, tensor in self._learner.state_dict().items()}
        parameters = sum(size for name, size in sizes.items() if name.startswith("sae."))
        return Cost(
            seconds=self._watch.read(),
            clock=self._watch.clock,
            parameter_bytes=parameters,
            state_bytes=sum(sizes.values()) - parameters,
            curve=tuple(self._curve),
            diverged=diverged,
        )

    def _evaluate(self, rows: Mapping[str, Iterable[Tensor]]) -> None:
        found = evaluate(self._learner.usable(), self._shared.normalizer, rows)
        values = {name: each._asdict() for name, each in found.items()}
        pooled = values.pop("pooled")
        self._evaluation = pooled | {"hook_points": values}
        self._log.write(
            self.done,
            "evaluation",
            pooled | {f"{name}/{key}": value for name, each in values.items() for key, value in each.items()},
        )
        r2 = {name: each["r2"] for name, each in values.items()}
        self._curve.append({"iteration": self.done, "seconds": self._watch.read(), "l0": pooled["l0"], "r2": r2})

    def _describe(self, *, is_finished: bool) -> TrainedSAE:
        store = self._shared.store
        return TrainedSAE(
            sae=self._learner.usable(),
            normalizer=self._shared.normalizer,
            config=self.config,
            store_fingerprint=store.fingerprint,
            store_identity=store.identity,
            evaluation=self._evaluation,
            iteration=self.done,
            is_finished=is_finished,
        )


def _read(iteration: Iteration) -> dict[str, float]:
    """The statistics of an iteration as numbers: here the host waits for the device."""
    values = torch.stack([part.detach().float() for part in iteration.parts.values()]).tolist()
    named = zip(iteration.parts, values, strict=True)
    return {"lr": iteration.lr} | {name: value for name, value in named if math.isfinite(value)}
