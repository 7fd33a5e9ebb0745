"""Training many dictionaries on one stream: every batch is read and normalised once, and each takes a step with it."""

import contextlib
from collections.abc import Generator, Sequence
from typing import Any

import torch

from thresher.data.mixture import Mixture
from thresher.data.store import Store
from thresher.data.stream import ActivationStream, StreamBatch
from thresher.devices import find_device
from thresher.progress import log, progress
from thresher.runs import refuse_foreign
from thresher.train.checkpoint import CONFIG
from thresher.train.config import TrainConfig
from thresher.train.interrupt import defer_interrupts
from thresher.train.log import LOG
from thresher.train.resume import STATE
from thresher.train.run import measure_normalizer, open_stream, refuse_other_run, sample_held_out
from thresher.train.sweep.member import Member, Shared
from thresher.train.sweep.outcome import COST, Outcome, read_outcome


def share(base: TrainConfig, store: Store | Mixture) -> Shared:
    """What is measured once for all members."""
    device = find_device(base.device)
    return Shared(store, measure_normalizer(base, store).to(device), sample_held_out(base, store), device)


def train_together(configs: Sequence[TrainConfig], shared: Shared, label: str) -> list[Outcome]:
    """Train all that have not come to their end, on one pass over the stream they share; what all came to.

    The configurations differ in `sae`, `out`, `optimizer` and `init_seed` only. Each ends bit for bit (on a CPU) as if trained
    alone. Members that were stopped at different iterations go on together: the stream starts where the first of them is,
    and the others wait. One whose loss stops being finite leaves; the others go on. On Ctrl-C saves all, then raises
    KeyboardInterrupt. Raises CheckpointError: a folder holds another run.
    """
    for config in configs:
        refuse_foreign(config.out, [CONFIG, LOG, STATE, COST])
        refuse_other_run(config, shared.store)
    missing = [config for config in configs if read_outcome(config.out) is None]
    if missing:
        log(f"{label}: {len(missing)} of {len(configs)} to train")
        with torch.random.fork_rng(["cuda"] if shared.device.type == "cuda" else []):
            torch.manual_seed(missing[0].seed)
            _train(missing, shared, label)
    return [_find(config) for config in configs]


def _find(config: TrainConfig) -> Outcome:
    outcome = read_outcome(config.out)
    assert outcome is not None, config.out
    return outcome


def _train(configs: Sequence[TrainConfig], shared: Shared, label: str) -> None:
    stream = open_stream(configs[0], shared.store, shared.device)
    with contextlib.closing(stream), contextlib.ExitStack() as logs:
        members, first = _start(configs, shared, stream, logs)
        _pass(members, first, shared, stream, label)


def _start(
    configs: Sequence[TrainConfig], shared: Shared, stream: ActivationStream, logs: contextlib.ExitStack
) -> tuple[list[Member], int]:
    """The members at the iterations they had come to, and the least of these, where the stream now stands."""
    at_start = stream.state_dict()
    started: list[tuple[Member, dict[str, Any]]] = []
    for config in configs:
        member = Member(config, shared, stream)
        logs.callback(member.close)
        # A member that goes on has put the stream where it was itself.
        started.append((member, stream.state_dict() if member.done else at_start))
    slowest, position = min(started, key=lambda pair: pair[0].done)
    stream.load_state_dict(position)
    return [member for member, _ in started], slowest.done


def _pass(members: Sequence[Member], first: int, shared: Shared, stream: ActivationStream, label: str) -> None:
    left = list(members)
    n_iterations = max(member.n_iterations for member in members)
    batch_size = members[0].config.stream.batch_size
    with (
        progress(label, batch_size * n_iterations, "rows") as advance,
        contextlib.closing(_read(stream)) as batches,
        defer_interrupts() as is_interrupted,
    ):
        advance(batch_size * first)
        for number, batch in enumerate(batches, first):
            x = shared.normalizer.normalize(batch.x, batch.group)
            at_work = [member for member in left if member.done == number]
            for member in at_work:
                member.step(x)
            left = [member for member in left if not member.is_over]
            advance(batch.x.shape[0], members=float(len(left)))
            if not left:
                return
            if is_interrupted():
                for member in at_work:
                    if not member.is_over:
                        member.save()
                raise KeyboardInterrupt


def _read(stream: ActivationStream) -> Generator[StreamBatch, None, None]:
    yield from stream
