"""Training straight from a model: harvest and trainer side by side, joined by a pool in memory."""

import math
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import torch

from thresher.data.memory import MemoryStore
from thresher.data.origins import find_width
from thresher.data.records import Modality, Source
from thresher.data.store import Batch, HookPointSpec, Item
from thresher.errors import ConfigError
from thresher.harvest.run import Harvest, open_harvest
from thresher.online.config import OnlineConfig
from thresher.online.live import LiveStream
from thresher.online.sequence import RowSequence, reduce_weights
from thresher.progress import log
from thresher.ranks import count_ranks
from thresher.team import Team
from thresher.train.run import is_done, run_on

__all__ = ["OnlineConfig", "run"]

ALONE = Team(0, 1, None)
"""One process."""


class _Beginning(NamedTuple):
    """The first rows of a harvest."""

    store: MemoryStore
    batches: Sequence[Batch]
    """They share memory with the store."""
    is_whole: bool
    """Whether that is the whole harvest."""


def run(config: OnlineConfig, *, source: Source | None = None) -> Path:
    """Train as configured and return the folder of the checkpoint, which names model and source in place of a store.

    When all rows fit into `train.stream.pool_rows` the result is, to the last bit, that of a training on the store that
    `harvest` would write. Else normaliser and evaluations use the first `pool_rows` rows, and training goes through all in
    the order of the harvest, mixed in a pool. A run that was killed harvests the first rows again and goes on, bit for bit
    on a CPU. `source` gives the records where `harvest.source` is `in-memory`. Raises what harvest and training raise.
    """
    if count_ranks() > 1:
        raise ConfigError("training straight from a model is one process; for several harvest to a store first")
    with open_harvest(config.harvest, source=source) as harvest:
        train = config.train
        specs = _find_specs(harvest, train.hook_points)
        if is_done(train, MemoryStore(_name(harvest), harvest.identity, specs, [])):
            return train.out
        beginning = _begin(harvest, specs, train.stream.pool_rows)
        if beginning.is_whole:
            log(f"online: all {_count(beginning)} rows are in memory")
            return run_on(train, beginning.store, ALONE)
        if train.rows is None:
            raise ConfigError(
                f"train.rows: the harvest has more rows than stream.pool_rows={train.stream.pool_rows}, so nobody knows how "
                "many an epoch has: give the budget in rows, or more pool_rows"
            )
        log(f"online: {_count(beginning)} rows are in memory, the harvest goes on beside the training")
        return run_on(train, beginning.store, ALONE, lambda device: _open_stream(config, harvest, specs, beginning, device))


def _find_specs(harvest: Harvest, hook_points: Sequence[str]) -> list[HookPointSpec]:
    known = {spec.name: spec for spec in harvest.specs}
    for name in hook_points:
        if name not in known:
            raise ConfigError(f"train.hook_points: {name!r} is none of harvest.hook_points ({', '.join(known)}); mend either")
    return [known[name] for name in hook_points]


def _begin(harvest: Harvest, specs: Sequence[HookPointSpec], pool_rows: int) -> _Beginning:
    """Harvest until all is there, or more than `pool_rows` rows."""
    batches: list[Batch] = []
    n_rows = 0
    with closing(harvest.read(range(harvest.n_batches))) as made:
        for batch in made:
            batches.append(_leave_out(batch, specs))
            n_rows += sum(len(values) for rows in batches[-1].rows.values() for values in rows.activations.values())
            if n_rows > pool_rows:
                break
    store = MemoryStore(_name(harvest), harvest.identity, specs, batches)
    return _Beginning(store, _share_memory(batches, store), n_rows <= pool_rows)


def _leave_out(batch: Batch, specs: Sequence[HookPointSpec]) -> Batch:
    """A batch without the rows that are not trained on, and without thumbnails."""
    rows = {
        spec.space: batch.rows[spec.space]._replace(
            activations={each.name: batch.rows[spec.space].activations[each.name] for each in specs if each.space == spec.space}
        )
        for spec in specs
        if spec.space in batch.rows
    }
    items: dict[Modality, list[Item]]
    items = {name: [item._replace(thumbnail=None) for item in found] for name, found in batch.items.items()}
    return Batch(batch.index, items, batch.pairs, rows)


def _share_memory(batches: Sequence[Batch], store: MemoryStore) -> list[Batch]:
    """The same batches with rows that lie in the store, so that they are in memory once."""
    shared: list[Batch] = []
    first = dict.fromkeys(store.hook_points, 0)
    for batch in batches:
        rows = dict(batch.rows)
        for space, found in batch.rows.items():
            values = {name: store.read(name, first[name], first[name] + len(x)) for name, x in found.activations.items()}
            first |= {name: first[name] + len(x) for name, x in values.items()}
            rows[space] = found._replace(activations=values)
        shared.append(Batch(batch.index, batch.items, batch.pairs, rows))
    return shared


def _open_stream(
    config: OnlineConfig, harvest: Harvest, specs: Sequence[HookPointSpec], beginning: _Beginning, device: torch.device
) -> LiveStream:
    train, settings = config.train, config.train.stream
    weights = None
    if settings.weights or settings.balance == "equal":
        weights = reduce_weights(settings.weights, train.hook_points)
    sequence = RowSequence(harvest, specs, beginning.batches, weights=weights, holdout=settings.holdout, seed=train.seed)
    rows_per_batch = _count(beginning) / len(beginning.batches)
    ahead = max(2, math.ceil(settings.pool_rows / 64 / rows_per_batch))
    return LiveStream(
        sequence.read,
        find_width(beginning.store, train.hook_points),
        batch_size=settings.batch_size,
        pool_rows=settings.pool_rows,
        seed=train.seed,
        ahead=ahead,
        device=device,
    )


def _count(beginning: _Beginning) -> int:
    return sum(beginning.store.rows(name) for name in beginning.store.hook_points)


def _name(harvest: Harvest) -> str:
    model = harvest.identity["model"]
    return f"the harvest of {model.get('name', 'a model')}"
