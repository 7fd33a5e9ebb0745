"""Stores of the same hook points become one, in bounded memory, and nothing gets lost or mixed up."""

from pathlib import Path

import pytest
import torch

from thresher.data.store import Store, StoreWriter, merge_stores, open_store, verify_store
from thresher.data.store.walk import iterate_batches
from thresher.errors import StoreError
from thresher.testing.store import CONCEPTS, HOOK_POINTS, IDENTITY, make_batch, tree, write_store


def make(path: Path, n_batches: int, **settings) -> Path:
    values = {"hook_points": HOOK_POINTS, "concepts": CONCEPTS, "items_per_shard": 12, **settings}
    with StoreWriter(path, IDENTITY | {"seed": n_batches}, **values) as writer:
        write_store(writer, n_batches, hook_points=values["hook_points"])
    return path


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("parts")
    return [make(folder / "a", 7), make(folder / "b", 4, concepts=CONCEPTS[::-1])]


def check_part(merged: Store, part: Store, number: int, items: dict[str, list[int]]) -> None:
    names = [concept.name for concept in merged.concepts]
    for modality in ("image", "text"):
        start, stop = items[modality]
        found, expected = merged.items(modality).slice(start, stop - start).to_pylist(), part.items(modality).to_pylist()
        assert [row["key"] for row in found] == [f"{number}/{row['key']}" for row in expected]
        for row, own in zip(found, expected, strict=True):
            assert [names[c] for c in row["concepts"]] == [part.concepts[c].name for c in own["concepts"]]
            assert {k: row[k] for k in row.keys() & {"status", "text", "thumbnail"}} == {
                k: own[k] for k in own.keys() & {"status", "text", "thumbnail"}
            }
    for name, info in part.hook_points.items():
        start, stop = items[info.modality]
        of = merged.item_of(name)
        rows = ((of >= start) & (of < stop)).nonzero()[0]
        assert (of[rows] - start).tolist() == part.item_of(name).tolist()
        assert torch.equal(merged.read_rows(name, rows), part.read(name, 0, info.rows))
        assert merged.position_of(name)[rows].tolist() == part.position_of(name).tolist()
    pairs = merged.pairs()
    inside = (pairs[:, 0] >= items["image"][0]) & (pairs[:, 0] < items["image"][1])
    assert (pairs[inside] - [items["image"][0], items["text"][0]]).tolist() == part.pairs().tolist()


def test_every_part_is_found_in_the_whole(parts, tmp_path):
    merged = open_store(merge_stores(parts, tmp_path / "merged", keys="prefix"))
    assert verify_store(merged.path, level="checksums") == []
    stores = [open_store(path) for path in parts]
    for number, (store, told) in enumerate(zip(stores, merged.identity["merged"], strict=True)):
        assert told["identity"] == store.identity
        assert told["fingerprint"] == store.fingerprint
        check_part(merged, store, number, told["items"])
    records = merged.items("image", columns=["record"])["record"].to_pylist()
    assert len(set(records)) == len(records)
    assert merged.identity["model"] == IDENTITY["model"]
    assert merged.moments("vision.3").count == sum(store.moments("vision.3").count for store in stores)


def test_equal_keys_are_refused_and_named(parts, tmp_path):
    with pytest.raises(StoreError, match=r"image item 'r[0-9]+' is in .*a and in .*b: keys must be unique"):
        merge_stores(parts, tmp_path / "merged")


def test_other_hook_points_are_refused_and_named(parts, tmp_path):
    other = make(tmp_path / "other", 2, hook_points=HOOK_POINTS[1:])
    with pytest.raises(StoreError, match=r"other: hook point vision\.3: not there; in .*a: image, image\.tokens, width 7"):
        merge_stores([parts[0], other], tmp_path / "merged")


def test_a_merge_that_was_stopped_goes_on(parts, tmp_path, monkeypatch):
    whole = merge_stores(parts, tmp_path / "whole", keys="prefix")
    write = StoreWriter.write

    def write_then_stop(self, batch):
        write(self, batch)
        if batch.index == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(StoreWriter, "write", write_then_stop)
        merge_stores(parts, tmp_path / "stopped", keys="prefix")
    merge_stores(parts, tmp_path / "stopped", keys="prefix")
    assert tree(tmp_path / "stopped") == tree(whole)
    assert merge_stores(parts, tmp_path / "stopped", keys="prefix") == tmp_path / "stopped"


@pytest.mark.parametrize("items", [1, 3, 10**6])
def test_a_walk_gives_back_what_was_written_and_cuts_no_pair(items, parts, monkeypatch, tmp_path):
    monkeypatch.setattr("thresher.data.store.walk.ITEMS_PER_BATCH", items)
    store = open_store(parts[0])
    batches = list(iterate_batches(store))
    assert len(batches) > 7 or items > 10
    again = tmp_path / "again"
    with StoreWriter(again, store.identity, HOOK_POINTS, CONCEPTS, items_per_shard=12) as writer:
        for batch in batches:
            writer.write(batch)
        writer.finish()
    assert open_store(again).pairs().tolist() == store.pairs().tolist()
    for name, info in store.hook_points.items():
        assert torch.equal(open_store(again).read(name, 0, info.rows), store.read(name, 0, info.rows))
        assert open_store(again).item_of(name).tolist() == store.item_of(name).tolist()


def test_batches_of_a_walk_are_those_of_the_harvest_where_they_can_be(parts):
    first = next(iterate_batches(open_store(parts[0])))
    assert first.items["image"][:6] == make_batch(0).items["image"]
