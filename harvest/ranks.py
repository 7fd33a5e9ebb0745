"""A harvest by several processes: rows are counted first, then each process writes its own blocks of one store."""

import itertools
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from thresher.data.store import Batch, BatchCount, CountLedger, Share, StoreWriter
from thresher.harvest.forward import Reader, count_rows
from thresher.harvest.prepare import Prepared, Preparer, prepare_ahead
from thresher.harvest.settings import HarvestConfig
from thresher.progress import progress
from thresher.team import Team


class Work(NamedTuple):
    """What a process harvests with."""

    config: HarvestConfig
    reader: Reader
    prepare: Preparer
    spaces: Sequence[str]
    """The row spaces of its hook points."""


OpenWriter = Callable[[Share | None], StoreWriter]
"""Opens the store of this harvest, as a whole or for a share."""


@contextmanager
def write_share(team: Team, work: Work, open_writer: OpenWriter) -> Generator[StoreWriter, None, None]:
    """The writer of this process for its share of the store, which is complete after the block in all processes.

    Each process gets blocks that lie together, so that it computes at most about a block more than its part. The store is
    the one that a single process writes, to the last byte. Until it is complete, readers see what lies before the first
    block that is missing.
    """
    with _lead(team, work, open_writer) as lead:
        ledger = CountLedger(work.config.out, work.prepare.n_batches)
        _count(team, work, ledger)
        team.wait()
        with open_writer(Share(team.rank, team.n_ranks, ledger.read())) as writer:
            # Each looks at what is committed before any of them commits.
            team.wait()
            yield writer
        team.wait()
        if lead is not None:
            lead.conclude()
    team.wait()


@contextmanager
def _lead(team: Team, work: Work, open_writer: OpenWriter) -> Generator[StoreWriter | None, None, None]:
    """The store made and opened for all by the first process, which gets its writer; the others None."""
    if not team.is_first:
        team.agree(lambda: None)
        yield None
        return
    writer: StoreWriter | None = None

    def found() -> None:
        nonlocal writer
        writer = open_writer(None)
        if not writer.is_planned:
            writer.plan(_read_first(work))
        writer.admit()

    try:
        team.agree(found)
        yield writer
    finally:
        if writer is not None:
            writer.__exit__(None, None, None)


def _read_first(work: Work) -> Batch:
    return next(work.reader.read(prepare_ahead(work.prepare, [0], 1)))


def _count(team: Team, work: Work, ledger: CountLedger) -> None:
    """Count this process's part of the batches that nobody has counted yet."""
    missing = team.agree(ledger.missing)
    first, stop = (len(missing) * rank // team.n_ranks for rank in (team.rank, team.rank + 1))
    parts = missing[first:stop]
    batches = [batch for part in parts for batch in ledger.batches(part)]
    with progress(f"count rows{team.label}", len(batches), "batches") as advance:
        counts = _count_batches(work, batches)
        for part in parts:
            found = list(itertools.islice(counts, len(ledger.batches(part))))
            ledger.write(part, found)
            advance(len(found))


def _count_batches(work: Work, batches: Sequence[int]) -> Iterator[BatchCount]:
    """Without the model, unless its values decide which rows are kept."""
    prepared = prepare_ahead(work.prepare.skip_thumbnails(), batches, work.config.workers)
    outliers = work.config.outliers
    if work.config.on_nonfinite == "drop" or (outliers is not None and outliers.action == "drop"):
        return _count_computed(work, prepared)
    return (_count_prepared(work, one) for one in prepared)


def _count_prepared(work: Work, prepared: Prepared) -> BatchCount:
    items = {modality: len(found) for modality, found in prepared.items.items()}
    return BatchCount({space: count_rows(prepared, space) for space in work.spaces}, dict(items))


def _count_computed(work: Work, prepared: Iterable[Prepared]) -> Iterator[BatchCount]:
    for batch in work.reader.read(prepared):
        rows = {space: len(found.item) for space, found in batch.rows.items()}
        yield BatchCount(rows, {modality: len(found) for modality, found in batch.items.items()})
