"""Training as a stage: from a store to a checkpoint, with evaluation, logs and exact resume."""

import contextlib
from pathlib import Path
from typing import cast

import torch
from torch import nn

from thresher.config import to_dict
from thresher.data.aligned import AlignedStore
from thresher.data.mixture import Mixture, open_stores
from thresher.data.store import Store
from thresher.devices import find_device
from thresher.progress import log, progress
from thresher.runs import refuse_foreign, write_provenance
from thresher.train.checkpoint import CONFIG, is_finished
from thresher.train.config import TrainConfig
from thresher.train.fitting import fit_once, is_fitted_once
from thresher.train.history import go_back
from thresher.train.inputs import (
    FREE_FIELDS,
    arrange,
    build_sae,
    identify,
    measure_normalizer,
    open_stream,
    read_all_held_out,
    refuse_other_run,
    sample_held_out,
)
from thresher.train.interrupt import defer_interrupts
from thresher.train.learner import Learner
from thresher.train.log import LOG, TrainLog
from thresher.train.resume import STATE, Progress, Running, load_state
from thresher.train.session import Prepared, Session
from thresher.train.tracing import Tracer

__all__ = [
    "FREE_FIELDS",
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


def run(config: TrainConfig) -> Path:
    """Train as configured and return the folder of the checkpoint.

    Resumes a run that was killed, bit for bit on a CPU; returns at once when the run is finished. On Ctrl-C and SIGTERM saves
    its state and raises KeyboardInterrupt. Raises CheckpointError: the folder holds another run; ThresherError: the loss is
    not finite (the last checkpoint stays); StoreError: the store does not have what is asked for.
    """
    config, store = arrange(config, open_stores(config.store, cache=config.cache))
    refuse_foreign(config.out, [CONFIG, LOG, STATE])
    refuse_other_run(config, store)
    if config.go_back_to is not None:
        go_back(config.out, config.go_back_to)
    if is_finished(config.out):
        log(f"train: {config.out} is finished")
        return config.out
    device = find_device(config.device)
    with torch.random.fork_rng(["cuda"] if device.type == "cuda" else []):
        torch.manual_seed(config.seed)
        if is_fitted_once(config) and not isinstance(store, AlignedStore):
            write_provenance(config.out, config, {"store": store.fingerprint})
            with open_log(config, 0) as train_log:
                fit_once(config, store, train_log, device)
            return config.out
        prepared = _prepare(config, store, device)
        # Only now: a configuration that cannot be trained must not stand in the way of the mended one.
        write_provenance(config.out, config, {"store": store.fingerprint})
        try:
            load_state(config.out, prepared.running, prepared.fingerprint)
            _train(prepared, device)
        finally:
            prepared.running.stream.close()
    return config.out


def _prepare(config: TrainConfig, store: Store | Mixture | AlignedStore, device: torch.device) -> Prepared:
    stream = open_stream(config, store, device)
    normalizer = measure_normalizer(config, store)
    sae = build_sae(config, stream.d_in)
    cast(nn.Module, sae).to(device)
    learner = Learner(sae, config.optimizer, config.count_iterations(stream.n_rows))
    running = Running(learner, stream, Progress())
    return Prepared(config, store, normalizer.to(device), running, identify(config, store))


def _train(prepared: Prepared, device: torch.device) -> None:
    """Take the iterations that are left, and save the finished checkpoint."""
    config, learner = prepared.config, prepared.running.learner
    batch_size, start = config.stream.batch_size, learner.done
    sample = sample_held_out(config, prepared.store)
    with (
        open_log(config, start) as train_log,
        progress(f"train {config.sae.kind}", batch_size * learner.n_iterations, "rows") as advance,
        contextlib.closing(iter(prepared.running.stream)) as batches,
        contextlib.closing(Tracer(config.profile, config.out, device)) as tracer,
        defer_interrupts() as is_interrupted,
    ):
        session = Session(prepared, train_log, sample, batches)
        advance(batch_size * start)
        session.begin()
        while not session.is_over:
            tracer.begin(learner.done + 1 - start)
            step = session.step()
            tracer.end(learner.done - start)
            advance(step.n_rows)
            stops = is_interrupted()
            session.follow_up(step, must_save=stops)
            if stops:
                raise KeyboardInterrupt
        session.conclude()


def open_log(config: TrainConfig, start: int) -> TrainLog:
    """The log of a training that goes on after `start` iterations."""
    return TrainLog(config.out, start, tensorboard=config.tensorboard, wandb=config.wandb, described=to_dict(config))
