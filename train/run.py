"""Training as a stage: from a store to a checkpoint, with evaluation, logs and exact resume."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch
from torch import nn

from thresher.config import to_dict
from thresher.data.mixture import Mixture, open_stores
from thresher.data.store import Store
from thresher.devices import find_device
from thresher.progress import log, progress
from thresher.runs import refuse_foreign, write_provenance
from thresher.team import Team, open_team
from thresher.train.checkpoint import CONFIG, is_finished
from thresher.train.config import TrainConfig
from thresher.train.fitting import fit_once, is_fitted_once
from thresher.train.history import go_back
from thresher.train.inputs import (
    FREE_FIELDS,
    Opened,
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
from thresher.train.log import LOG, NoLog, TrainLog
from thresher.train.parallel.coders import check_shards
from thresher.train.parallel.layout import Layout
from thresher.train.parallel.parts import Parts
from thresher.train.protocol import Stream
from thresher.train.resume import STATE, Progress, Running, load_state
from thresher.train.session import Prepared, Session
from thresher.train.tracing import Tracer

FEW_ITERATIONS = 100
"""With fewer a dictionary is hardly trained, which is said."""

__all__ = [
    "FREE_FIELDS",
    "TrainConfig",
    "build_sae",
    "identify",
    "is_done",
    "measure_normalizer",
    "open_log",
    "open_stream",
    "read_all_held_out",
    "refuse_other_run",
    "run",
    "run_on",
    "sample_held_out",
]

OpenStream = Callable[[torch.device], Stream]


def run(config: TrainConfig) -> Path:
    """Train as configured and return the folder of the checkpoint.

    Resumes a run that was killed, bit for bit on a CPU; returns at once when the run is finished. Processes that are launched
    together share the work, see `thresher.train.parallel`. On Ctrl-C and SIGTERM saves its state and raises
    KeyboardInterrupt. Raises CheckpointError: the folder holds another run; ThresherError: the loss is not finite (the last
    checkpoint stays), or another process has ended; StoreError: the store does not have what is asked for.
    """
    with open_team() as team:
        arranged, store = arrange(config, open_stores(config.store, cache=config.cache))
        return run_on(arranged, store, team)


def run_on(config: TrainConfig, store: Opened, team: Team, open_live: OpenStream | None = None) -> Path:
    """`run` on a store that is open, with the batches of another stream where one is given."""
    if team.agree(lambda: is_done(config, store)):
        log(f"train: {config.out} is finished")
        return config.out
    check_shards(config.sae, config.parallel.dictionary_shards)
    device = find_device(config.device)
    with torch.random.fork_rng(["cuda"] if device.type == "cuda" else []):
        torch.manual_seed(config.seed)
        if is_fitted_once(config) and isinstance(store, Store | Mixture):
            team.agree(lambda: fit_once(config, store, device))
            return config.out
        prepared = _prepare(config, store, Layout(team, config.parallel.dictionary_shards, device), device, open_live)
        try:
            # Only now: a configuration that cannot be trained must not stand in the way of the mended one.
            team.agree(lambda: write_provenance(config.out, config, {"store": store.fingerprint}))
            load_state(config.out, prepared.running, prepared.fingerprint)
            _train(prepared, device)
        finally:
            prepared.running.stream.close()
    team.wait()
    return config.out


def is_done(config: TrainConfig, store: Opened) -> bool:
    """Whether the folder holds this very training, finished. Raises CheckpointError and ConfigError: it holds other things."""
    refuse_foreign(config.out, [CONFIG, LOG, STATE])
    refuse_other_run(config, store)
    if config.go_back_to is not None:
        go_back(config.out, config.go_back_to)
    return is_finished(config.out)


def _prepare(
    config: TrainConfig, store: Opened, layout: Layout, device: torch.device, open_live: OpenStream | None
) -> Prepared:
    layout.check_batch(config.stream.batch_size)
    if open_live is not None:
        stream = open_live(device)
    else:
        stream = open_stream(config, store, device, (layout.rows.place, layout.rows.size))
    normalizer = layout.team.agree(lambda: measure_normalizer(config, store))
    sae = build_sae(config, stream.d_in, layout)
    module = cast(nn.Module, sae).to(device)
    n_iterations = config.count_iterations(stream.n_rows)
    if n_iterations < FEW_ITERATIONS:
        log(
            f"train: the budget is {n_iterations} optimizer steps ({stream.n_rows} training rows, batches of "
            f"{config.stream.batch_size}): few; more `epochs` or a smaller `stream.batch_size` give more"
        )
    learner = Learner(sae, config.optimizer, n_iterations, synchronize=layout.synchronize(module))
    running = Running(learner, stream, Progress(), Parts(layout, learner))
    return Prepared(config, store, layout, normalizer.to(device), running, identify(config, store))


def _train(prepared: Prepared, device: torch.device) -> None:
    """Take the iterations that are left, and save the finished checkpoint."""
    config, learner, layout = prepared.config, prepared.running.learner, prepared.layout
    batch_size, start = config.stream.batch_size, learner.done
    with (
        open_log(config, start) if layout.is_first else NoLog() as train_log,
        progress(f"train {config.sae.kind}", batch_size * learner.n_iterations, "rows") as advance,
        contextlib.closing(iter(prepared.running.stream)) as batches,
        contextlib.closing(Tracer(config.profile if layout.is_first else None, config.out, device)) as tracer,
        defer_interrupts() as is_interrupted,
    ):
        session = Session(prepared, train_log, prepared.sample_held_out(), batches)
        advance(batch_size * start)
        session.begin()
        while not session.is_over:
            tracer.begin(learner.done + 1 - start)
            step = session.step()
            tracer.end(learner.done - start)
            advance(step.n_rows)
            stops = layout.any(here=is_interrupted())
            session.follow_up(step, must_save=stops)
            if stops:
                raise KeyboardInterrupt
        session.conclude()


def open_log(config: TrainConfig, start: int) -> TrainLog:
    """The log of a training that goes on after `start` iterations."""
    return TrainLog(config.out, start, tensorboard=config.tensorboard, wandb=config.wandb, described=to_dict(config))
