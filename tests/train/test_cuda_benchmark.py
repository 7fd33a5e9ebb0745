"""The scripts that measure the CUDA kernels, run as far as a machine without a GPU can."""

import os
import re
import subprocess
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SPILLED_AT_MOST = {"_pursue_in_registers": 64}
"""Bytes of stack per thread; 0 for the others. Here it is a bargain: half of the registers, twice the rows in flight."""


def run_script(python: Path, name: str, *arguments: str) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"} | {"OMP_NUM_THREADS": "1"}
    command = [python, str(BENCHMARKS / name), *arguments]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout[-3000:] + found.stderr[-3000:]
    return found.stdout


def test_the_benchmark_checks_and_times_on_a_cpu(python: Path) -> None:
    printed = run_script(
        python, "gpu.py", "--device", "cpu", "--shapes", "8,32,3,16", "--rounds", "1", "--methods", "residual", "--no-peers"
    )
    assert "BAD" not in printed
    assert len(re.findall(r"^ok .*: gap:", printed, re.MULTILINE)) == 9
    assert re.search(r"^mp, residual +\d", printed, re.MULTILINE)
    assert re.search(r"^topk, bf16 selection +\d", printed, re.MULTILINE)


@pytest.mark.slow
def test_the_kernels_compile_for_hopper_without_spills_and_with_tensor_instructions(python: Path) -> None:
    pytest.importorskip("triton.backends.nvidia")
    rows = [
        line.split() for line in run_script(python, "gpu_compile.py", "768,16384,32,8192").splitlines() if line.startswith("_")
    ]
    names = {row[0] for row in rows}
    assert {"_correlate", "_correlate_top", "_finish", "_pursue_in_registers", "_reverse", "_sum_pieces"} <= names
    for name, _, _, spilled, shared, tensor in rows:
        assert int(spilled) <= SPILLED_AT_MOST.get(name, 0), name
        assert int(shared) <= 227 * 1024, name
        assert (int(tensor) > 0) == name.startswith("_correlate"), name
