"""What happens around the steps of one training: logs, evaluations, checkpoints, and when it ends."""

import math
from collections.abc import Generator, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from thresher.data.aligned import AlignedStore
from thresher.data.mixture import Mixture
from thresher.data.stream import StreamBatch
from thresher.errors import ThresherError
from thresher.progress import log
from thresher.train.aligned import describe_norms
from thresher.train.blame import FiniteWatch, describe_batch
from thresher.train.by_k import NestedSAE, evaluate_by_k
from thresher.train.checkpoint import TrainedSAE, save_sae
from thresher.train.config import TrainConfig
from thresher.train.evaluate import evaluate
from thresher.train.history import keep_state
from thresher.train.inputs import Opened, read_all_held_out, sample_held_out
from thresher.train.learner import Iteration
from thresher.train.log import NoLog, TrainLog
from thresher.train.normalize import Normalizer
from thresher.train.parallel.layout import Layout
from thresher.train.protocol import SAE
from thresher.train.resume import STATE, Progress, Running, save_state


class Prepared(NamedTuple):
    """What stays the same while a run goes on, and what does not (`running`)."""

    config: TrainConfig
    store: Opened
    layout: Layout
    normalizer: Normalizer
    running: Running
    fingerprint: str

    def share(self, rows: Tensor) -> Tensor:
        """This process's share of held-out rows."""
        return rows[self.layout.rows.place :: self.layout.rows.size]

    def sample_held_out(self) -> dict[str, list[Tensor]]:
        """This process's share of the held-out rows for the evaluations on the way, by hook point."""
        return {name: [self.share(x) for x in chunks] for name, chunks in sample_held_out(self.config, self.store).items()}

    def read_all_held_out(self) -> dict[str, Iterator[Tensor]]:
        """This process's share of all held-out rows by hook point, in chunks."""
        return {name: map(self.share, chunks) for name, chunks in read_all_held_out(self.config, self.store).items()}


