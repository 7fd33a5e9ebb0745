"""Training many dictionaries on one stream: every batch is read and normalised once, and each takes a step with it."""

import contextlib
from collections.abc import Generator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import nn

from thresher.data.stream import ActivationStream, StreamBatch
from thresher.progress import log, progress
from thresher.runs import refuse_foreign
from thresher.train.checkpoint import CONFIG, load_sae
from thresher.train.config import TrainConfig
from thresher.train.fitting import is_fitted_once
from thresher.train.inputs import open_stream, refuse_other_run
from thresher.train.interrupt import defer_interrupts
from thresher.train.log import LOG
from thresher.train.resume import STATE
from thresher.train.run import run_on
from thresher.train.sweep.member import Member
from thresher.train.sweep.outcome import COST, Cost, Outcome, read_outcome, write_cost
from thresher.train.sweep.source import Shared, Source
from thresher.train.sweep.stopwatch import Stopwatch


def train_together(configs: Sequence[TrainConfig], source: Source, label: str) -> list[Outcome]:
    """Train all that have not come to their end, on one pass over the stream they share; what all came to.

    The configurations differ in `sae`, `out`, `optimizer` and `init_seed` only. Each ends bit for bit (on a CPU) as if trained
    alone. Members that were stopped at different iterations go on together: the stream starts where the first of them is,
    and the others wait. One whose loss stops being finite leaves; the others go on. On Ctrl-C saves all, then raises
    KeyboardInterrupt. Several processes take turns at the members, each with a stream of its own; all get all outcomes.
    Raises CheckpointError: a folder holds another run; ThresherError: another process has ended.
    """
    team = source.team
    arranged = [source.arrange(config) for config in configs]
    before = team.agree(lambda: [_look(config, shared) for config, shared in arranged])
    missing = [pair for pair, outcome in zip(arranged, before, strict=True) if outcome is None]
    if missing:
        log(f"{label}: {len(missing)} of {len(configs)} to train{f' by {team.n_ranks} processes' * (team.n_ranks > 1)}")
    own = missing[team.rank :: team.n_ranks]
    streams: dict[tuple[str, ...], tuple[Shared, list[TrainConfig]]] = {}
    for config, shared in own:
        if not is_fitted_once(config):
            streams.setdefault(shared.hook_points, (shared, []))[1].append(config)
    for shared, configs_of_stream in streams.values():
        with torch.random.fork_rng(["cuda"] if source.device.type == "cuda" else []):
            torch.manual_seed(configs_of_stream[0].seed)
            _train(configs_of_stream, shared, label)
    for config, shared in own:
        if is_fitted_once(config):
            _fit(config, shared)
    found = {outcome.folder: outcome for each in team.gather([_find(config) for config, _ in own]) for outcome in each}
    return [outcome or found[config.out] for (config, _), outcome in zip(arranged, before, strict=True)]


def _look(config: TrainConfig, shared: Shared) -> Outcome | None:
    """What a member came to, None while it has not come to its end. Raises CheckpointError: its folder holds another run."""
    refuse_foreign(config.out, [CONFIG, LOG, STATE, COST])
    refuse_other_run(config, shared.store)
    return read_outcome(config.out)


def _find(config: TrainConfig) -> Outcome:
    outcome = read_outcome(config.out)
    assert outcome is not None, config.out
    return outcome


def _fit(config: TrainConfig, shared: Shared) -> None:
    """A dictionary that is fitted once takes its rows from a stream of its own; reading them is in its seconds."""
    stopwatch = Stopwatch(shared.device)
    with stopwatch.running():
        run_on(config, shared.store, shared.layout.team)
    trained = load_sae(config.out)
    r2 = {name: each["r2"] for name, each in trained.evaluation["hook_points"].items()}
    point = {"iteration": 1, "seconds": stopwatch.read(), "l0": trained.evaluation["l0"], "r2": r2}
    parameters = sum(tensor.nbytes for tensor in cast(nn.Module, trained.sae).state_dict().values())
    write_cost(config.out, Cost(stopwatch.read(), stopwatch.clock, parameters, 0, (point,)))


def _train(configs: Sequence[TrainConfig], shared: Shared, label: str) -> None:
    stream = open_stream(configs[0], shared.store, shared.device)
    with contextlib.closing(stream), contextlib.ExitStack() as logs, contextlib.closing(_read(stream)) as batches:
        members = _start(configs, shared, stream, batches, logs)
        _pass(members, shared, stream, batches, label)


def _read(stream: ActivationStream) -> Generator[StreamBatch, None, None]:
    yield from stream


def _start(
    configs: Sequence[TrainConfig],
    shared: Shared,
    stream: ActivationStream,
    batches: Generator[StreamBatch, None, None],
    logs: contextlib.ExitStack,
) -> list[Member]:
    """The members at the iterations they had come to; the stream is put where the first of them is."""
    at_start = stream.state_dict()
    started: list[tuple[Member, Mapping[str, Any]]] = []
    for config in configs:
        member = Member(config, shared, stream, batches)
        logs.callback(member.close)
        # A member that goes on has put the stream where it was itself.
        started.append((member, stream.state_dict() if member.done else at_start))
    for member, _ in started:
        member.begin()
    stream.load_state_dict(min(started, key=lambda pair: pair[0].done)[1])
    return [member for member, _ in started]


def _pass(
    members: Sequence[Member],
    shared: Shared,
    stream: ActivationStream,
    batches: Generator[StreamBatch, None, None],
    label: str,
) -> None:
    left, batch_size = list(members), members[0].batch_size
    done = min(member.done for member in members)
    with (
        progress(label, batch_size * max(member.n_iterations for member in members), "rows") as advance,
        defer_interrupts() as is_interrupted,
    ):
        advance(batch_size * done)
        while left:
            position = stream.state_dict()
            batch = next(batches)
            x = shared.normalizer.normalize(batch.x, batch.group)
            at_work = [member for member in left if member.done == done]
            for member in at_work:
                member.advance(x, position)
            left = [member for member in left if not member.is_at_end]
            done += 1
            advance(batch.x.shape[0], members=float(len(at_work)))
            if is_interrupted():
                for member in at_work:
                    if not member.is_at_end:
                        member.stop()
                raise KeyboardInterrupt
