"""The pump between decoding and the disk: nothing changes by it, nothing piles up, and any stage can fail."""

import contextlib
import hashlib
import itertools
import subprocess
import threading
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from harvest_memory import measure_peaks
from open_clip.transformer import ResidualAttentionBlock
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from thresher.config import validate
from thresher.data.records import EncodedRecord, Record
from thresher.data.sources import MemorySource, open_source
from thresher.data.store import open_store
from thresher.errors import ModelError, SourceError, StoreError
from thresher.harvest.adapters import open_adapter
from thresher.harvest.forward import Reader
from thresher.harvest.prepare import Preparer, prepare_ahead
from thresher.harvest.pump import IN_FLIGHT, pump
from thresher.harvest.run import HarvestConfig, run

N = 23
STAGES = ("read", "prepare", "finish", "store-writer", "store-helper")


def make_config(out: Path, folder: Path, **changes: Any) -> HarvestConfig:
    values: dict[str, Any] = {
        "out": out,
        "model": {"kind": "open-clip", "name": f"local-dir:{folder}"},
        "source": {"kind": "scenes", "n_records": N, "image_size": 24, "captions_per_image": 2},
        "hook_points": ["vision.0", "vision.1", "vision.embed", "text.1"],
        "batch_size": 2,
        "items_per_shard": 4,
        "thumbnail": 0,
        "device": "cpu",
    }
    return validate(HarvestConfig, values | changes, "test")


def digest_files(folder: Path) -> dict[str, str]:
    skipped = {".lock", "config.yaml", "provenance.json"}
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in skipped]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def find_stages() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(STAGES)]


@pytest.mark.parametrize("n", [0, 1, 2, 3, 4, 9])
def test_every_batch_comes_once_and_in_order(n: int) -> None:
    assert list(pump(range(n), lambda i: i + 1, lambda i: 10 * i)) == [10 * (i + 1) for i in range(n)]


def test_no_batch_is_launched_while_the_caller_is_behind() -> None:
    launched: list[int] = []
    for taken, batch in enumerate(pump(range(20), lambda i: launched.append(i) or i, lambda i: i), start=1):
        assert batch == taken - 1
        assert len(launched) <= taken + IN_FLIGHT
    assert launched == list(range(20))


@pytest.mark.parametrize("bad", [0, 1, 5, 8])
@pytest.mark.parametrize("stage", ["given", "launch", "finish"])
def test_what_precedes_an_error_is_handed_on(stage: str, bad: int) -> None:
    closed: list[bool] = []

    def fail(name: str) -> Callable[[int], int]:
        return lambda i: 1 // 0 if name == stage and i == bad else i

    def give() -> Generator[int, None, None]:
        try:
            yield from map(fail("given"), range(9))
        finally:
            closed.append(True)

    found: list[int] = []
    with pytest.raises(ZeroDivisionError):
        found.extend(pump(give(), fail("launch"), fail("finish")))
    assert found == list(range(bad))
    assert closed == [True]
    assert find_stages() == []


def test_the_first_error_in_the_order_of_batches_is_raised() -> None:
    def launch(batch: int) -> int:
        if batch == 3:
            raise KeyError("launch of batch 3")
        return batch

    def finish(batch: int) -> int:
        if batch == 2:
            raise ValueError("finish of batch 2")
        return batch

    with pytest.raises(ValueError, match="finish of batch 2"):
        list(pump(range(9), launch, finish))


def test_a_caller_that_leaves_stops_everything(open_clip_folder: Path, tmp_path: Path) -> None:
    prepare, reader = open_parts(make_config(tmp_path, open_clip_folder))
    batches = reader.read(prepare_ahead(prepare, range(prepare.n_batches), 2))
    next(batches)
    batches.close()
    assert find_stages() == []


def open_parts(config: HarvestConfig) -> tuple[Preparer, Reader]:
    adapter, source = open_adapter(config.model, torch.device("cpu")), open_source(config.source)
    points = adapter.resolve(config.hook_points, source.modalities)
    return Preparer(config, source, adapter, source.modalities), Reader(config, adapter, points, {})


