"""Training as a stage: from a store to a checkpoint, with evaluation, logs and exact resume."""

import contextlib
import functools
import itertools
import math
from collections.abc import Generator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from thresher.config import read_values, to_dict
from thresher.data.store import Store, open_store
from thresher.data.stream import ActivationStream, read_held_out
from thresher.devices import find_device
from thresher.errors import CheckpointError, ConfigError, ThresherError
from thresher.progress import log, progress
from thresher.runs import fingerprint, refuse_foreign, write_provenance
from thresher.train.arch import build
from thresher.train.by_k import NestedSAE, evaluate_by_k
from thresher.train.checkpoint import CONFIG, TrainedSAE, is_finished, read_description, save_sae
from thresher.train.config import TrainConfig
from thresher.train.evaluate import evaluate
from thresher.train.interrupt import defer_interrupts
from thresher.train.learner import Iteration, Learner
from thresher.train.log import LOG, TrainLog
from thresher.train.normalize import Normalizer, measure
from thresher.train.protocol import SAE
from thresher.train.resume import STATE, Running, load_state, save_state
from thresher.train.split import read_side

__all__ = [
    "TrainConfig",
    "build_sae",
    "identify",
    "measure_normalizer",
    "open_stream",
    "read_all_held_out",
    "refuse_other_run",
    "run",
    "sample_held_out",
]

FREE_FIELDS = ("store", "cache", "out", "device", "log_every", "evaluate_every", "evaluate_rows", "checkpoint_every")
"""Fields that do not decide what is trained, and may differ when a run goes on."""


class _Run(NamedTuple):
    """What stays the same while a run goes on, and what does not (`running`)."""

    config: TrainConfig
    store: Store
    normalizer: Normalizer
    running: Running
    fingerprint: str
    n_iterations: int


def run(config: TrainConfig) -> Path:
    """Train as configured and return the folder of the checkpoint.

    Resumes a run that was killed, bit for bit on a CPU; returns at once when the run is finished. On Ctrl-C saves its state
    and raises KeyboardInterrupt. Raises CheckpointError: the folder holds another run; ThresherError: the loss is not
    finite (the last checkpoint stays); StoreError: the store does not have what is asked for.
    """
    store = open_store(config.store, cache=config.cache)
    refuse_foreign(config.out, [CONFIG, LOG, STATE])
    refuse_other_run(config, store)
    if is_finished(config.out):
        log(f"train: {config.out} is finished")
        return config.out
    device = find_device(config.device)
    with torch.random.fork_rng(["cuda"] if device.type == "cuda" else []):
        torch.manual_seed(config.seed)
        prepared = _prepare(config, store, device)
        # Only now: a configuration that cannot be trained must not stand in the way of the mended one.
        write_provenance(config.out, config, {"store": store.fingerprint})
        try:
            _train(prepared, load_state(config.out, prepared.running, prepared.fingerprint))
        finally:
            prepared.running.stream.close()
    return config.out


def refuse_other_run(config: TrainConfig, store: Store) -> None:
    """Raises CheckpointError when the folder holds a training with other settings or on another store."""
    path = config.out / "config.yaml"
    if not path.exists():
        return
    before, now = _flatten(read_values(path)), _flatten(to_dict(config))
    names = sorted(name for name in before.keys() | now.keys() if name.partition(".")[0] not in FREE_FIELDS)
    differing = [name for name in names if before.get(name) != now.get(name)]
    if differing:
        found = "; ".join(f"{name} is {before.get(name)!r} there, {now.get(name)!r} here" for name in differing)
        raise CheckpointError(f"{config.out}: holds another run: {found}; choose another `out`, or delete the folder")
    if not (config.out / CONFIG).exists():
        return
    trained_on = read_description(config.out)["store"]["fingerprint"]
    if trained_on != store.fingerprint:
        raise CheckpointError(
            f"{config.out}: was trained on a store with fingerprint {trained_on[:12]}, {store.path} now has "
            f"{store.fingerprint[:12]}; choose another `out`, or delete the folder"
        )


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _prepare(config: TrainConfig, store: Store, device: torch.device) -> _Run:
    stream = open_stream(config, store, device)
    normalizer = measure_normalizer(config, store)
    sae = build_sae(config, stream.d_in)
    cast(nn.Module, sae).to(device)
    n_iterations = config.count_iterations(stream.n_rows)
    return _Run(
        config=config,
        store=store,
        normalizer=normalizer.to(device),
        running=Running(Learner(sae, config.optimizer, n_iterations), stream),
        fingerprint=identify(config, store),
        n_iterations=n_iterations,
    )


