"""Laws of training by several processes: the result is that of one, whoever has which rows and which atoms."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest


class Launched(NamedTuple):
    """How a launch ended."""

    codes: list[int]
    """Exit codes by rank; negative: the signal that ended it."""
    logs: list[str]


Launch = Callable[..., Launched]


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launch]:
    """Lets n processes do a check of `parallel_checks` and waits for them."""
    folder = tmp_path_factory.mktemp("launch")
    command = [sys.executable, str(Path(__file__).with_name("parallel_launcher.py"))]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CHECK_FOLDER": str(folder)}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"

        def start(n: int, check: str, *arguments: object) -> Launched:
            asked = {"n": n, "check": check, "arguments": arguments, "log": str(folder)}
            server.stdin.write(json.dumps(asked) + "\n")  # type: ignore[union-attr]
            server.stdin.flush()  # type: ignore[union-attr]
            codes = json.loads(server.stdout.readline())  # type: ignore[union-attr]
            return Launched(codes, [(folder / f"{rank}.log").read_text() for rank in range(n)])

        yield start
        server.stdin.close()


def passed(ended: Launched) -> bool:
    """Whether all processes ended well; shows what the others wrote."""
    sys.stdout.write("\n".join(log for code, log in zip(ended.codes, ended.logs, strict=True) if code))
    return not any(ended.codes)


@pytest.mark.parametrize("n", [2, 3])
def test_shared_rows_train_like_one_process_with_the_whole_batch(launch: Launch, n: int) -> None:
    assert passed(launch(n, "exchange"))
    assert passed(launch(n, "share_rows"))


@pytest.mark.parametrize(("n", "n_shards"), [(2, 2), (3, 3), (4, 2)])
def test_split_dictionaries_train_like_whole_ones(launch: Launch, n: int, n_shards: int) -> None:
    assert passed(launch(n, "split_atoms", n_shards))
