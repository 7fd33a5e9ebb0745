"""Rows read past the page cache are the same bit for bit; where that is not possible they come through it."""

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from thresher.data import gather, reads
from thresher.data.gather import LINE_BYTES, Gatherer, ReusedMemory, allocate_rows
from thresher.data.reads import choose_reads, find_cache_room
from thresher.data.store import Batch, HookPointInfo, HookPointSpec, Item, Rows, StoreWriter, open_store
from thresher.data.store.direct import ALIGNMENT, BUFFER_BYTES, AnnouncedFile, Buffers, DirectFile, DirectStorage
from thresher.data.stream import ActivationStream

CPU = torch.device("cpu")
HOOK_POINTS = (
    HookPointSpec("vision.odd", "image", "image.items", 33, "bfloat16"),
    HookPointSpec("vision.wide", "image", "image.items", 1001, "float16"),
    HookPointSpec("vision.even", "image", "image.items", 64, "float32"),
)
N_ITEMS = 3001


def accepts_direct(folder: Path) -> bool:
    """Whether the file system of a folder has such reads; a tmpfs has them from Linux 6.6 on."""
    (folder / "probe").write_bytes(bytes(ALIGNMENT))
    try:
        DirectFile(folder / "probe", Buffers()).close()
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reads")
    items = [Item(f"{i}", i, "ok", None, None, ()) for i in range(N_ITEMS)]
    x = {spec.name: torch.randn(N_ITEMS, spec.width).to(getattr(torch, spec.dtype)) for spec in HOOK_POINTS}
    rows = Rows(torch.arange(N_ITEMS), torch.zeros(N_ITEMS).int(), None, x)
    with StoreWriter(folder / "store", {"of": "reads"}, HOOK_POINTS, (), items_per_shard=1000) as writer:
        writer.write(Batch(0, {"image": items}, [], {"image.items": rows}))
        writer.finish()
    return open_store(folder / "store")


@pytest.fixture
def past_cache(store):
    """The same store past the page cache, or the reason why not."""
    if not accepts_direct(Path(store.path).parent):
        pytest.skip("the file system of the temporary folder has no O_DIRECT")
    return store.bypass_cache()


@pytest.mark.parametrize("spec", HOOK_POINTS, ids=lambda spec: spec.name)
@pytest.mark.parametrize(("start", "stop"), [(0, N_ITEMS), (0, 0), (0, 1), (7, 1500), (512, 1024), (N_ITEMS - 1, N_ITEMS)])
def test_rows_read_past_the_cache_are_the_same_bit_for_bit(store, past_cache, spec, start, stop) -> None:
    for shift in (0, 1):
        # Memory that begins with a page, and memory that does not.
        memory = allocate_rows((N_ITEMS + 1, spec.width), getattr(torch, spec.dtype), CPU)
        out = memory[shift : shift + stop - start]
        past_cache.read_into(spec.name, start, out)
        assert torch.equal(out, store.read(spec.name, start, stop))


def test_nothing_is_written_beside_what_was_asked_for(past_cache) -> None:
    memory = allocate_rows((4096, 33), torch.bfloat16, CPU)
    memory.fill_(7)
    past_cache.read_into("vision.odd", 0, memory[:2100])
    assert (memory[2100:] == 7).all()


@pytest.mark.parametrize("size", [0, 1, ALIGNMENT, ALIGNMENT + 1, BUFFER_BYTES + 3 * ALIGNMENT + 5])
def test_any_stretch_of_a_file_is_read_up_to_its_end(tmp_path, size) -> None:
    if not accepts_direct(tmp_path):
        pytest.skip("the file system of the temporary folder has no O_DIRECT")
    content = np.random.default_rng(size).bytes(size)
    (tmp_path / "file").write_bytes(content)
    file = DirectFile(tmp_path / "file", Buffers())
    assert file.size == size
    memory = memoryview(allocate_rows((1, BUFFER_BYTES + 16 * ALIGNMENT), torch.float32, CPU).numpy()).cast("B")
    for offset in (0, 1, ALIGNMENT - 1, ALIGNMENT, max(0, size - 2)):
        for length in (1, ALIGNMENT, size + 3 * ALIGNMENT):
            n_read = file.read_into(offset, memory[:length])
            assert bytes(memory[:n_read]) == content[offset : offset + length]
    file.close()


def test_a_file_system_without_such_reads_is_read_through_the_cache_and_says_so_once() -> None:
    storage = DirectStorage(Path("/proc"))
    if not Path("/proc/version").exists():
        pytest.skip("no /proc, whose files refuse O_DIRECT")
    with pytest.warns(UserWarning, match="/proc/version: read through the page cache") as warned:
        files = [storage.open("version") for _ in range(2)]
    assert len(warned) == 1
    out = bytearray(5)
    assert all(isinstance(file, AnnouncedFile) and file.read_into(0, memoryview(out)) == 5 for file in files)
    assert bytes(out) == b"Linux"


def test_a_missing_file_is_no_reason_to_fall_back(tmp_path) -> None:
    with pytest.raises(FileNotFoundError):
        DirectStorage(tmp_path).open("missing")


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="no /dev/shm, the tmpfs of a Linux machine")
def test_a_stream_from_a_tmpfs_is_the_same_whether_that_has_direct_reads_or_not(store) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        opened = open_store(Path(shutil.copytree(store.path, Path(folder) / "store")))
        refuses = pytest.warns(UserWarning, match="read through the page cache")
        with contextlib.nullcontext() if accepts_direct(Path(folder)) else refuses:
            found = stream_rows(opened, reads="direct")
    assert torch.equal(found, stream_rows(store, reads="cached"))