def test_rows_are_those_of_one_batch_after_another(open_clip_folder: Path, tmp_path: Path) -> None:
    config = make_config(tmp_path, open_clip_folder, hook_points=["vision.1"])
    prepare, reader = open_parts(config)
    adapter = open_adapter(config.model, torch.device("cpu"))
    points = adapter.resolve(config.hook_points, ["image"])
    numbers = range(prepare.n_batches)
    for number, batch in zip(numbers, reader.read(prepare_ahead(prepare, numbers, 3)), strict=True):
        (chunk,) = (chunk for chunk in prepare.prepare(number, prepare.read(number)).chunks if chunk.inputs.modality == "image")
        with torch.inference_mode():
            expected = adapter.capture(chunk.inputs, points)["vision.1"]
        assert batch.index == number
        assert torch.equal(batch.rows["image.tokens"].activations["vision.1"], expected.flatten(0, 1))


class CountingSource:
    """Records of a source, and how far ahead of the store each was read."""

    def __init__(self, inner: MemorySource, commits: Path) -> None:
        self._inner = inner
        self._commits = commits
        self.modalities, self.concepts, self.fingerprint = inner.modalities, inner.concepts, inner.fingerprint
        self.ahead: list[int] = []

    def __len__(self) -> int:
        return len(self._inner)

    def records(self, start: int = 0, stop: int | None = None) -> Iterator[Record]:
        return (record.decode() for record in self.read(start, stop))

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[EncodedRecord]:
        self.ahead.append(start - len(list(self._commits.glob("*.json"))))
        return iter(self._inner.read(start, stop))


def test_no_more_batches_are_in_flight_than_the_stages_hold(open_clip_folder: Path, tmp_path: Path) -> None:
    scenes = open_source(make_config(tmp_path, open_clip_folder).source)
    source = CountingSource(MemorySource(scenes.records()), tmp_path / "store" / "commits" / "image.tokens")
    changes = {
        "source": {"kind": "in-memory"},
        "batch_size": 1,
        "items_per_shard": 1,
        "workers": 2,
        "hook_points": ["vision.1"],
    }
    run(make_config(tmp_path / "store", open_clip_folder, **changes), source=source)
    # Of 17 rows an item, a shard of 16 rows: every batch completes one. Prepared ahead: 3; launched: IN_FLIGHT and the one
    # that is being launched; at the writer: two that wait, one that is written, one that is handed over.
    assert len(source.ahead) == N
    assert 0 < max(source.ahead) <= 3 + IN_FLIGHT + 1 + 4