def open_stream(config: TrainConfig, store: Store, device: torch.device) -> ActivationStream:
    """The batches that a training sees, raw, from the first on."""
    settings = config.stream
    return ActivationStream(
        store,
        config.hook_points,
        batch_size=settings.batch_size,
        holdout=settings.holdout,
        seed=config.seed,
        pool_rows=settings.pool_rows,
        balance=settings.balance,
        device=device,
    )


def measure_normalizer(config: TrainConfig, store: Store) -> Normalizer:
    """What is done to the batches of a training first; one pass over training rows."""
    return measure(
        store,
        config.hook_points,
        config.normalize,
        holdout=config.stream.holdout,
        seed=config.seed,
        balance=config.stream.balance,
    )


def identify(config: TrainConfig, store: Store) -> str:
    """Fingerprint of all that decides what is trained; a saved state goes on only with the same."""
    decisive = {name: value for name, value in to_dict(config).items() if name not in FREE_FIELDS}
    return fingerprint({"config": decisive, "store": store.fingerprint})


def build_sae(config: TrainConfig, d_in: int) -> SAE:
    """The untrained module. Raises ConfigError when it does not fit into memory."""
    try:
        return build(config.sae, d_in, config.dictionary_seed)
    except (RuntimeError, MemoryError) as error:
        raise ConfigError(
            f"sae: d_sae={config.sae.d_sae} atoms of width {d_in} do not fit into memory ({error}); choose fewer"
        ) from error


def _train(prepared: _Run, start: int) -> None:
    """Take the iterations that are left, and save the finished checkpoint."""
    config, running = prepared.config, prepared.running
    held_out = sample_held_out(config, prepared.store)
    with (
        TrainLog(config.out, start) as train_log,
        progress(f"train {config.sae.kind}", config.stream.batch_size * prepared.n_iterations, "rows") as advance,
        contextlib.closing(_read_batches(prepared)) as batches,
        defer_interrupts() as is_interrupted,
    ):
        advance(config.stream.batch_size * start)
        evaluation = read_description(config.out)["evaluation"] if start else _evaluate(prepared, held_out, train_log, 0)
        is_finite = torch.ones((), dtype=torch.bool, device=running.learner.sae.dictionary.device)
        steps = map(running.learner.step, batches)
        for step in itertools.islice(steps, prepared.n_iterations - start):
            is_finite = is_finite & step.parts["reconstruction"].isfinite() & step.parts["gradient_norm"].isfinite()
            advance(step.n_rows)
            is_due = functools.partial(_is_due, step.number, prepared.n_iterations)
            if is_due(config.log_every):
                train_log.write(step.number, "train", _read(prepared, step, is_finite))
            if is_due(config.evaluate_every) and step.number < prepared.n_iterations:
                _refuse_nonfinite(prepared, step, is_finite)
                evaluation = _evaluate(prepared, held_out, train_log, step.number)
            if is_due(config.checkpoint_every) or is_interrupted():
                _save(prepared, step, is_finite, evaluation)
            if is_interrupted():
                raise KeyboardInterrupt
        evaluation = _evaluate(prepared, read_all_held_out(prepared.config, prepared.store), train_log, prepared.n_iterations)
        evaluation |= _evaluate_by_k(prepared)
    save_sae(config.out, _describe(prepared, evaluation, prepared.n_iterations))
    (config.out / STATE).unlink(missing_ok=True)