class Session:
    """Takes the steps of a training, and does what is due after each. `batches` are those of its stream."""

    def __init__(
        self,
        prepared: Prepared,
        train_log: TrainLog | NoLog,
        sample: Mapping[str, Iterable[Tensor]],
        batches: Generator[StreamBatch, None, None],
    ) -> None:
        self._prepared, self._log, self._sample, self._batches = prepared, train_log, sample, batches
        self._config = prepared.config
        self._learner, self._stream = prepared.running.learner, prepared.running.stream
        self._progress = prepared.running.progress or Progress()
        self._watch = FiniteWatch(self._learner.sae.dictionary.device)

    @property
    def is_over(self) -> bool:
        """Whether the budget is used up, or evaluations have not become better for as long as they may."""
        patience = self._config.patience
        return self._learner.done >= self._learner.n_iterations or (patience is not None and self._progress.n_stale >= patience)

    def begin(self) -> None:
        """Evaluate a training that has not begun."""
        if self._learner.done == 0:
            self._evaluate(self._sample)

    def step(self) -> Iteration:
        """Take one step with the next batch."""
        position = self._stream.state_dict()
        batch = next(self._batches)
        return self.take(self._prepared.normalizer.normalize(batch.x, batch.group), position)

    def take(self, x: Float[Tensor, "row d_in"], position: Mapping[str, Any]) -> Iteration:
        """Take one step with a normalised batch; `position` is where the stream was before it."""
        step = self._learner.step(x)
        self._watch.note(step, position)
        return step

    def follow_up(self, step: Iteration, *, must_save: bool) -> None:
        """Log, evaluate and save where that is due. Raises ThresherError when the loss is not finite."""
        config, is_last = self._config, step.number >= self._learner.n_iterations
        if step.number % config.log_every == 0 or is_last:
            self._refuse_nonfinite()
            self._log.write(step.number, "train", _read(step))
        if step.number % config.evaluate_every == 0 and not is_last:
            self._refuse_nonfinite()
            r2 = float(self._evaluate(self._sample)["r2"])
            if self._progress.note(r2, config.min_gain) and config.patience is not None:
                self._learner.remember()
        if step.number % config.checkpoint_every == 0 or is_last or must_save:
            self._refuse_nonfinite()
            self._save()

    def conclude(self) -> None:
        """Evaluate on all held-out rows and save the finished checkpoint: of an early end what evaluations found best."""
        self._refuse_nonfinite()
        config, learner, done = self._config, self._learner, self._learner.done
        if done < learner.n_iterations:
            learner.recall()
            because = f"{config.patience} evaluations brought no better R2 than that of iteration {learner.done}, which is kept"
            log(f"train: {config.out} stopped after {done} iterations: {because}")
        found = self._evaluate(self._prepared.read_all_held_out())
        self._progress.evaluation = found | self._evaluate_by_k() | describe_norms(self._learner.usable(), config.hook_points)
        self._save_sae(is_finished=True)
        if self._prepared.layout.is_first:
            (config.out / STATE).unlink(missing_ok=True)

    def _evaluate(self, rows: Mapping[str, Iterable[Tensor]]) -> dict[str, Any]:
        """Evaluate and log; the pooled numbers with those of each hook point under `hook_points`."""
        measured = evaluate(self._learner.usable(), self._prepared.normalizer, rows, self._prepared.layout.batch)
        found = {name: each._asdict() for name, each in measured.items()}
        pooled = found.pop("pooled")
        by_hook_point = {f"{name}/{key}": value for name, each in found.items() for key, value in each.items()}
        self._log.write(self._learner.done, "evaluation", pooled | by_hook_point)
        self._progress.evaluation = pooled | {"hook_points": found}
        return self._progress.evaluation

    def _evaluate_by_k(self) -> dict[str, Any]:
        """What fewer and more steps than in training reach on all held-out rows, by their number, where codes nest."""
        sae = self._learner.usable()
        if not isinstance(sae, NestedSAE):
            return {}
        prepared = self._prepared
        found = evaluate_by_k(sae, prepared.normalizer, prepared.read_all_held_out(), prepared.layout.batch)
        return {"by_k": {str(k): each._asdict() for k, each in found.items()}}

    def _refuse_nonfinite(self) -> None:
        found = self._watch.look()
        if found is None:
            return
        number, position = found
        out = self._config.out
        kept = "the last checkpoint is kept" if (out / STATE).exists() else "no checkpoint was saved yet"
        self._batches.close()
        raise ThresherError(
            f"{out}: the loss or its gradient stopped being finite at iteration {number}; {kept}. "
            f"{describe_batch(self._stream, position)}. Leave such rows out of the store, or lower optimizer.lr, and use a new "
            "`out`"
        )

    def _save(self) -> None:
        config = self._config
        save_state(config.out, self._prepared.running, self._prepared.fingerprint)
        self._save_sae(is_finished=False)
        if config.keep and self._prepared.layout.is_first:
            keep_state(config.out, self._learner.done, config.keep)

    def _save_sae(self, *, is_finished: bool) -> None:
        """Write the checkpoint, in the first process."""
        config, parts = self._config, self._prepared.running.parts
        sae = self._learner.usable()
        if parts is not None:
            sae = parts.join(sae, config.sae, config.dictionary_seed)
        if sae is not None:
            save_sae(config.out, self._describe(sae, is_finished=is_finished))

    def _describe(self, sae: SAE, *, is_finished: bool) -> TrainedSAE:
        store = self._prepared.store
        source = store.source if isinstance(store, AlignedStore) else store
        return TrainedSAE(
            sae=sae,
            normalizer=self._prepared.normalizer,
            config=self._config,
            store_fingerprint=store.fingerprint,
            store_identity=store.identity,
            evaluation=self._progress.evaluation,
            iteration=self._learner.done,
            is_finished=is_finished,
            store_parts=tuple(part.fingerprint for part in source.stores) if isinstance(source, Mixture) else (),
        )


def _read(step: Iteration) -> dict[str, float]:
    """The statistics of an iteration as numbers: here the host waits for the device."""
    values = torch.stack([part.detach() for part in step.parts.values()]).tolist()
    return {"lr": step.lr} | {name: value for name, value in zip(step.parts, values, strict=True) if math.isfinite(value)}
