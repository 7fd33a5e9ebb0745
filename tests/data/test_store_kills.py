"""Processes that write a store die at any instant, alone or together, and nothing of the store tells."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from memory import MEMORY

HERE = Path(__file__).parent


def kill(program: str, *arguments: object) -> tuple[int, int]:
    """How many times writers were killed, and how many stores they wrote."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        command = [sys.executable, str(HERE / program), folder, *map(str, arguments)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, check=False, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    n_killed, n_stores = map(int, done.stdout.split())
    return n_killed, n_stores


def test_a_writer_killed_anywhere_leaves_a_store_that_resumes_to_the_same_bytes():
    n_killed, n_stores = kill("store_killer.py", 40, 7)
    assert n_killed >= 40
    assert n_stores >= 3


@pytest.mark.slow
def test_several_writers_killed_anywhere_leave_a_store_that_resumes_to_the_same_bytes():
    n_killed, n_stores = kill("share_killer.py", "folder", 200, 3)
    assert n_killed >= 200
    assert n_stores >= 15


def test_one_of_two_writers_of_a_bucket_killed_at_any_request_leaves_a_store_that_resumes_to_the_files_of_a_folder(place):
    assert kill("share_killer.py", place, 3, 4)[0] == 3
