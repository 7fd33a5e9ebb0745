"""Training sees every row once per epoch, well mixed, never a held-out record, and always the same sequence."""

import itertools
import shutil
import threading

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from thresher.data import pool
from thresher.data.store import Batch, HookPointSpec, Item, Rows, StoreWriter, open_store
from thresher.data.stream import ActivationStream, StreamConfig, held_out, read_held_out, share_out
from thresher.errors import CheckpointError, ConfigError, StoreError

N_RECORDS, BATCH_RECORDS = 800, 50
TOKENS = 9
HOOK_POINTS = (
    HookPointSpec("vision.1", "image", "image.tokens", 2, "float32"),
    HookPointSpec("vision.embed", "image", "image.items", 2, "float32"),
    HookPointSpec("text.embed", "text", "text.items", 2, "float32"),
    HookPointSpec("text.half", "text", "text.items", 2, "bfloat16"),
    HookPointSpec("text.wide", "text", "text.items", 3, "float32"),
)
CPU = torch.device("cpu")


def make_batch(index):
    """Activations say where they are: [row in the store, record]. Two captions per image."""
    records = range(index * BATCH_RECORDS, (index + 1) * BATCH_RECORDS)
    items = {
        "image": [Item(f"{r}", r, "ok", None, None, ()) for r in records],
        "text": [Item(f"{r}#{j}", r, "ok", "caption", None, ()) for r in records for j in range(2)],
    }
    pairs = [(i, 2 * i + j) for i in range(BATCH_RECORDS) for j in range(2)]
    rows = {space: make_rows(space, items, index) for space in ("image.tokens", "image.items", "text.items")}
    return Batch(index, items, pairs, rows)


