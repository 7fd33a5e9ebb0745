"""The laws of `test_cuda_kernels.py` on a CPU, in Triton's interpreter; another process, because Triton decides at import."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")


def test_the_kernels_hold_their_laws_in_the_interpreter() -> None:
    laws = Path(__file__).with_name("test_cuda_kernels.py")
    options = ["-q", "-x", "-o", "addopts=--import-mode=importlib", "-p", "no:cacheprovider"]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", str(laws), *options]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout[-4000:] + found.stderr[-2000:]
    assert " passed" in found.stdout
