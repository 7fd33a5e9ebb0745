"""What is read of a store in a bucket is kept on this machine: never too much, never wrong, never fetched twice."""

import subprocess

import numpy as np
import pytest

from thresher.data.store import CacheConfig, StoreWriter, open_store
from thresher.data.store.cache import BLOCK_BYTES, PAGE_BYTES, BlockCache, CachedFile
from thresher.data.store.objects import Objects
from thresher.errors import ConfigError
from thresher.testing.store import CONCEPTS, HOOK_POINTS, IDENTITY, expected_rows, write_store

SMALL = 64
"""Bytes of a page in these tests; a block has 16 of them."""
N_BATCHES = 6


@pytest.fixture
def _small_blocks(monkeypatch):
    monkeypatch.setattr("thresher.data.store.cache.PAGE_BYTES", SMALL)
    monkeypatch.setattr("thresher.data.store.cache.BLOCK_BYTES", 16 * SMALL)


class Counted:
    """A file that remembers what was read of it."""

    def __init__(self, content):
        self.content, self.size, self.reads = content, len(content), []

    def read_into(self, offset, target):
        self.reads.append((offset, len(target)))
        target[:] = self.content[offset : offset + len(target)]
        return len(target)

    def close(self):
        self.reads.append("closed")


def count_bytes(folder):
    return sum(path.stat().st_size for path in (folder / "blocks").glob("*/*"))


def open_counted(cache, content, name="file"):
    below = Counted(content)
    return CachedFile(cache, name, len(content), lambda: below), below


def read(file, offset, n):
    target = bytearray(n)
    return bytes(target[: file.read_into(offset, memoryview(target))])


@pytest.mark.usefixtures("_small_blocks")
def test_any_read_gives_the_bytes_of_the_file_and_each_block_is_fetched_once(tmp_path):
    content = np.random.default_rng(0).bytes(20 * 16 * SMALL + 33)
    file, below = open_counted(BlockCache(tmp_path, 1 << 20), content)
    chance = np.random.default_rng(1)
    for _ in range(200):
        start, n = int(chance.integers(len(content) + 10)), int(chance.integers(5 * 16 * SMALL))
        assert read(file, start, n) == content[start : start + n]
    assert sum(n for _, n in below.reads) == len(content)
    again, below = open_counted(BlockCache(tmp_path, 1 << 20), content)
    assert read(again, 0, len(content)) == content
    assert below.reads == []


@pytest.mark.usefixtures("_small_blocks")
def test_a_read_of_neighbouring_blocks_is_one_request(tmp_path):
    content = bytes(range(256)) * 32
    file, below = open_counted(BlockCache(tmp_path, 1 << 20), content)
    assert read(file, 1, 5 * 16 * SMALL - 2) == content[1 : 5 * 16 * SMALL - 1]
    assert below.reads == [(0, 5 * 16 * SMALL)]


@pytest.mark.usefixtures("_small_blocks")
def test_the_bound_is_kept_at_every_moment_and_what_was_used_last_stays(tmp_path):
    bound = 10 * 17 * SMALL
    content = np.random.default_rng(0).bytes(40 * 16 * SMALL)
    cache = BlockCache(tmp_path, bound)
    file, below = open_counted(cache, content)
    for block in range(40):
        assert read(file, block * 16 * SMALL, 16 * SMALL) == content[block * 16 * SMALL :][: 16 * SMALL]
        assert read(file, 0, 8) == content[:8]
        assert 0 < count_bytes(tmp_path) <= bound
    assert [offset for offset, _ in below.reads].count(0) == 1


@pytest.mark.usefixtures("_small_blocks")
def test_a_block_that_does_not_fit_is_not_kept(tmp_path):
    file, below = open_counted(BlockCache(tmp_path, 100), bytes(16 * SMALL))
    assert read(file, 0, 8) == bytes(8)
    assert read(file, 0, 8) == bytes(8)
    assert len(below.reads) == 2
    assert count_bytes(tmp_path) == 0


@pytest.mark.usefixtures("_small_blocks")
@pytest.mark.parametrize("damage", ["flipped byte", "cut short", "cut to nothing"])
def test_a_damaged_copy_is_fetched_again(tmp_path, damage):
    content = np.random.default_rng(0).bytes(16 * SMALL)
    file, below = open_counted(BlockCache(tmp_path, 1 << 20), content)
    read(file, 0, 1)
    (copy,) = (tmp_path / "blocks").glob("*/*")
    kept = bytearray(copy.read_bytes())
    kept[5] ^= 1
    copy.write_bytes({"flipped byte": kept, "cut short": kept[:-3], "cut to nothing": b""}[damage])
    assert read(file, 0, 16 * SMALL) == content
    assert len(below.reads) == 2
    assert read(file, 0, 16 * SMALL) == content
    assert len(below.reads) == 2


