"""A damaged store is repaired, and the same harvest makes the rest again: only the rest, and to the same bytes."""

import functools
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from memory import MEMORY

from thresher.data.store import StoreWriter, open_store, repair_store, verify_store
from thresher.errors import StoreError
from thresher.testing.store import CONCEPTS, HOOK_POINTS, IDENTITY, make_batch, tree, write_store

N_BATCHES = 16
DERIVED = ("manifest.json", "moments", "acts.zarr/.*zarr.json")
"""Files that follow from others."""


def open_writer(path: Path) -> StoreWriter:
    return StoreWriter(path, IDENTITY, HOOK_POINTS, CONCEPTS, items_per_shard=12)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("repair") / "store"
    with open_writer(path) as writer:
        write_store(writer, N_BATCHES)
    return path


@pytest.fixture
def store(finished: Path) -> Iterator[Path]:
    """In memory where that is possible: fsync costs nothing there."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        yield shutil.copytree(finished, Path(folder) / "store")


def flip(path: Path, chance: np.random.Generator) -> None:
    content = bytearray(path.read_bytes())
    content[chance.integers(len(content))] ^= 1 << chance.integers(8)
    path.write_bytes(content)


def delete(path: Path, chance: np.random.Generator) -> None:
    path.unlink()


def truncate(path: Path, chance: np.random.Generator) -> None:
    os.truncate(path, chance.integers(path.stat().st_size))


same_batch = functools.cache(make_batch)


def harvest_again(path: Path) -> list[int]:
    """The batches that it took."""
    with open_writer(path) as writer:
        batches = writer.missing(N_BATCHES)
        for index in batches:
            writer.write(same_batch(index))
        writer.finish()
    return batches


def sample(finished: Path) -> list[str]:
    """One file of every kind: the last, and where there are more, one in the middle."""
    kinds: dict[str, list[str]] = {}
    for name, content in tree(finished).items():
        if content and name != "run.json":
            kinds.setdefault(re.sub(r"layers/[^/]+|(image|text)\.\w+|\d+", "#", name), []).append(name)
    return [name for names in kinds.values() for name in sorted({names[-1], names[len(names) // 2]})]


@pytest.mark.parametrize("damage", [flip, delete, truncate])
def test_damage_costs_the_batches_of_its_block_and_the_store_is_the_same_again(finished, store, damage):
    chance, whole, files = np.random.default_rng(0), tree(finished), sample(finished)
    # All of them for each damage would take three times as long.
    for name in files[(flip, delete, truncate).index(damage) :: 3]:
        damage(store / name, chance)
        found = repair_store(store)
        assert any(str(store / name) in finding for finding in found.findings), name
        assert found.is_complete == any(re.match(kind, name) for kind in DERIVED), name
        if not found.is_complete:
            with pytest.raises(StoreError, match="unfinished"):
                open_store(store)
            assert len(harvest_again(store)) <= 6, name
        again = tree(store)
        assert {key for key in {*again, *whole} if again.get(key) != whole.get(key)} == set(), name


def test_many_damaged_files_at_once_are_made_again(finished, store):
    chance = np.random.default_rng(1)
    for name in sample(finished)[::3]:
        flip(store / name, chance)
    repair_store(store)
    harvest_again(store)
    assert tree(store) == tree(finished)


def test_an_interrupted_second_harvest_of_a_repaired_store_goes_on(finished, store):
    shards = sorted(store.glob("acts.zarr/layers/vision.3/activations/c/*/0"))
    for shard in (shards[1], shards[-2]):
        flip(shard, np.random.default_rng(2))
    repair_store(store)
    with open_writer(store) as writer:
        first = writer.missing(N_BATCHES)
        for index in first[:3]:
            writer.write(make_batch(index))
    again = harvest_again(store)
    assert len(again) < len(first) < N_BATCHES
    assert tree(store) == tree(finished)


def test_an_unfinished_store_is_repaired_too(finished, tmp_path):
    path = tmp_path / "unfinished"
    with open_writer(path) as writer:
        for index in range(10):
            writer.write(make_batch(index))
    flip(path / "acts.zarr/layers/vision.3/activations/c/1/0", np.random.default_rng(3))
    (path / "pairs" / "00000099.parquet").write_bytes(b"half")
    actions = "\n".join(repair_store(path).actions)
    assert "activations/c/1/0: damaged; image.tokens block 1 is to be made again" in actions
    assert "00000099.parquet: not committed" in actions
    assert "the same harvest command again: it redoes batches " in actions
    assert len(harvest_again(path)) < N_BATCHES
    assert tree(path) == tree(finished)


def test_a_block_that_comes_out_differently_is_refused(store):
    shard = store / "acts.zarr/layers/vision.3/activations/c/1/0"
    flip(shard, np.random.default_rng(4))
    repair_store(store)
    with open_writer(store) as writer, pytest.raises(StoreError, match=f"{shard}: made again with other bytes"):
        for index in writer.missing(N_BATCHES):
            batch = make_batch(index)
            for value in batch.rows["image.tokens"].activations.values():
                value += 1
            writer.write(batch)
        writer.finish()


def test_readers_of_a_repaired_store_see_what_lies_before_the_hole(finished, store):
    flip(store / "acts.zarr/layers/vision.3/activations/c/2/0", np.random.default_rng(5))
    repair_store(store)
    whole, prefix = open_store(finished), open_store(store, incomplete="prefix")
    rows = prefix.rows("vision.3")
    assert 0 < rows < whole.rows("vision.3")
    assert prefix.read("vision.3", 0, rows).equal(whole.read("vision.3", 0, rows))
    assert prefix.rows("text.3") == whole.rows("text.3")


def test_a_sound_store_is_left_alone(store, finished):
    assert repair_store(store).findings == []
    assert tree(store) == tree(finished)


def test_a_damaged_run_json_cannot_be_repaired(store):
    content = (store / "run.json").read_bytes()
    (store / "run.json").write_bytes(content.replace(b'"up"', b'"uq"'))
    with pytest.raises(StoreError, match=r"run\.json: damaged .* harvest the store again"):
        repair_store(store)


@pytest.mark.parametrize("name", ["run.json", "commits/text.tokens/00000003.json", "commits/items/00000001.json"])
def test_any_flipped_bit_of_what_tells_what_exists_is_found_without_a_manifest(store, name):
    (store / "manifest.json").unlink()
    content, chance = (store / name).read_bytes(), np.random.default_rng(7)
    for place in [content.index(b'"seal"') + 3, *chance.integers(len(content), size=100)]:
        changed = bytearray(content)
        changed[place] ^= 1 << chance.integers(8)
        (store / name).write_bytes(changed)
        assert any(str(store / name) in finding for finding in verify_store(store, level="sizes")), (place, chr(changed[place]))


@pytest.mark.parametrize("space", ["text.items", "image.tokens"])
def test_a_lost_last_record_is_noticed_when_the_tables_say_that_nothing_was_waiting(store, space):
    def open_one_block(path: Path) -> StoreWriter:
        return StoreWriter(path, IDENTITY, HOOK_POINTS, CONCEPTS, items_per_shard=100)

    for path in (whole := store.with_name("whole"), other := store.with_name("other")):
        with open_one_block(path) as writer:
            write_store(writer, 5)
    (other / "manifest.json").unlink()
    (other / "commits" / space / "00000000.json").unlink()
    with open_one_block(other):  # a harvest that ends before it has written anything
        pass
    with open_one_block(other) as writer:
        assert writer.missing(5) == list(range(5))
        write_store(writer, 5)
    assert tree(other) == tree(whole)


def test_verify_names_the_chunk(tmp_path):
    path = tmp_path / "store"
    wide = [HOOK_POINTS[0]._replace(width=1 << 18)]
    with StoreWriter(path, IDENTITY, wide, (), items_per_shard=12) as writer:
        for index in range(3):
            writer.write(make_batch(index, hook_points=wide))
        writer.finish()
    shard = sorted(path.glob("acts.zarr/layers/*/activations/c/*/0"))[0]
    content = bytearray(shard.read_bytes())
    content[3 * (4 << 20) + 5] ^= 1
    content[5 * (4 << 20) + 5] ^= 1
    shard.write_bytes(content)
    (finding,) = verify_store(path, level="checksums")
    assert finding.endswith("; damaged: chunk 3 (rows 24 to 31), 5 (rows 40 to 47)")
    content[3 * (4 << 20) + 5] ^= 1
    content[5 * (4 << 20) + 5] ^= 1
    content[-9] ^= 1
    shard.write_bytes(content)
    (finding,) = verify_store(path, level="checksums")
    assert finding.endswith("; its chunks are sound, its index is damaged")


def test_a_store_without_one_of_its_commit_records_is_the_same_again_even_without_the_last(finished, store):
    whole = tree(finished)
    records = [name for name in whole if name.startswith("commits/")]
    for name in records[::3] + records[-1:]:
        (store / name).unlink()
        assert not repair_store(store).is_complete, name
        harvest_again(store)
        assert tree(store) == whole, name


def test_a_store_without_its_last_two_commit_records_is_the_same_again(finished, store):
    whole = tree(finished)
    for space in sorted({Path(name).parent for name in whole if name.startswith("commits/")}):
        for name in sorted(name for name in whole if Path(name).parent == space)[-2:]:
            (store / name).unlink()
        repair_store(store)
        harvest_again(store)
        assert tree(store) == whole, space


@pytest.mark.parametrize("name", ["manifest.json", "moments.safetensors", "commits/items/00000000.json"])
@pytest.mark.parametrize("content", [b"", b'{"a": ', b"\x00" * 99, None])
def test_whoever_meets_damage_is_told_to_repair(store, name, content):
    (store / name).unlink()
    if content is not None:
        (store / name).write_bytes(content)
    if (name, content) == ("manifest.json", None):
        return  # unfinished, not damaged
    with pytest.raises(StoreError, match="store repair"):
        open_store(store).moments("vision.3")
    if name != "moments.safetensors":
        with pytest.raises(StoreError, match="store repair"):
            open_writer(store)
