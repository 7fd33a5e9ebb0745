"""Rows side by side belong together, are all there, and are read like those of a store."""

import contextlib
import itertools

import numpy as np
import pytest
import torch

from thresher.data.aligned import AlignedStore
from thresher.data.mixture import Mixture
from thresher.data.readable import Readable
from thresher.data.store import Batch, HookPointSpec, Item, Rows, StoreWriter, open_store
from thresher.data.stream import ActivationStream, held_out
from thresher.errors import ConfigError, StoreError

N_RECORDS, BATCH_RECORDS, TOKENS = 64, 32, 4
SPECS = (
    HookPointSpec("vision.1", "image", "image.tokens", 3, "float32"),
    HookPointSpec("vision.2", "image", "image.tokens", 2, "float16"),
    HookPointSpec("vision.embed", "image", "image.items", 3, "float32"),
    HookPointSpec("text.embed", "text", "text.items", 4, "float32"),
    HookPointSpec("text.1", "text", "text.tokens", 2, "float32"),
)
TOWER, PAIR = ("vision.1", "vision.2"), ("vision.embed", "text.embed")
CPU = torch.device("cpu")


def count_captions(record):
    """From none to three."""
    return record % 4


def describe(space, items, shift):
    """The rows of a space: what they hold says item key (as a number) and position."""
    modality = "image" if space.startswith("image") else "text"
    position = {"image.tokens": range(TOKENS), "text.tokens": range(2)}.get(space, [-1])
    rows = [(index, place) for index, _ in enumerate(items[modality]) for place in position]
    x = torch.tensor([[number_of(items[modality][index].key) + shift, place, 7.0, 8.0] for index, place in rows])
    item, places = (torch.tensor([row[i] for row in rows], dtype=dtype) for i, dtype in ((0, torch.int64), (1, torch.int32)))
    activations = {spec.name: x[:, : spec.width].to(getattr(torch, spec.dtype)) for spec in SPECS if spec.space == space}
    tokens = places + 10 + int(shift) if space == "text.tokens" else None
    return Rows(item, places, tokens, activations)


def number_of(key):
    """An image's record; a caption's record and number after it."""
    record, _, caption = key.partition("#")
    return int(record) + int(caption or 0) / 16


def write(path, records, *, shift=0):
    """A store of so many records; `shift` is what another model adds to the activations and to the token ids."""
    with StoreWriter(path, {"model": shift}, SPECS, (), items_per_shard=50) as writer:
        for index, start in enumerate(range(0, len(records), BATCH_RECORDS)):
            part = records[start : start + BATCH_RECORDS]
            items = {"image": [], "text": []}
            pairs = []
            for i, record in enumerate(part):
                items["image"].append(Item(f"{record}", record, "ok", None, None, ()))
                for caption in range(count_captions(record)):
                    pairs.append((i, len(items["text"])))
                    items["text"].append(Item(f"{record}#{caption}", record, "ok", "text", None, ()))
            spaces = dict.fromkeys(spec.space for spec in SPECS)
            writer.write(Batch(index, items, pairs, {space: describe(space, items, shift) for space in spaces}))
        writer.finish()
    return open_store(path)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write(tmp_path_factory.mktemp("aligned") / "store", list(range(N_RECORDS)))


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """Another model's store of every second record, in another order."""
    return write(tmp_path_factory.mktemp("other") / "store", list(range(0, N_RECORDS, 2))[::-1], shift=0.5)


def test_hook_points_of_one_space_stand_side_by_side_as_they_are(store):
    aligned = AlignedStore(store, TOWER)
    assert isinstance(aligned, Readable)
    assert aligned.joint == "vision.1+vision.2"
    assert aligned.widths == (3, 2)
    info = aligned.hook_points[aligned.joint]
    assert (info.width, info.dtype, info.rows) == (5, "float32", N_RECORDS * TOKENS)
    x = aligned.read(aligned.joint, 0, info.rows)
    expected = torch.cat([store.read(name, 0, info.rows).float() for name in TOWER], dim=1)
    assert torch.equal(x, expected)
    assert np.array_equal(aligned.item_of(aligned.joint), store.item_of("vision.1"))
    assert torch.equal(aligned.read("vision.2", 5, 9), store.read("vision.2", 5, 9))


def test_every_pair_is_a_row_and_the_image_comes_with_each_of_its_captions(store):
    aligned = AlignedStore(store, PAIR)
    n = aligned.rows(aligned.joint)
    assert n == sum(map(count_captions, range(N_RECORDS))) == len(store.pairs())
    x = aligned.read(aligned.joint, 0, n)
    assert torch.equal(x[:, 0], x[:, 3].floor())
    assert sorted(x[:, 3].tolist()) == sorted(r + c / 16 for r in range(N_RECORDS) for c in range(count_captions(r)))
    keys = store.items("image", ["key"])["key"].to_pylist()
    assert [keys[item] for item in aligned.item_of(aligned.joint)] == [f"{int(image)}" for image in x[:, 0]]


def test_captions_first_makes_captions_the_items(store):
    aligned = AlignedStore(store, PAIR[::-1])
    keys = store.items("text", ["key"])["key"].to_pylist()
    found = [number_of(keys[item]) for item in aligned.item_of(aligned.joint)]
    assert found == aligned.read("text.embed", 0, len(found))[:, 0].tolist()