@pytest.mark.usefixtures("_small_blocks")
def test_what_a_killed_process_left_is_counted_and_cleared(tmp_path):
    cache = BlockCache(tmp_path, 10 * 17 * SMALL)
    file, _ = open_counted(cache, bytes(40 * 16 * SMALL))
    read(file, 0, 3 * 16 * SMALL)
    leftover = next((tmp_path / "blocks").glob("*")) / "0123.partial"
    leftover.write_bytes(bytes(500))
    (tmp_path / "used").write_bytes(b"")
    read(file, 0, 30 * 16 * SMALL)
    assert not leftover.exists()
    assert count_bytes(tmp_path) <= 10 * 17 * SMALL


def test_a_folder_that_cannot_be_written_ends_the_keeping_and_not_the_reading(tmp_path, capsys):
    (tmp_path / "file").write_bytes(b"")
    file, _ = open_counted(BlockCache(tmp_path / "file", 1 << 30), bytes(BLOCK_BYTES + 1))
    assert read(file, 0, BLOCK_BYTES + 1) == bytes(BLOCK_BYTES + 1)
    assert read(file, PAGE_BYTES, 2) == bytes(2)
    assert capsys.readouterr().err.count("reading on without") == 1


PROCESS = """
import sys
from pathlib import Path
from thresher.data.store import cache
cache.PAGE_BYTES, cache.BLOCK_BYTES = 64, 1024
class Below:
    def read_into(self, offset, target):
        target[:] = bytes((offset // 1024 + i) % 251 for i in range(len(target)))
        return len(target)
kept = cache.BlockCache(Path(sys.argv[1]), int(sys.argv[2]))
file = cache.CachedFile(kept, "file", 64 * 1024, Below)
for turn in range(3):
    for block in range(64):
        target = bytearray(1024)
        place = (block * 7 + int(sys.argv[3]) * 13) % 64
        file.read_into(place * 1024, memoryview(target))
        assert target == bytes((place + i) % 251 for i in range(1024)), place
        with kept._exclusive():  # otherwise files come and go while they are counted
            used = sum(path.stat().st_size for path in Path(sys.argv[1], "blocks").glob("*/*"))
        assert used <= int(sys.argv[2]), used
"""


def test_processes_that_share_a_cache_read_right_and_keep_the_bound(tmp_path, python):
    command = [python, "-c", PROCESS, str(tmp_path), str(20 * 1200)]
    processes = [subprocess.Popen([*command, str(i)], stderr=subprocess.PIPE, text=True) for i in range(2)]
    for process in processes:
        _, errors = process.communicate()
        assert process.returncode == 0, errors


def test_nonsense_is_refused():
    with pytest.raises(ConfigError, match="gigabytes=-1"):
        CacheConfig(gigabytes=-1.0)


def test_a_store_in_a_bucket_is_read_once(s3, place, tmp_path, monkeypatch):
    with StoreWriter(place, IDENTITY, HOOK_POINTS, CONCEPTS, items_per_shard=16) as writer:
        write_store(writer, N_BATCHES)
    fetched, get_range = [], Objects.get_range

    def count(self, path, start, stop):
        fetched.append(path)
        return get_range(self, path, start, stop)

    monkeypatch.setattr(Objects, "get_range", count)
    for n_reads in (1, 0):
        fetched.clear()
        store = open_store(place, cache=CacheConfig(folder=tmp_path / "cache", gigabytes=1.0))
        for spec in HOOK_POINTS:
            assert store.read(spec.name, 0, store.rows(spec.name)).equal(expected_rows(spec.name, N_BATCHES))
            assert len(store.item_of(spec.name)) == store.rows(spec.name)
        assert len(store.items("image")) == 6 * N_BATCHES
        assert bool(fetched) == bool(n_reads)
        assert len(fetched) == len(set(fetched))
    store = open_store(place, cache=CacheConfig(folder=tmp_path / "none", gigabytes=0.0))
    store.read("vision.3", 0, 4)
    assert not (tmp_path / "none").exists()
