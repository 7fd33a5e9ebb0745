"""Laws of a harvest by several processes: the store does not tell how many there were, nor which of them died."""

import os
import random
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from thresher.config import dump_config, validate
from thresher.data.store import open_store, unlock_store, verify_store
from thresher.harvest.run import HarvestConfig, run
from thresher.testing.store import tree

SAME = {".lock", "config.yaml", "provenance.json"}
"""Files that say where and by what a store was made."""


Launch = Callable[..., Any]


def make_config(out: Path | str, folder: Path, **changes: Any) -> HarvestConfig:
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


def read_files(folder: Path | str) -> dict[str, bytes]:
    return {name: content for name, content in tree(folder).items() if name not in SAME}


@pytest.fixture(scope="module")
def launch(
    open_launcher: Callable[[Path], AbstractContextManager[Launch]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Launch]:
    """Starts a harvest by n processes of one launch and waits for them; `kill` as in `launched.command`."""
    file = tmp_path_factory.mktemp("ranks") / "harvest.yaml"
    with open_launcher(Path(__file__).with_name("launched.py")) as start:

        def harvest(n: int, settings: HarvestConfig, *overrides: str, kill: tuple[int, int, float] | None = None) -> Any:
            file.write_text(dump_config(settings))
            return start(n, "command", ["harvest", str(file), *overrides], kill)

        yield harvest


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
    ended = launch(2, settings, kill=(killed, 8 if killed else 2, 0.0))
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


def test_processes_killed_at_random_moments_lose_nothing_that_is_committed(
    launch: Launch, open_clip_folder: Path, tmp_path: Path, alone: dict[str, bytes]
) -> None:
    settings, chance = make_config(tmp_path / "store", open_clip_folder), random.Random(5)
    committed: dict[Path, tuple[int, int]] = {}
    for _ in range(3):
        n = chance.choice((2, 3))
        ended = launch(n, settings, kill=(chance.randrange(n), 0, 0.1 * chance.random()))
        stats = {file: file.stat() for file in settings.out.glob("commits/*/*.json")}
        found = {file: (stat.st_ino, stat.st_mtime_ns) for file, stat in stats.items()}
        assert found | committed == found
        committed = found
        if -signal.SIGKILL not in ended.codes:
            break
    assert committed
    assert launch(2, settings).codes == [0, 0]
    assert read_files(settings.out) == alone


def test_accelerate_launch_fills_a_bucket_where_another_number_of_processes_was_killed(
    launch: Launch, open_clip_folder: Path, tmp_path: Path, place: str, alone: dict[str, bytes], python: Path
) -> None:
    settings = make_config(place, open_clip_folder)
    ended = launch(3, settings, kill=(0, 2, 0.0))
    assert ended.codes[0] == -signal.SIGKILL
    assert ended.codes[1:] == [2, 2]
    assert not open_store(place, incomplete="prefix").is_complete
    unlock_store(place)
    (tmp_path / "harvest.yaml").write_text(dump_config(settings))
    launcher = [python, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command = [*launcher, "--main_process_port", "0", "-m", "thresher", "harvest", str(tmp_path / "harvest.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == [place]
    assert read_files(place) == alone
