"""Laws of the engines: what died is tried again up to a limit, a mistake is not, and nothing outlives its batch."""

import importlib.util
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from thresher.batch.engines import MISTAKE, STOPPED, Engine, LocalEngine, Task, count_attempts

DIE_TWICE = """
import os, sys
place = sys.argv[1]
tried = len(open(place).read()) if os.path.exists(place) else 0
open(place, "a").write("x")
if tried < 2:
    os.kill(os.getpid() if sys.argv[2] == "self" else os.getppid(), 9)
    sys.stdin.read()
print("done")
"""


def make_task(folder: Path, script: str, *arguments: str) -> Task:
    return Task([sys.executable, "-S", "-c", script, *arguments], folder / "unit.log")


@pytest.fixture(scope="module")
def ray_engine() -> Iterator[Engine]:
    """An engine on a Ray that is started here."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("needs the extra `ray`")
    from thresher.batch.ray_engine import RayEngine

    engine = RayEngine(retries=2, cpus=0.5, gpus=0.0)
    yield engine
    engine.close()


@pytest.fixture(params=["local", "ray"])
def engine(request: pytest.FixtureRequest) -> Engine:
    """Two units at once, two retries."""
    return LocalEngine(2, 2) if request.param == "local" else request.getfixturevalue("ray_engine")


def test_what_died_is_tried_again_and_its_attempts_are_in_one_log(engine: Engine, tmp_path: Path) -> None:
    task = make_task(tmp_path, DIE_TWICE, str(tmp_path / "tried"), "self")
    assert engine.run(task) == 0
    assert count_attempts(task.log) == 3
    assert task.log.read_text().splitlines()[-1] == "done"


def test_the_number_of_attempts_has_a_limit(engine: Engine, tmp_path: Path) -> None:
    task = make_task(tmp_path, "import os; os.kill(os.getpid(), 9)")
    assert engine.run(task) == -signal.SIGKILL
    assert count_attempts(task.log) == 3


def test_a_mistake_is_not_tried_again(engine: Engine, tmp_path: Path) -> None:
    task = make_task(tmp_path, "import sys; sys.exit(2)")
    assert engine.run(task) == MISTAKE
    assert count_attempts(task.log) == 1


def test_a_killed_worker_of_ray_is_replaced_and_its_unit_tried_again(ray_engine: Engine, tmp_path: Path) -> None:
    task = make_task(tmp_path, DIE_TWICE, str(tmp_path / "tried"), "parent")
    assert ray_engine.run(task) == 0
    assert count_attempts(task.log) == 3


def test_a_stopped_engine_ends_what_runs_and_starts_nothing(tmp_path: Path) -> None:
    local = LocalEngine(1, 2)
    task = make_task(tmp_path, f"open({str(tmp_path / 'runs')!r}, 'w').close(); import sys; sys.stdin.read()")
    ended: list[int] = []
    runner = threading.Thread(target=lambda: ended.append(local.run(task)))
    runner.start()
    waited = threading.Event()
    while not (tmp_path / "runs").exists():
        waited.wait(0.005)
    local.stop()
    runner.join()
    assert ended == [STOPPED]
    assert local.run(task) == STOPPED
    assert count_attempts(task.log) == 1


def test_units_at_once_share_the_processors_unless_told_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = make_task(tmp_path, "import os; print('threads', os.environ.get('OMP_NUM_THREADS'))")
    told = []
    for slots, threads in ((1, None), (1000, None), (1000, "3")):
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        if threads:
            monkeypatch.setenv("OMP_NUM_THREADS", threads)
        assert LocalEngine(slots, 0).run(task) == 0
        told.append(task.log.read_text().split()[-1])
    assert told == ["None", "1", "3"]
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert LocalEngine(2, 0).run(task) == 0
    assert int(task.log.read_text().split()[-1]) == max(1, len(os.sched_getaffinity(0)) // 2)


ORPHAN = """
import sys
from pathlib import Path
from thresher.batch.engines import Task, start
start(Task([sys.executable, "-S", "-c", sys.argv[2]], Path(sys.argv[1])), {})
"""


def test_a_unit_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    follow = f"import sys; sys.stdin.read(); open({str(tmp_path / 'ended')!r}, 'w').close()"
    subprocess.run([sys.executable, "-c", ORPHAN, str(tmp_path / "log"), follow], check=True)
    waited = threading.Event()
    while not (tmp_path / "ended").exists():
        waited.wait(0.005)
