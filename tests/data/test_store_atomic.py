"""Files that take their place when they are whole: the same bytes past the page cache and through it."""

import contextlib
import fcntl
import os
import resource
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import crc32c
import numpy as np
import pytest

from thresher.data.store.atomic import ALIGNMENT, DIRECT_BYTES, AtomicFile, allocate_pages
from thresher.data.store.column import Column
from thresher.data.store.layout import ArraySpec
from thresher.data.store.places import open_storage

CHANCE = np.random.default_rng(0)
MEMORY = allocate_pages(3 * DIRECT_BYTES)
MEMORY[:] = CHANCE.integers(0, 256, len(MEMORY), np.uint8)
PIECES = {
    "of whole pages": [(0, DIRECT_BYTES), (DIRECT_BYTES, 2 * DIRECT_BYTES), (5, 1001)],
    "a small one first": [(0, 10), (0, DIRECT_BYTES), (ALIGNMENT, DIRECT_BYTES)],
    "not of pages": [(1, DIRECT_BYTES), (0, DIRECT_BYTES + 1), (0, DIRECT_BYTES)],
    "small whole pages": [(0, ALIGNMENT), (0, 0), (0, DIRECT_BYTES), (0, ALIGNMENT), (0, DIRECT_BYTES)],
}


def is_direct(path: Path) -> bool:
    """Whether the file that is being written at `path` is written past the page cache."""
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if link.readlink() == path.with_name(f".{path.name}.partial"):
                return bool(fcntl.fcntl(int(link.name), fcntl.F_GETFL) & os.O_DIRECT)
    raise AssertionError(f"{path}: is not being written")


def write(path: Path, pieces: list[tuple[int, int]]) -> None:
    file, expected = AtomicFile(path), b""
    for start, n in pieces:
        expected += MEMORY[start : start + n].tobytes()
        file.append(MEMORY[start : start + n].data)
    stored = file.commit()
    assert path.read_bytes() == expected
    assert (stored.bytes, stored.crc32c) == (len(expected), f"{crc32c.crc32c(expected):08x}")
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("pieces", PIECES.values(), ids=PIECES)
def test_whatever_is_appended_is_the_content(pieces, tmp_path):
    write(tmp_path / "file", pieces)


def test_large_pieces_of_whole_pages_go_past_the_page_cache(tmp_path):
    try:
        descriptor = os.open(tmp_path / "probe", os.O_WRONLY | os.O_CREAT)
        fcntl.fcntl(descriptor, fcntl.F_SETFL, os.O_DIRECT)
        os.write(descriptor, MEMORY[:ALIGNMENT].data)
    except OSError:
        pytest.skip("the file system of the temporary folder has no O_DIRECT")
    finally:
        os.close(descriptor)
    path, found = tmp_path / "file", []
    file = AtomicFile(path)
    for n in (DIRECT_BYTES, ALIGNMENT, DIRECT_BYTES, 100, DIRECT_BYTES):
        file.append(MEMORY[:n].data)
        found.append(is_direct(path))
    file.discard()
    assert found == [True, False, True, False, False]
    assert not path.with_name(".file.partial").exists()


def test_a_file_system_that_always_caches_gets_the_same_bytes(tmp_path):
    made = subprocess.run(["mount", "-t", "ramfs", "ramfs", str(tmp_path)], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("mounting a ramfs, which refuses O_DIRECT, needs root")
    try:
        write(tmp_path / "file", PIECES["of whole pages"])
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def test_a_limit_inside_a_page_is_told_as_what_it_is(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    file = AtomicFile(tmp_path / "file")
    file.append(MEMORY[:DIRECT_BYTES].data)
    resource.setrlimit(resource.RLIMIT_FSIZE, (DIRECT_BYTES + 5000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            file.append(MEMORY[: 2 * DIRECT_BYTES].data)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    file.discard()
    assert list(tmp_path.iterdir()) == []


def test_chunks_that_go_past_the_page_cache_follow_each_other_in_shards(tmp_path):
    rows = CHANCE.normal(size=(3000, 512)).astype(np.float32)
    spec = ArraySpec("own", "float32", 512, shard_rows=2048, chunk_rows=DIRECT_BYTES // 2048, hook_point=None)
    found = []
    with ThreadPoolExecutor(2) as helpers:
        column = Column(open_storage(tmp_path), spec, helpers)
        for block, stop in enumerate((2048, 3000)):
            for start in range(2048 * block, stop, 700):
                column.append(rows[start : min(stop, start + 700)], block)
            found.append((column.finish_shard(block), tmp_path / "own" / "c" / str(block) / "0", rows[2048 * block : stop]))
    for stored, path, expected in found:
        content = path.read_bytes()
        assert content[: expected.nbytes] == expected.tobytes()
        assert not any(content[expected.nbytes : -(16 * 4 + 4)])
        assert (stored.bytes, stored.crc32c) == (len(content), f"{crc32c.crc32c(content):08x}")
