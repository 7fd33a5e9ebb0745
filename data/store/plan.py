"""What every commit of a store will say, from the counts of its batches, and which of them each of several writers makes."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from thresher.data.store.commits import START, UNKNOWN, Commit, Cursor
from thresher.data.store.counts import Counts
from thresher.data.store.layout import MODALITIES, TABLES, Layout
from thresher.data.store.recovery import Blocks, Committed
from thresher.errors import StoreError

Plan = Mapping[str, Sequence[Commit]]
"""Row space or tables -> its commit records in order, without their files."""


class Share(NamedTuple):
    """The part of a store that one of several writers makes."""

    rank: int
    """Which of them, from 0."""
    n_ranks: int
    counts: Counts
    """What the batches hold, the same for all of them."""


class _Ends(NamedTuple):
    """How much there is before each batch, and in the end."""

    rows: Mapping[str, npt.NDArray[np.int64]]
    """Row space -> [batch + 1]."""
    items: Mapping[str, npt.NDArray[np.int64]]
    """Modality -> [batch + 1]."""

    def locate(self, batch: int, n_rows: int = 0) -> Cursor:
        """The place after so many rows of a batch."""
        return Cursor(batch, n_rows, {modality: int(ends[batch]) for modality, ends in self.items.items()})


def plan_commits(layout: Layout, counts: Counts) -> Plan:
    """The commit records that a single writer would leave, but for their files."""
    ends = _Ends(
        {space: _cumulate(counts.rows[space]) for space in layout.shard_rows},
        {modality: _cumulate(counts.items[modality]) for modality in MODALITIES},
    )
    plan = {space: list(_plan_space(space, size, ends)) for space, size in layout.shard_rows.items()}
    return plan | {TABLES: list(_plan_tables(layout, ends))}


def share_out(plan: Plan, committed: Committed, share: Share) -> Committed:
    """The store as one writer sees it: what others make counts as stored, its own blocks are to be made as planned.

    The batches of which something is missing are cut into stretches of equal length, one for each writer, who makes the
    blocks that begin in his. Follows from the arguments alone. Raises StoreError when something is committed otherwise.
    """
    starts = {space: [START, *(commit.cursor for commit in commits)] for space, commits in plan.items()}
    missing: dict[str, list[int]] = {}
    for space, commits in plan.items():
        _check(space, commits, committed.sequences[space])
        missing[space] = [commit.block for commit in commits if commit.block not in committed.sequences[space].records]
    first, stop = _cut([(starts[s][b], plan[s][b].cursor) for s, blocks in missing.items() for b in blocks], share)
    own = {space: [b for b in blocks if first <= starts[space][b].batch < stop] for space, blocks in missing.items()}
    seen = {space: _see(plan[space], committed.sequences[space], own[space]) for space in plan}
    return Committed(seen, is_in_order=False)


def _plan_space(space: str, size: int, ends: _Ends) -> Iterator[Commit]:
    rows, n_batches = ends.rows[space], len(ends.rows[space]) - 1
    total = int(rows[-1])
    for block, end in enumerate(range(size, total + 1, size)):
        # The batch that has the last row of the block.
        batch = int(np.searchsorted(rows[1:], end))
        is_whole = int(rows[batch + 1]) == end
        cursor = ends.locate(batch + 1) if is_whole else ends.locate(batch, end - int(rows[batch]))
        yield Commit(block, size, end, {}, cursor, final=False, idle=())
    yield Commit(total // size, total % size, total, {}, ends.locate(n_batches), final=True, idle=())


def _plan_tables(layout: Layout, ends: _Ends) -> Iterator[Commit]:
    items, size = np.sum(list(ends.items.values()), axis=0), layout.batches_per_part
    n_batches = len(items) - 1
    for part in range(n_batches // size):
        start, end = part * size, (part + 1) * size
        idle = [space for space, rows in layout.shard_rows.items() if int(ends.rows[space][end]) % rows == 0]
        yield Commit(part, int(items[end] - items[start]), int(items[end]), {}, ends.locate(end), final=False, idle=idle)
    start, idle = n_batches // size * size, list(layout.shard_rows)
    yield Commit(
        n_batches // size, int(items[-1] - items[start]), int(items[-1]), {}, ends.locate(n_batches), final=True, idle=idle
    )


def _see(commits: Sequence[Commit], stored: Blocks, own: Sequence[int]) -> Blocks:
    """One sequence with the blocks `own` to be made, as they were before a repair where that is known."""
    before = {block: stored.redo[block] for block in own if block in stored.redo and stored.redo[block].rows_end != UNKNOWN}
    redo = {block: commits[block] for block in own} | before
    records = {commit.block: commit for commit in commits if commit.block not in redo}
    return Blocks(records | dict(stored.records), redo)


def _check(space: str, commits: Sequence[Commit], stored: Blocks) -> None:
    for block, commit in stored.records.items():
        if block >= len(commits) or (commit.rows_end, commit.cursor) != (commits[block].rows_end, commits[block].cursor):
            raise StoreError(
                f"{space} block {block}: ends at row {commit.rows_end}, which is not what the batches were counted to hold; "
                "the input or the model has changed since: harvest into another `out`"
            )


def _cut(stretches: Sequence[tuple[Cursor, Cursor]], share: Share) -> tuple[float, float]:
    """The batches [first, stop) of one writer, such that each has as many batches that some stretch needs."""
    needed = np.zeros(len(share.counts.items["image"]), np.bool_)
    for start, stop in stretches:
        needed[start.batch : stop.batch + (stop.rows > 0)] = True
    batches = np.flatnonzero(needed)
    places = [len(batches) * rank // share.n_ranks for rank in (share.rank, share.rank + 1)]
    first, stop = (float(batches[place]) if place < len(batches) else np.inf for place in places)
    return 0.0 if share.rank == 0 else first, np.inf if share.rank == share.n_ranks - 1 else stop


def _cumulate(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