def stream_rows(store, **settings):
    stream = ActivationStream(
        store,
        ["vision.odd"],
        batch_size=500,
        holdout=0.1,
        seed=0,
        pool_rows=800,
        balance="rows",
        device=CPU,
        **settings,
    )
    batches = iter(stream)
    x = torch.cat([next(batches).x for _ in range(12)])
    batches.close()
    stream.close()
    return x


def test_batches_do_not_depend_on_how_rows_are_read(store, past_cache) -> None:
    assert torch.equal(stream_rows(store, reads="direct"), stream_rows(store, reads="cached"))


INFO = HookPointInfo(*HOOK_POINTS[0], rows=1000)
N_BYTES = 1000 * 66


@pytest.mark.parametrize(
    ("room", "n_shares", "expected"),
    [
        (3 * N_BYTES, 1, "cached"),
        (2 * N_BYTES + N_BYTES // 2, 1, "cached"),
        (2 * N_BYTES + N_BYTES // 2 - 1, 1, "direct"),
        (N_BYTES, 2, "cached"),
        (None, 1, "cached"),
    ],
)
def test_only_a_store_that_does_not_fit_beside_the_pool_is_read_past_the_cache(room, n_shares, expected) -> None:
    assert choose_reads("auto", [INFO, INFO], pool_rows=500, n_shares=n_shares, room=room) == expected
    assert choose_reads("direct", [INFO], pool_rows=500, n_shares=n_shares, room=room) == "direct"


def test_the_room_for_the_cache_is_the_least_that_the_system_grants(tmp_path, monkeypatch) -> None:
    (tmp_path / "outer" / "inner").mkdir(parents=True)
    (tmp_path / "meminfo").write_text("MemTotal:       100 kB\nMemAvailable:    64 kB\n")
    (tmp_path / "group").write_text("0::/outer/inner\n")
    for name, path in (("MEMORY", "meminfo"), ("OWN_GROUP", "group"), ("GROUPS", ".")):
        monkeypatch.setattr(reads, name, tmp_path / path)
    assert find_cache_room() == 64 * 1024
    (tmp_path / "outer" / "inner" / "memory.max").write_text("max\n")
    assert find_cache_room() == 64 * 1024
    (tmp_path / "outer" / "memory.max").write_text("5000\n")
    assert find_cache_room() == 5000
    monkeypatch.setattr(reads, "MEMORY", tmp_path / "missing")
    assert find_cache_room() is None


def is_cached(descriptor: int) -> bool | None:
    """Whether the beginning of a file is in the page cache; None where the file system does not say. May begin to read it."""
    try:
        return os.preadv(descriptor, [bytearray(10)], 0, os.RWF_NOWAIT) == 10
    except BlockingIOError:
        return False
    except OSError:
        return None


def test_what_is_read_past_the_cache_does_not_fill_it(store, past_cache) -> None:
    names = ("vision.even", "vision.wide")
    probe, descriptor = (os.open(Path(store.path) / store.list_shards(name)[0][0], os.O_RDONLY) for name in names)
    for each in (probe, descriptor):
        os.posix_fadvise(each, 0, 0, os.POSIX_FADV_DONTNEED)
    if is_cached(probe) is not False:
        pytest.skip("the file system keeps its files in memory, or does not say what it keeps")
    past_cache.read("vision.wide", 0, 900)
    assert is_cached(descriptor) is False
    store.read("vision.wide", 0, 900)
    assert is_cached(descriptor)
    for each in (probe, descriptor):
        os.close(each)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(("width", "n"), [(1, 1), (33, 0), (33, 7), (16, 1), (48, 5001), (40_000, 30)])
@pytest.mark.parametrize("compiled_from", [0, 1 << 40], ids=["compiled", "by blocks"])
def test_gathered_rows_are_those_asked_for_in_float32(dtype, width, n, compiled_from, monkeypatch) -> None:
    monkeypatch.setattr(gather, "COMPILED_ELEMENTS", compiled_from)
    rows = allocate_rows((97, width), dtype, CPU)
    rows.copy_(torch.randn(97, width))
    rows[0], rows[1], rows[2] = -0.0, torch.inf, torch.nan
    places = np.random.default_rng(0).integers(0, 97, n)
    gatherer = Gatherer(rows)
    for shift in (0, 1):
        # Memory that begins with a line of the cache, and memory that does not.
        memory = torch.full((n * width + 32,), 7.0)
        out = memory[shift : shift + n * width].view(n, width)
        gatherer.gather(places, out)
        assert torch.equal(out.view(torch.int32), rows[torch.from_numpy(places)].float().view(torch.int32))
        assert (memory[shift + n * width :] == 7).all()
    gatherer.close()


def test_batches_begin_with_a_line_of_the_cache_that_they_can_be_written_past() -> None:
    memory = ReusedMemory((3, 17), CPU)
    assert [memory.take().data_ptr() % LINE_BYTES for _ in range(20)] == [0] * 20
