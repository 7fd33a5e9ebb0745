"""Laws of a harvest by several processes: the store does not tell how many there were, nor which of them died."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from thresher.config import dump_config, validate
from thresher.data.store import open_store, verify_store
from thresher.harvest.run import HarvestConfig, run
from thresher.testing.store import tree

SAME = {".lock", "config.yaml", "provenance.json"}
"""Files that say where and by what a store was made."""


class Launched(NamedTuple):
    """How a launch ended."""

    codes: list[int]
    """Exit codes by rank; negative: the signal that ended it."""
    logs: list[str]


Launch = Callable[..., Launched]


def make_config(out: Path, folder: Path, **changes: Any) -> HarvestConfig:
    values: dict[str, Any] = {
        "out": out,
        "model": {"kind": "open-clip", "name": f"local-dir:{folder}"},
        "source": {"kind": "scenes", "n_records": 45, "image_size": 24, "captions_per_image": 2},
        "hook_points": ["vision.1", "vision.embed", "text.1", "text.embed"],
        "batch_size": 4,
        "items_per_shard": 5,
        "thumbnail": 8,
        "device": "cpu",
    }
    return validate(HarvestConfig, values | changes, "test")


def read_files(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in tree(folder).items() if name not in SAME}


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launch]:
    """Starts n processes of one launch and waits for them."""
    folder = tmp_path_factory.mktemp("launch")
    command = [sys.executable, str(Path(__file__).with_name("launcher.py"))]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"

        def start(n: int, settings: HarvestConfig, *overrides: str, kill: tuple[int, int] | None = None) -> Launched:
            (folder / "harvest.yaml").write_text(dump_config(settings))
            arguments = ["harvest", str(folder / "harvest.yaml"), *overrides]
            server.stdin.write(json.dumps({"n": n, "command": arguments, "log": str(folder), "kill": kill}) + "\n")  # type: ignore[union-attr]
            server.stdin.flush()  # type: ignore[union-attr]
            codes = json.loads(server.stdout.readline())  # type: ignore[union-attr]
            return Launched(codes, [(folder / f"{rank}.log").read_text() for rank in range(n)])

        yield start
        server.stdin.close()


@pytest.fixture(scope="module")
def alone(open_clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a harvest by one process."""
    return read_files(run(make_config(tmp_path_factory.mktemp("alone") / "store", open_clip_folder)))


def test_two_processes_write_what_one_writes(
    launch: Launch, open_clip_folder: Path, tmp_path: Path, alone: dict[str, bytes]
) -> None:
    settings = make_config(tmp_path / "store", open_clip_folder)
    ended = launch(2, settings)
    assert ended.codes == [0, 0], ended.logs
    assert read_files(settings.out) == alone
    assert verify_store(settings.out, level="checksums") == []
    first, second = ended.logs
    assert f"harvest: {settings.out}: 45 image items, 90 text items" in first
    assert second == ""
    again = launch(2, settings)
    assert again.codes == [0, 0]
    assert "is complete" in again.logs[0]


@pytest.mark.parametrize(("killed", "then"), [(0, 3), (1, 1)])
def test_a_killed_process_stops_the_others_and_any_number_finishes(
    launch: Launch, open_clip_folder: Path, tmp_path: Path, alone: dict[str, bytes], killed: int, then: int
) -> None:
    settings = make_config(tmp_path / "store", open_clip_folder)
    ended = launch(2, settings, kill=(killed, 8 if killed else 2))
    assert ended.codes[killed] == -signal.SIGKILL
    assert ended.codes[1 - killed] == 2
    assert "another process of this launch has ended" in ended.logs[1 - killed]
    store = open_store(settings.out, incomplete="prefix")
    assert not store.is_complete
    assert any(settings.out.glob("commits/image.tokens/*.json"))
    assert launch(then, settings).codes == [0] * then
    assert read_files(settings.out) == alone


def test_rows_that_depend_on_values_are_counted_by_computing_them(
    launch: Launch, open_clip_folder: Path, tmp_path: Path
) -> None:
    whole = open_store(run(make_config(tmp_path / "whole", open_clip_folder, hook_points=["vision.1"])))
    bound = whole.moments("vision.1").norm_quantiles[0.75]
    policy = {"outliers": {"above": bound, "action": "drop"}, "hook_points": ["vision.1"]}
    by_one = run(make_config(tmp_path / "one", open_clip_folder, **policy))
    by_two = make_config(tmp_path / "two", open_clip_folder, **policy)
    assert launch(2, by_two).codes == [0, 0]
    assert 0 < open_store(by_one).rows("vision.1") < 45 * 17
    assert read_files(by_two.out) == read_files(by_one)


def test_an_error_of_any_process_reaches_its_exit_code_and_stops_the_others(
    launch: Launch, open_clip_folder: Path, tmp_path: Path
) -> None:
    settings = make_config(tmp_path / "store", open_clip_folder)
    run(settings)
    ended = launch(2, settings, "dtype=float16")
    assert ended.codes == [2, 2]
    assert "holds a complete harvest of something else" in ended.logs[0]
    assert "stops because process 0 did" in ended.logs[1]


def test_accelerate_launch_harvests(open_clip_folder: Path, tmp_path: Path, alone: dict[str, bytes]) -> None:
    settings = make_config(tmp_path / "store", open_clip_folder)
    (tmp_path / "harvest.yaml").write_text(dump_config(settings))
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command = [*launcher, "--main_process_port", "0", "-m", "thresher", "harvest", str(tmp_path / "harvest.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == [str(settings.out)]
    assert read_files(settings.out) == alone
