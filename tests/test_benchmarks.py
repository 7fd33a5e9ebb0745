"""Every benchmark runs, at the smallest size, and prints its table."""

import contextlib
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"
SMALLEST = {
    "analyze.py": ["200", "64", "4"],
    "gpu.py": ["--device", "cpu", "--shapes", "8,32,3,16", "--rounds", "1", "--methods", "gram", "--no-checks"],
    "group_pursuit.py": ["--d-sae=32", "--k=2", "--sizes=2", "--iterations=1", "--batch=32", "--lr=0.01", "--clusters=4"],
    "harvest.py": ["--parts=forward,write", "--model=ViT-S-32", "--hooks=vision.0", "--images=2", "--rounds=1", "--mb=1"],
    "packing.py": ["--documents=6", "--batch=3", "--width=64", "--blocks=1", "--rounds=1", "--context=32", "--length=32"],
    "parallel.py": ["16,64,2,32", "--rounds", "1", "--kinds", "mp"],
    "pursuit.py": ["--sizes", "32,128,4,64", "--repeats", "1"],
    "site.py": ["64", "--images=40", "--thumbnail=32"],
    "store.py": ["--mb", "2", "--width", "64", "--hooks", "2", "--repeats", "1"],
    "stream.py": ["--mb", "2", "--width", "64", "--repeats", "1", "--d-sae", "128", "--iterations", "1", "--without-saelens"],
    "sweep.py": ["--members=1,2", "--d-in=16", "--d-sae=32", "--iterations=2", "--rows=2000", "--rounds=1"],
    "train_step.py": ["32,128,4,64", "--rounds", "1"],
    "store_profiles.py": ["--rows=64", "ROWS"],
    "trees.py": ["--rows=600", "--seeds=1", "--epochs=1", "--methods", "mp", "topk"],
    "trust.py": ["chances", "2000"],
}
SHARED = [
    "contenders.py",
    "costs.py",
    "gpu_checks.py",
    "gpu_rates.py",
    "harvest_memory.py",
    "harvest_peers.py",
    "loaders.py",
    "peers.py",
    "rows.py",
    "site_browser.py",
    "site_world.py",
    "timing.py",
]
"""What benchmarks import."""
ELSEWHERE = ["claims.py", "claims_worlds.py", "gpu_compile.py"]
"""Tried in tests/analyze/test_battery_files.py, where there is an analysis or a store to read, and test_cuda_benchmark.py."""


def test_every_benchmark_is_tried_here() -> None:
    assert sorted([*SMALLEST, *SHARED, *ELSEWHERE]) == sorted(path.name for path in FOLDER.glob("*.py"))


@pytest.mark.parametrize("name", SMALLEST)
def test_a_benchmark_runs_and_prints_a_table(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], python: Path, tmp_path: Path
) -> None:
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).standard_normal((64, 64), np.float32))
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr(
        sys, "argv", [name, *(str(tmp_path / "rows.npy") if word == "ROWS" else word for word in SMALLEST[name])]
    )
    with contextlib.nullcontext() if name != "gpu.py" else pytest.raises(SystemExit, match=r"^0$"):
        runpy.run_path(str(FOLDER / name), run_name="__main__")
    assert len(capsys.readouterr().out.splitlines()) > 3
