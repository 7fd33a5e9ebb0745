"""Laws of several stores that are read as one: nothing lost, no item on both sides of the split, rows by weight."""

import itertools

import numpy as np
import pytest
import torch

from thresher.data.holdout import held_out, read_held_out
from thresher.data.mixing import to_integers, weigh, weigh_parts
from thresher.data.mixture import Mixture, open_stores
from thresher.data.store import Batch, HookPointSpec, Item, Rows, StoreWriter, open_store
from thresher.data.stream import ActivationStream
from thresher.errors import ConfigError, StoreError

CPU = torch.device("cpu")
IMAGE, TEXT = "vision.embed", "text.embed"


def write(path, ids, *, dtype="float32", width=2, only_text=False):
    """A store of one image and one caption per id, in this order. An activation is [id, row in the store]."""
    specs = [HookPointSpec(TEXT, "text", "text.items", width, dtype)]
    if not only_text:
        specs.append(HookPointSpec(IMAGE, "image", "image.items", width, dtype))
    n = len(ids)
    x = torch.stack([torch.tensor(ids), torch.arange(n), *[torch.zeros(n)] * (width - 2)], dim=1).to(getattr(torch, dtype))
    item, position = torch.arange(n), torch.full((n,), -1, dtype=torch.int32)
    with StoreWriter(path, {"of": str(path)}, specs, []) as writer:
        writer.write(
            Batch(
                index=0,
                items={
                    "image": [] if only_text else [Item(f"{k}", i, "ok", None, None, ()) for i, k in enumerate(ids)],
                    "text": [Item(f"{k}#0", i, "ok", "a text", None, ()) for i, k in enumerate(ids)],
                },
                pairs=[] if only_text else [(i, i) for i in range(n)],
                rows={
                    **({} if only_text else {"image.items": Rows(item, position, None, {IMAGE: x})}),
                    "text.items": Rows(item, position, None, {TEXT: x}),
                },
            )
        )
        writer.finish()
    return path


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Ids 0 to 199; ids 299 down to 100, so half of them again, at other places."""
    folder = tmp_path_factory.mktemp("mixture")
    return write(folder / "a", list(range(200))), write(folder / "b", list(range(299, 99, -1)))


@pytest.fixture(scope="module")
def both(paths):
    return open_stores(paths)


def open_stream(store, *hook_points, batch_size=60, holdout=0.0, pool_rows=10**6, balance="rows", **fields):
    return ActivationStream(
        store,
        hook_points or [TEXT],
        batch_size=batch_size,
        holdout=holdout,
        seed=0,
        pool_rows=pool_rows,
        balance=balance,
        device=CPU,
        **fields,
    )


def take(stream, n):
    batches = iter(stream)
    found = list(itertools.islice(batches, n))
    batches.close()
    return found


def test_a_mixture_reads_like_its_stores_one_after_the_other(both) -> None:
    parts = [store.read(TEXT, 0, 200) for store in both.stores]
    everything = torch.cat(parts)
    assert both.rows(TEXT) == both.hook_points[TEXT].rows == 400
    assert torch.equal(both.read(TEXT, 0, 400), everything)
    assert torch.equal(both.read(TEXT, 190, 210), everything[190:210])
    picked = np.array([399, 0, 200, 199, 0])
    assert torch.equal(both.read_rows(TEXT, picked), everything[torch.from_numpy(picked)])
    assert both.read_items_of(TEXT, 195, 205).tolist() == list(range(195, 205))
    assert both.items("text", ["key"])["key"].to_pylist()[199:202] == ["199#0", "299#0", "298#0"]
    with pytest.raises(StoreError, match="rows 390 to 410 asked for, it has 400"):
        both.read(TEXT, 390, 410)


def test_dtypes_that_differ_are_read_in_float32(paths, tmp_path) -> None:
    mixed = open_stores((paths[0], write(tmp_path / "half", [1, 2, 3], dtype="bfloat16")))
    assert mixed.hook_points[TEXT].dtype == "float32"
    assert mixed.read(TEXT, 198, 203)[:, 0].tolist() == [198, 199, 1, 2, 3]


@pytest.mark.parametrize("fraction", [0.05, 0.3])
def test_an_item_that_is_held_out_of_one_store_is_held_out_of_all(both, fraction) -> None:
    keys = both.items("text", ["key"])["key"].to_pylist()
    mask = held_out(both, "text", fraction, 0)
    sides = {key: {bool(mask[i]) for i in range(400) if keys[i] == key} for key in set(keys)}
    assert all(len(side) == 1 for side in sides.values())
    alone = np.concatenate([held_out(store, "text", fraction, 0) for store in both.stores])
    assert (mask >= alone).all()
    assert mask.sum() > alone.sum()
    # An image and its caption are of one record.
    assert (held_out(both, "image", fraction, 0) == mask).all()


def test_no_trained_row_is_of_an_item_that_some_store_holds_out(both) -> None:
    stream = open_stream(both, TEXT, holdout=0.3)
    trained = torch.cat([batch.x[:, 0] for batch in take(stream, 2 * stream.n_rows // 60)]).unique().tolist()
    for store in both.stores:
        held = read_held_out(store, TEXT, fraction=0.3, seed=0, limit=None)[0][:, 0].tolist()
        assert not set(held) & set(trained)
    x, _ = read_held_out(both, TEXT, fraction=0.3, seed=0, limit=None)
    assert len(x) + stream.n_rows == 400


@pytest.mark.parametrize("pool_rows", [10**6, 96])
def test_an_epoch_over_several_stores_has_every_row_once(both, pool_rows) -> None:
    (batch,) = take(open_stream(both, TEXT, batch_size=400, pool_rows=pool_rows), 1)
    assert sorted(batch.x[:, 0].tolist()) == sorted([*range(200), *range(100, 300)])


def test_weights_divide_a_batch_exactly(both) -> None:
    stream = open_stream(both, TEXT, IMAGE, weights={TEXT: 5.0}, batch_size=60)
    assert [batch.group.bincount().tolist() for batch in take(stream, 3)] == [[50, 10]] * 3
    stream = open_stream(both, TEXT, store_weights=[0.1, 0.3], batch_size=40, balance="equal")
    for batch in take(stream, 3):
        # Rows of a source stand together; only the first store has ids below 100, only the second ids from 200 on.
        assert (batch.x[:10, 0] < 200).all()
        assert (batch.x[10:, 0] >= 100).all()


def test_a_store_without_a_hook_point_gives_none_of_its_rows(paths, tmp_path) -> None:
    mixed = open_stores((paths[0], write(tmp_path / "texts", list(range(500, 550)), only_text=True)))
    stream = open_stream(mixed, IMAGE, TEXT, weights={IMAGE: 1.0, TEXT: 1.0}, batch_size=100)
    x, group = take(stream, 1)[0]
    assert (x[group == 0, 0] < 200).all()
    assert int((x[group == 1, 0] >= 500).sum()) == 10


@pytest.mark.parametrize("pool_rows", [10**6, 96])
def test_a_mixed_stream_goes_on_from_a_saved_position(both, pool_rows) -> None:
    def fresh():
        return open_stream(both, TEXT, IMAGE, holdout=0.1, pool_rows=pool_rows, weights={TEXT: 5.0}, batch_size=37)

    stream, resumed = fresh(), fresh()
    take(stream, 5)
    resumed.load_state_dict(stream.state_dict())
    for expected, found in zip(take(stream, 9), take(resumed, 9), strict=True):
        assert torch.equal(expected.x, found.x)


@pytest.mark.parametrize("pool_rows", [10**6, 96])
@pytest.mark.parametrize("holdout", [0.0, 0.3])
def test_a_batch_can_be_traced_to_the_rows_it_is_made_of(both, pool_rows, holdout) -> None:
    stream = open_stream(both, TEXT, IMAGE, holdout=holdout, pool_rows=pool_rows, batch_size=37)
    states, batches, iterator = [], [], iter(stream)
    for _ in range(40):
        states.append(stream.state_dict())
        batches.append(next(iterator))
    iterator.close()
    for number in (39, 0, 17, 18):
        again, drawn = stream.trace(states[number])
        assert torch.equal(again.x, batches[number].x)
        assert torch.equal(torch.cat([each.store.read_rows(each.hook_point, each.rows) for each in drawn]), again.x)


def test_shares_of_stores_are_exact() -> None:
    assert to_integers(weigh({"a": 7, "b": 3}, "rows", {})) == [7, 3]
    assert to_integers(weigh({"a": 7, "b": 3}, "equal", {})) == [1, 1]
    assert to_integers(weigh({"a": 7, "b": 3}, "equal", {"a": 0.1})) == [1, 10]
    (weight,) = weigh({"a": 10}, "rows", {})
    assert to_integers(weigh_parts(weight, [7.0, 3.0])) == [7, 3]


def test_what_cannot_be_mixed_is_refused_and_named(paths, both, tmp_path) -> None:
    wide = write(tmp_path / "wide", [1, 2], width=3)
    with pytest.raises(ConfigError, match="give at least two different stores"):
        open_stores((paths[0], paths[0]))
    with pytest.raises(ConfigError, match="give at least two different stores"):
        Mixture([open_store(paths[0])])
    with pytest.raises(StoreError, match=r"one dictionary needs one width, but found 2 in .*a, 3 in .*wide"):
        open_stores((paths[0], wide))
    with pytest.raises(StoreError, match=r"no hook point 'vision\.9'; the store has text.embed"):
        open_stream(both, "vision.9")
    with pytest.raises(ConfigError, match=r"'vision\.9' is none of the hook points that are trained on"):
        open_stream(both, TEXT, weights={"vision.9": 1.0})
    with pytest.raises(ConfigError, match="give one for each of 2 stores"):
        open_stream(both, TEXT, store_weights=[1.0])
    with pytest.raises(ConfigError, match="weights are positive and finite"):
        open_stream(both, TEXT, weights={TEXT: 0.0})