@contextlib.contextmanager
def spoil(change: Callable[[Tensor], Tensor], call: int) -> Iterator[None]:
    """From that call on, what a block of an open_clip model gives is changed."""
    calls = itertools.count()

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        is_meant = isinstance(module, ResidualAttentionBlock) and next(calls) >= call
        return change(output) if is_meant else None

    handle = nn.modules.module.register_module_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def run_out_of_memory(output: Tensor) -> Tensor:
    # More than any machine has.
    return torch.empty(2**60)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """An empty file system of 300 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    yield folder
    # Lazily: the traceback of the failure may still hold a file open.
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fail_then_mend(config: HarvestConfig, failing: Any, error: type[Exception], words: str) -> None:
    """A harvest that fails for a reason leaves a prefix of the store, no thread, and goes on when the reason is gone."""
    with failing, pytest.raises(error, match=words):
        run(config)
    assert find_stages() == []
    store = open_store(config.out, incomplete="prefix")
    stored = {name: store.read(name, 0, store.rows(name)) for name in store.hook_points}
    assert all(len(values) for values in stored.values())
    if error is StoreError:
        subprocess.run(["mount", "-o", "remount,size=64m", str(config.out.parent)], check=True)
    finished = open_store(run(config))
    for name, values in stored.items():
        assert torch.equal(finished.read(name, 0, len(values)), values)
    whole = run(make_config(config.out.parent / "whole", Path(str(config.model.name).removeprefix("local-dir:"))))
    assert digest_files(config.out) == digest_files(whole)


CALL = 40
"""A call of a block in the middle of the harvest: each batch has two of the vision tower and four of the text tower."""


def test_a_model_that_runs_out_of_memory_stops_the_harvest(open_clip_folder: Path, tmp_path: Path) -> None:
    config = make_config(tmp_path / "store", open_clip_folder)
    fail_then_mend(config, spoil(run_out_of_memory, CALL), RuntimeError, "memory|storage size")


def test_values_that_are_not_finite_stop_the_harvest(open_clip_folder: Path, tmp_path: Path) -> None:
    config = make_config(tmp_path / "store", open_clip_folder)
    fail_then_mend(config, spoil(lambda output: output * torch.nan, CALL), ModelError, "NaN")


def test_a_full_disk_stops_the_harvest(open_clip_folder: Path, disk: Path) -> None:
    config = make_config(disk / "store", open_clip_folder)
    fail_then_mend(config, contextlib.nullcontext(), StoreError, "No space left on device.*rerun the same harvest command")


def test_an_unreadable_image_stops_the_harvest_in_its_turn(open_clip_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    source = open_source(make_config(tmp_path, open_clip_folder).source)
    for number, record in enumerate(source.records()):
        record.image.save(folder / f"{number:02}.png")
    sound = (folder / "15.png").read_bytes()
    changes = {"source": {"kind": "image-captions", "folder": folder}, "hook_points": ["vision.1"], "on_unreadable": "stop"}
    (folder / "15.png").write_bytes(bytes(len(sound)))
    with pytest.raises(SourceError, match=r"15\.png"):
        run(make_config(tmp_path / "store", open_clip_folder, **changes))
    assert find_stages() == []
    # All that precedes it in whole shards of 4 images is stored.
    assert len(open_store(tmp_path / "store", incomplete="prefix").items("image")) >= 12
    (folder / "15.png").write_bytes(sound)
    finished = run(make_config(tmp_path / "store", open_clip_folder, **changes))
    assert digest_files(finished) == digest_files(run(make_config(tmp_path / "whole", open_clip_folder, **changes)))


def test_nan_that_only_bfloat16_makes_is_explained(open_clip_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for path in open_clip_folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    weights = load_file(folder / "open_clip_model.safetensors")
    block = "visual.transformer.resblocks.1"
    # The largest float32 rounds to infinity; in float32 it is multiplied by what is tiny, and read by nothing.
    weights[f"{block}.mlp.c_fc.weight"][0, 0] = torch.finfo(torch.float32).max
    weights[f"{block}.ln_2.weight"][0], weights[f"{block}.ln_2.bias"][0] = 1e-35, 0.0
    weights[f"{block}.mlp.c_proj.weight"][:, 0] = 0.0
    save_file(weights, folder / "open_clip_model.safetensors")
    run(make_config(tmp_path / "exact", folder))
    model = {"kind": "open-clip", "name": f"local-dir:{folder}", "precision": "bfloat16"}
    with pytest.raises(ModelError, match=r"hook point vision\.1, item .*the model gives NaN in bfloat16; .*float32"):
        run(make_config(tmp_path / "half", folder, model=model))


COMPILED = """
import sys
from pathlib import Path
import torch
from thresher.config import validate
from thresher.data.store import open_store
from thresher.errors import ModelError
from thresher.harvest.adapters import open_adapter
from thresher.harvest.run import HarvestConfig, run

values = {"model": {"kind": "open-clip", "name": f"local-dir:{sys.argv[1]}"}, "batch_size": 4, "device": "cpu", "thumbnail": 0,
    "source": {"kind": "scenes", "n_records": 6, "image_size": 24}, "hook_points": ["vision.0", "vision.1.z", "vision.embed"]}
plain, compiled = (
    open_store(run(validate(HarvestConfig, values | {"out": Path(sys.argv[2]) / str(flag), "compile": flag}, "test")))
    for flag in (False, True)
)
for name in plain.hook_points:
    mine, other = (store.read(name, 0, store.rows(name)) for store in (compiled, plain))
    torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)
assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1, "nothing was compiled"
adapter = open_adapter(validate(HarvestConfig, values | {"out": "x"}, "test").model, torch.device("cpu"))
adapter.compile(adapter.resolve(["vision.1"], ["image"]))
try:
    adapter.resolve(["vision.0.neurons"], ["image"])
except ModelError as error:
    assert "compiled for others" in str(error)
else:
    raise SystemExit("a hook inside of what is compiled was accepted")
"""


@pytest.mark.slow
def test_a_compiled_model_gives_the_same_rows(open_clip_folder: Path, tmp_path: Path, python: Path) -> None:
    # In a process without jaxtyping's import hook, which torch.compile cannot trace.
    command = [python, "-c", COMPILED, str(open_clip_folder), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    small, large = measure_peaks(tmp_path, 80)
    assert large.rows > 9 * small.rows
    assert large.peak <= 1.1 * small.peak
