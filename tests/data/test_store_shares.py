"""A store that several write together is the store that one would have written, to the last byte."""

import contextlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thresher.data.store import BatchCount, CountLedger, Share, StoreWriter, open_store, verify_store
from thresher.errors import StoreError
from thresher.testing.store import CONCEPTS, HOOK_POINTS, IDENTITY, expected_rows, make_batch, tree, write_store


def open_writer(path: Path, items_per_shard: int = 12, share: Share | None = None) -> StoreWriter:
    return StoreWriter(path, IDENTITY, HOOK_POINTS, CONCEPTS, items_per_shard=items_per_shard, share=share)


def count(index: int) -> BatchCount:
    batch = make_batch(index)
    items = {modality: len(found) for modality, found in batch.items.items()}
    return BatchCount({space: len(rows.item) for space, rows in batch.rows.items()}, items)


def write_together(
    path: Path, n_batches: int, n_ranks: int, *, items_per_shard: int = 12, stop_after: dict[int, int] | None = None
) -> list[list[int]]:
    """Write as `n_ranks` writers do, one after the other; a rank in `stop_after` ends after so many batches and no rank
    concludes. Gives the batches that each one wrote."""
    with contextlib.ExitStack() as stack:
        lead = stack.enter_context(open_writer(path, items_per_shard))
        if not lead.is_planned:
            lead.plan(make_batch(0))
        lead.admit()
        ledger = CountLedger(path, n_batches)
        for part in reversed(ledger.missing()):
            ledger.write(part, [count(index) for index in ledger.batches(part)])
        shares = [Share(rank, n_ranks, ledger.read()) for rank in range(n_ranks)]
        writers = [stack.enter_context(open_writer(path, items_per_shard, share)) for share in shares]
        written: list[list[int]] = []
        for rank, writer in reversed(list(enumerate(writers))):
            written.insert(0, writer.missing(n_batches))
            limit = (stop_after or {}).get(rank)
            for index in written[0][:limit]:
                writer.write(make_batch(index))
            if limit is None:
                writer.finish()
        if stop_after is None:
            lead.conclude()
        return written


def read_prefix(path: Path, n_batches: int) -> None:
    """What a reader sees of an unfinished store is right."""
    store = open_store(path, incomplete="prefix")
    for name in store.hook_points:
        rows = store.rows(name)
        assert store.read(name, 0, rows).equal(expected_rows(name, n_batches)[:rows])


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Stores of one writer by number of batches and items per shard."""
    known: dict[tuple[int, int], dict[str, bytes]] = {}

    def make(n_batches: int, items_per_shard: int) -> dict[str, bytes]:
        if (n_batches, items_per_shard) not in known:
            path = tmp_path_factory.mktemp("alone") / "store"
            with open_writer(path, items_per_shard) as writer:
                write_store(writer, n_batches)
            known[n_batches, items_per_shard] = tree(path)
        return known[n_batches, items_per_shard]

    return make


@given(n_ranks=st.integers(1, 5), n_batches=st.integers(1, 9), items_per_shard=st.sampled_from([1, 4, 7, 12, 100]))
@settings(max_examples=6, deadline=None)
def test_the_number_of_writers_decides_nothing(
    alone: Any, tmp_path_factory: pytest.TempPathFactory, n_ranks: int, n_batches: int, items_per_shard: int
) -> None:
    path = tmp_path_factory.mktemp("together") / "store"
    write_together(path, n_batches, n_ranks, items_per_shard=items_per_shard)
    assert tree(path) == alone(n_batches, items_per_shard)


@given(data=st.data(), n_ranks=st.integers(2, 4), n_then=st.integers(1, 4))
@settings(max_examples=6, deadline=None)
def test_what_some_writers_left_any_number_of_others_finishes(
    alone: Any, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, n_ranks: int, n_then: int
) -> None:
    path = tmp_path_factory.mktemp("stopped") / "store"
    ranks = data.draw(st.sets(st.integers(0, n_ranks - 1), min_size=1))
    write_together(path, 9, n_ranks, items_per_shard=7, stop_after={rank: data.draw(st.integers(0, 5)) for rank in ranks})
    with pytest.raises(StoreError, match="unfinished"):
        open_store(path)
    read_prefix(path, 9)
    if n_then > 1:
        write_together(path, 9, n_then, items_per_shard=7)
    else:
        with open_writer(path, 7) as writer:
            for index in writer.missing(9):
                writer.write(make_batch(index))
            writer.finish()
    assert tree(path) == alone(9, 7)
    assert verify_store(path, level="checksums") == []


def test_each_writer_has_about_its_part_of_the_batches(tmp_path: Path) -> None:
    written = write_together(tmp_path / "store", 40, 4, items_per_shard=6)
    assert {index for batches in written for index in batches} == set(range(40))
    assert max(map(len, written)) <= 10 + 2


def test_nobody_else_writes_while_one_of_them_lives(tmp_path: Path) -> None:
    path = tmp_path / "store"
    refused = pytest.raises(StoreError, match="another harvest is writing this store")
    with open_writer(path) as lead:
        lead.plan(make_batch(0))
        ledger = CountLedger(path, 1)
        ledger.write(0, [count(0)])
        share = Share(0, 2, ledger.read())
        with refused:
            open_writer(path, share=share)
        lead.admit()
        other = open_writer(path, share=share)
    with refused:
        open_writer(path)
    with other:
        pass
    with open_writer(path) as writer:
        write_store(writer, 1)


def test_batches_that_are_not_as_counted_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with open_writer(path) as lead:
        lead.plan(make_batch(0))
        lead.admit()
        ledger = CountLedger(path, 4)
        for part in ledger.missing():
            ledger.write(part, [count(index + 1) for index in ledger.batches(part)])
        share = Share(0, 1, ledger.read())
        with pytest.raises(StoreError, match="counted were"), open_writer(path, share=share) as writer:
            for index in writer.missing(4):
                writer.write(make_batch(index))
            writer.finish()


def test_counts_of_an_unfinished_store_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "store"
    write_together(path, 9, 2, items_per_shard=7, stop_after={0: 1, 1: 1})
    assert CountLedger(path, 9).missing() == []
    (path / "counts/00000001.json").write_text("{")
    with pytest.raises(StoreError, match=r"00000001\.json: no counts of batches"):
        CountLedger(path, 9).read()