def test_any_rows_in_any_order_are_those_of_a_read(store):
    for names in (TOWER, PAIR):
        aligned = AlignedStore(store, names)
        whole = aligned.read(aligned.joint, 0, aligned.rows(aligned.joint))
        rows = np.array([7, 3, 3, len(whole) - 1, 0])
        assert torch.equal(aligned.read_rows(aligned.joint, rows), whole[torch.from_numpy(rows)])
        assert torch.equal(aligned.read(aligned.joint, 4, 11), whole[4:11])
        items = aligned.item_of(aligned.joint)
        assert np.array_equal(aligned.read_items_of(aligned.joint, 4, 11), items[4:11])


def test_stores_of_two_models_are_joined_by_the_keys_of_their_items(store, other):
    aligned = AlignedStore(Mixture([store, other]), ("vision.1@0", "vision.2@1"))
    x = aligned.read(aligned.joint, 0, aligned.rows(aligned.joint))
    assert len(x) == N_RECORDS // 2 * TOKENS
    assert torch.equal(x[:, 0] + 0.5, x[:, 3])
    assert torch.equal(x[:, 1], x[:, 4])
    pairs = AlignedStore(Mixture([store, other]), ("text.embed@0", "vision.embed@1"))
    x = pairs.read(pairs.joint, 0, pairs.rows(pairs.joint))
    assert len(x) == sum(map(count_captions, range(0, N_RECORDS, 2)))
    assert torch.equal(x[:, 0].floor() + 0.5, x[:, 4])


@pytest.mark.parametrize("names", [TOWER, PAIR])
@pytest.mark.parametrize("pool_rows", [10_000, 60])
def test_an_epoch_has_every_training_row_once_and_no_item_of_the_held_out(store, names, pool_rows):
    aligned = AlignedStore(store, names)
    settings = {"holdout": 0.3, "seed": 1, "pool_rows": pool_rows, "balance": "rows", "device": CPU}
    n = ActivationStream(aligned, [aligned.joint], batch_size=1, **settings).n_rows
    stream = ActivationStream(aligned, [aligned.joint], batch_size=n, **settings)
    mask = held_out(aligned, aligned.hook_points[aligned.joint].modality, 0.3, 1)
    training = np.flatnonzero(~mask[aligned.item_of(aligned.joint)])
    expected = aligned.read_rows(aligned.joint, training)
    assert 0 < len(training) < aligned.rows(aligned.joint)
    with contextlib.closing(iter(stream)) as given:
        batches = [batch.x for batch in itertools.islice(given, 2)]
    for x in batches:
        assert sorted(x.tolist()) == sorted(expected.tolist())
    assert not torch.equal(*batches)
    kept = {int(record) for record in batches[0][:, 0]}
    assert kept.isdisjoint(int(store.items("image", ["key"])["key"][i].as_py()) for i in np.flatnonzero(mask))
    stream.close()


def test_a_stream_goes_on_where_it_was(store):
    aligned = AlignedStore(store, PAIR)

    def open_stream():
        settings = {"holdout": 0.2, "seed": 1, "pool_rows": 60, "balance": "rows", "device": CPU}
        return ActivationStream(aligned, [aligned.joint], batch_size=17, **settings)

    stream, again = open_stream(), open_stream()
    with contextlib.closing(iter(stream)) as batches:
        for _ in range(5):
            next(batches)
        state = stream.state_dict()
        expected = [next(batches).x for _ in range(5)]
    again.load_state_dict(state)
    with contextlib.closing(iter(again)) as batches:
        assert all(torch.equal(next(batches).x, x) for x in expected)
    stream.close()
    again.close()


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        (("vision.1",), ConfigError, "at least two hook points"),
        (("vision.1", "vision.1"), ConfigError, "each once"),
        (("vision.1", "vision.9"), StoreError, "no hook point 'vision.9'; the store has vision.1"),
        (("vision.1", "vision.embed"), StoreError, "no rows of the same items and positions"),
        (("vision.1", "text.embed"), StoreError, "vision.1 has several rows per item"),
        (("vision.1", "a+b"), ConfigError, "cannot stand side by side"),
    ],
)
def test_hook_points_that_do_not_belong_together_are_refused(store, names, error, message):
    with pytest.raises(error, match=message):
        AlignedStore(store, names)


def test_of_several_stores_a_hook_point_says_which(store, other):
    with pytest.raises(ConfigError, match=r"say of which store, from 0 to 1: vision\.1@0"):
        AlignedStore(Mixture([store, other]), ("vision.1", "vision.2@1"))


def test_texts_cut_by_two_tokenizers_are_refused(store, tmp_path):
    shifted = write(tmp_path / "store", list(range(N_RECORDS)), shift=1)
    with pytest.raises(StoreError, match=r"text.1@1: equal positions of an item hold other tokens.*one tokenizer"):
        AlignedStore(Mixture([store, shifted]), ("text.1@0", "text.1@1"))
    assert AlignedStore(Mixture([store, shifted]), ("vision.1@0", "vision.1@1")).rows("vision.1@0") == N_RECORDS * TOKENS