def make_rows(space, items, index):
    of_modality = items["image" if space.startswith("image") else "text"]
    item = torch.arange(len(of_modality)).repeat_interleave(TOKENS if space == "image.tokens" else 1)
    n = len(item)
    record = torch.tensor([of_modality[i].record for i in item.tolist()])
    x = torch.stack([torch.arange(n) + index * n, record, torch.zeros(n, dtype=torch.int64)], dim=1).float()
    activations = {spec.name: x[:, : spec.width].to(getattr(torch, spec.dtype)) for spec in HOOK_POINTS if spec.space == space}
    return Rows(item, torch.zeros(n).int(), None, activations)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("stream") / "store"
    with StoreWriter(path, {"of": "a stream"}, HOOK_POINTS, (), items_per_shard=300) as writer:
        for index in range(N_RECORDS // BATCH_RECORDS):
            writer.write(make_batch(index))
        writer.finish()
    return open_store(path)


def open_stream(store, *hook_points, batch_size=64, holdout=0.0, seed=0, pool_rows=10**6, balance="rows"):
    return ActivationStream(
        store, hook_points, batch_size=batch_size, holdout=holdout, seed=seed, pool_rows=pool_rows, balance=balance, device=CPU
    )


def take(stream, n_batches):
    iterator = iter(stream)
    batches = list(itertools.islice(iterator, n_batches))
    iterator.close()
    return batches


POOLS = pytest.mark.parametrize("pool_rows", [10**6, 3000, 700], ids=["in memory", "pools", "small pools"])


@POOLS
@pytest.mark.parametrize("holdout", [0.0, 0.3])
def test_an_epoch_has_every_training_row_once_and_no_other(store, pool_rows, holdout):
    stream = open_stream(store, "vision.1", holdout=holdout, pool_rows=pool_rows, batch_size=1)
    n = stream.n_rows
    stream = open_stream(store, "vision.1", holdout=holdout, pool_rows=pool_rows, batch_size=n)
    training = np.flatnonzero(~held_out(store, "image", holdout, 0)[store.item_of("vision.1")])
    epochs = [batch.x[:, 0].long() for batch in take(stream, 3)]
    for rows in epochs:
        assert torch.equal(rows.sort().values, torch.from_numpy(training))
    assert not torch.equal(epochs[0], epochs[1])
    assert stream.epoch == 3


@POOLS
def test_place_in_the_file_says_nothing_about_place_in_the_epoch(store, pool_rows):
    """Spearman's rank correlation is the plain one of ranks, and both are ranks already. Under a uniform shuffle of m
    independent pieces it has standard deviation 1 / sqrt(m - 1); runs of neighbouring rows are the pieces here."""
    stream = open_stream(store, "vision.1", pool_rows=pool_rows, batch_size=N_RECORDS * TOKENS)
    pieces = N_RECORDS * TOKENS if pool_rows > N_RECORDS * TOKENS else N_RECORDS * TOKENS / max(1, pool_rows // 128)
    correlations = [np.corrcoef(batch.x[:, 0].numpy(), np.arange(N_RECORDS * TOKENS))[0, 1] for batch in take(stream, 5)]
    assert max(map(abs, correlations)) < 4 / np.sqrt(pieces - 1)
    assert abs(np.mean(correlations)) < 4 / np.sqrt(5 * (pieces - 1))


@pytest.mark.parametrize(("pool_rows", "bound"), [(10**6, 1.1), (5000, 2.0), (3000, 2.6), (1200, 4.2)])
def test_neighbours_in_the_file_are_strangers_in_a_batch(store, pool_rows, bound):
    """How many other rows of its item a row meets, in units of what a uniform shuffle gives: at most the rows of the store
    per row of the pool, and a little for the ends of an epoch, where the pool is half full."""
    stream = open_stream(store, "vision.1", pool_rows=pool_rows, batch_size=100)
    mates = []
    for batch in take(stream, N_RECORDS * TOKENS // 100):
        counts = batch.x[:, 1].unique(return_counts=True)[1]
        mates.append(float((counts * (counts - 1)).sum()) / 100)
    by_chance = 99 * (TOKENS - 1) / (N_RECORDS * TOKENS - 1)
    assert np.mean(mates) < bound * by_chance


def test_the_sequence_does_not_depend_on_the_number_of_reading_threads(store, monkeypatch):
    streamed = []
    for readers in (1, 7):
        monkeypatch.setattr(pool, "READERS", readers)
        stream = open_stream(store, "vision.1", pool_rows=2000, batch_size=500, holdout=0.2)
        streamed.append(torch.cat([batch.x for batch in take(stream, 12)]))
        stream.close()
    assert torch.equal(*streamed)


def test_a_batch_that_is_kept_is_never_overwritten(store):
    stream = open_stream(store, "vision.1", pool_rows=3000, batch_size=50)
    kept = [(view := batch.x[::7, 1:].T, view.clone()) for batch in take(stream, 60)]
    take(stream, 60)
    assert all(torch.equal(view, copy) for view, copy in kept)


@POOLS
@pytest.mark.parametrize("balance", ["equal", "rows"])
def test_the_sequence_is_the_same_again_and_goes_on_from_a_saved_position(store, pool_rows, balance):
    def fresh():
        return open_stream(store, "vision.1", "text.embed", holdout=0.1, pool_rows=pool_rows, balance=balance, batch_size=333)

    stream = fresh()
    first = take(stream, 7)
    saved = stream.state_dict()
    rest = take(stream, 9)
    again, resumed = fresh(), fresh()
    resumed.load_state_dict(saved)
    for expected, found in zip(first + rest, take(again, 7) + take(again, 9), strict=True):
        assert torch.equal(expected.x, found.x)
        assert torch.equal(expected.group, found.group)
    for expected, found in zip(rest, take(resumed, 9), strict=True):
        assert torch.equal(expected.x, found.x)
    assert resumed.epoch == stream.epoch


def test_a_position_counts_what_was_handed_out_not_what_was_read_ahead(store):
    stream = open_stream(store, "text.embed", batch_size=10)
    iterator = iter(stream)
    next(iterator)
    next(iterator)
    assert stream.state_dict()["taken"] == [20]
    iterator.close()


def test_equal_balance_gives_each_hook_point_as_many_rows_and_alternates_the_remainder(store):
    stream = open_stream(store, "vision.1", "vision.embed", "text.embed", balance="equal", batch_size=64)
    counts = torch.stack([batch.group.bincount(minlength=3) for batch in take(stream, 30)])
    assert counts.min() == 21
    assert counts.max() == 22
    assert counts.sum(dim=0).tolist() == [640, 640, 640]


def test_balance_by_rows_finishes_all_hook_points_together(store):
    stream = open_stream(store, "vision.1", "vision.embed", "text.embed", balance="rows", batch_size=stream_rows(store) // 4)
    (epoch,) = [torch.cat([batch.group for batch in take(stream, 4)])]
    assert epoch.bincount().tolist() == [N_RECORDS * TOKENS, N_RECORDS, 2 * N_RECORDS]


def stream_rows(store):
    return sum(store.rows(name) for name in ("vision.1", "vision.embed", "text.embed"))


def test_groups_name_the_hook_point_of_each_row(store):
    for batch in take(open_stream(store, "text.embed", "vision.embed", balance="equal", batch_size=50), 5):
        assert batch.x.dtype == torch.float32
        assert batch.group.tolist() == [0] * 25 + [1] * 25
        rows = batch.x[:, 0].long().numpy()
        records = np.where(batch.group.numpy() == 0, rows // 2, rows)
        assert batch.x[:, 1].long().tolist() == records.tolist()


def test_hook_points_of_different_dtypes_are_mixed_in_float32(store):
    (batch,) = take(open_stream(store, "text.embed", "text.half", batch_size=2 * N_RECORDS, balance="equal"), 1)
    half = batch.x[batch.group == 1]
    assert batch.x.dtype == torch.float32
    assert torch.equal(half, half.bfloat16().float())
    assert len(half) == N_RECORDS


def test_seeds_give_different_orders_and_holdouts(store):
    first, second = (take(open_stream(store, "text.embed", seed=seed), 1)[0].x for seed in (0, 1))
    assert not torch.equal(first, second)
    assert (held_out(store, "image", 0.5, 0) != held_out(store, "image", 0.5, 1)).any()


@given(fraction=st.floats(0, 1), seed=st.integers(0, 2**63))
@settings(deadline=None, max_examples=30)
def test_held_out_is_by_record_and_about_as_many_as_asked_for(store, fraction, seed):
    image, text = (held_out(store, modality, fraction, seed) for modality in ("image", "text"))
    assert (np.repeat(image, 2) == text).all()
    assert abs(image.mean() - fraction) < 5 * np.sqrt(0.25 / N_RECORDS)
    assert (held_out(store, "image", fraction / 2, seed) <= image).all()


def test_training_and_held_out_rows_part_the_store(store):
    stream = open_stream(store, "vision.1", holdout=0.25, seed=5, batch_size=1000)
    seen = torch.cat([batch.x[:, 1] for batch in take(stream, 8)]).unique()
    x, items = read_held_out(store, "vision.1", fraction=0.25, seed=5, limit=None)
    held = x[:, 1].unique()
    assert len(x) + stream.n_rows == store.rows("vision.1")
    assert len(np.intersect1d(seen, held)) == 0
    assert len(seen) + len(held) == N_RECORDS
    np.testing.assert_array_equal(items, x[:, 1].long())


def test_a_limit_chooses_held_out_rows_at_random_but_the_same_again(store):
    everything, _ = read_held_out(store, "vision.1", fraction=0.5, seed=1, limit=None)
    some, items = read_held_out(store, "vision.1", fraction=0.5, seed=1, limit=100)
    again, _ = read_held_out(store, "vision.1", fraction=0.5, seed=1, limit=100)
    assert torch.equal(some, again)
    assert np.isin(some[:, 0], everything[:, 0]).all()
    assert len(some) == len(items) == 100
    assert some[:, 0].max() > everything[:, 0].median()


@given(
    n=st.integers(1, 50),
    weights=st.lists(st.integers(1, 1000), min_size=1, max_size=6),
    calls=st.integers(1, 40),
)
@settings(deadline=None, max_examples=100)
def test_shares_add_up_and_stay_within_two_rows_of_the_exact_proportion(n, weights, calls):
    credit, totals = [0] * len(weights), np.zeros(len(weights))
    for call in range(1, calls + 1):
        counts, credit = share_out(n, weights, credit)
        assert sum(counts) == n
        assert min(counts) >= 0
        totals += counts
        assert np.abs(totals - call * n * np.array(weights) / sum(weights)).max() < 2
    assert sum(credit) == 0


def test_iterators_leave_no_threads_behind(store):
    before = set(threading.enumerate())
    for batches in (0, 1, 7):
        stream = open_stream(store, "vision.1", pool_rows=500)
        take(stream, batches)
        stream.close()
    assert set(threading.enumerate()) <= before


def test_an_error_of_the_disk_reaches_the_trainer(store, tmp_path):
    copied = shutil.copytree(store.path, tmp_path / "store")
    stream = open_stream(open_store(copied), "vision.1", pool_rows=500)
    shutil.rmtree(copied / "acts.zarr/layers/vision.1/activations/c")
    with pytest.raises(StoreError, match="cannot be read"):
        take(stream, 1)
    stream.close()


def test_a_position_of_other_settings_is_refused_and_named(store):
    state = open_stream(store, "vision.1").state_dict()
    with pytest.raises(CheckpointError, match="batch_size: saved 64, now 32; seed: saved 0, now 1"):
        open_stream(store, "vision.1", batch_size=32, seed=1).load_state_dict(state)


@pytest.mark.parametrize(
    ("hook_points", "settings", "message"),
    [
        (["vision.9"], {}, "no hook point 'vision.9'; the store has vision.1"),
        (["vision.1", "text.wide"], {}, "vision.1 has 2, text.wide has 3"),
        ([], {}, "give at least one"),
        (["vision.1"], {"holdout": 1.0}, "holdout=1.0: give a fraction"),
        (["vision.1"], {"batch_size": 0}, "batch_size=0"),
        (["vision.1"], {"pool_rows": 0}, "pool_rows=0"),
        (["vision.1"], {"holdout": 0.9999999}, "none of its 7200 rows is left for training"),
    ],
)
def test_what_cannot_be_streamed_is_refused_and_named(store, hook_points, settings, message):
    with pytest.raises((ConfigError, StoreError), match=message):
        open_stream(store, *hook_points, **settings)


def test_no_held_out_rows_is_an_error_that_says_what_to_do(store):
    with pytest.raises(StoreError, match="harvest more records or hold out more"):
        read_held_out(store, "vision.1", fraction=0.0, seed=0, limit=None)


def test_the_defaults_are_valid():
    assert StreamConfig().holdout == 0.05


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gets_the_same_batches(store):
    on_cpu = take(open_stream(store, "vision.1", "text.half", batch_size=100), 20)
    stream = ActivationStream(
        store,
        ["vision.1", "text.half"],
        batch_size=100,
        holdout=0.0,
        seed=0,
        pool_rows=10**6,
        balance="rows",
        device=torch.device("cuda"),
    )
    for expected, found in zip(on_cpu, take(stream, 20), strict=True):
        assert found.x.is_cuda
        assert torch.equal(found.x.cpu(), expected.x)
        assert torch.equal(found.group.cpu(), expected.group)