def _is_due(number: int, n_iterations: int, every: int) -> bool:
    return number % every == 0 or number == n_iterations


def _read_batches(prepared: _Run) -> Generator[Float[Tensor, "row d_in"], None, None]:
    for batch in prepared.running.stream:
        yield prepared.normalizer.normalize(batch.x, batch.group)


def sample_held_out(config: TrainConfig, store: Store) -> dict[str, list[Tensor]]:
    """Held-out rows by hook point for the evaluations on the way."""
    fraction, seed, limit = config.stream.holdout, config.seed, config.evaluate_rows
    return {name: [read_held_out(store, name, fraction=fraction, seed=seed, limit=limit)[0]] for name in config.hook_points}


def read_all_held_out(config: TrainConfig, store: Store) -> dict[str, Iterator[Tensor]]:
    """All held-out rows by hook point, in chunks."""
    holdout, seed = config.stream.holdout, config.seed
    return {name: read_side(store, name, "held_out", holdout=holdout, seed=seed) for name in config.hook_points}


def _evaluate(prepared: _Run, rows: Mapping[str, Iterable[Tensor]], train_log: TrainLog, iteration: int) -> dict[str, Any]:
    """Evaluate, log, and give the pooled numbers with those of each hook point under `hook_points`."""
    found = {
        name: each._asdict() for name, each in evaluate(prepared.running.learner.usable(), prepared.normalizer, rows).items()
    }
    pooled = found.pop("pooled")
    by_hook_point = {f"{name}/{key}": value for name, each in found.items() for key, value in each.items()}
    train_log.write(iteration, "evaluation", pooled | by_hook_point)
    return pooled | {"hook_points": found}


def _evaluate_by_k(prepared: _Run) -> dict[str, Any]:
    """What fewer and more steps than in training reach on all held-out rows, by their number, where codes nest."""
    sae = prepared.running.learner.usable()
    if not isinstance(sae, NestedSAE):
        return {}
    found = evaluate_by_k(sae, prepared.normalizer, read_all_held_out(prepared.config, prepared.store))
    return {"by_k": {str(k): each._asdict() for k, each in found.items()}}


def _read(prepared: _Run, step: Iteration, is_finite: Tensor) -> dict[str, float]:
    """The statistics of an iteration as numbers: here the host waits for the device."""
    _refuse_nonfinite(prepared, step, is_finite)
    values = torch.stack([part.detach().float() for part in step.parts.values()]).tolist()
    return {"lr": step.lr} | {name: value for name, value in zip(step.parts, values, strict=True) if math.isfinite(value)}


def _refuse_nonfinite(prepared: _Run, step: Iteration, is_finite: Tensor) -> None:
    if bool(is_finite):
        return
    out, every = prepared.config.out, prepared.config.log_every
    kept = "the last checkpoint is kept" if (out / STATE).exists() else "no checkpoint was saved yet"
    raise ThresherError(
        f"{out}: the loss or its gradient stopped being finite between iterations {max(step.number - every, 0)} and "
        f"{step.number}; {kept}. Lower optimizer.lr, or look for extreme rows with `thresher store info`, and use a new `out`"
    )


def _save(prepared: _Run, step: Iteration, is_finite: Tensor, evaluation: Mapping[str, Any]) -> None:
    _refuse_nonfinite(prepared, step, is_finite)
    save_state(prepared.config.out, prepared.running, prepared.fingerprint)
    save_sae(prepared.config.out, _describe(prepared, evaluation, step.number, is_finished=False))


def _describe(prepared: _Run, evaluation: Mapping[str, Any], iteration: int, *, is_finished: bool = True) -> TrainedSAE:
    return TrainedSAE(
        sae=prepared.running.learner.usable(),
        normalizer=prepared.normalizer,
        config=prepared.config,
        store_fingerprint=prepared.store.fingerprint,
        store_identity=prepared.store.identity,
        evaluation=evaluation,
        iteration=iteration,
        is_finished=is_finished,
    )
