"""Processes that write one store together die at any instant, and nothing of the store tells."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

KILLER = Path(__file__).with_name("share_killer.py")
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def kill(where: str, *, stores: int, kills_per_store: int, seed: int) -> int:
    """How many processes were killed while they wrote so many stores."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        command = [sys.executable, str(KILLER), folder, where, str(stores), str(kills_per_store), str(seed)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, check=False, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    return int(done.stdout)


def test_one_of_two_writers_killed_anywhere_leaves_a_store_that_resumes_to_the_same_bytes():
    assert kill("folder", stores=3, kills_per_store=4, seed=1) >= 6


@pytest.mark.slow
def test_one_of_two_writers_killed_at_many_instants():
    assert kill("folder", stores=12, kills_per_store=8, seed=3) >= 48


def test_one_of_two_writers_of_a_bucket_killed_at_any_request_leaves_a_store_that_resumes_to_the_files_of_a_folder(place):
    assert kill(place, stores=1, kills_per_store=3, seed=4) >= 2
