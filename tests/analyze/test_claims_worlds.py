"""The benchmark of the claims makes a world of an array of pairs, and prints its tables."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


def test_a_world_of_pairs_is_swept_and_analyzed_and_unrelated_pairs_share_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "pairs.npy", np.random.default_rng(0).normal(size=(2, 60, 8)).astype(np.float32))
    sweep = FOLDER.parent / "configs" / "claims-coco.yaml"
    changes = ["base.epochs=2", "seeds=[0]", "architectures={topk: {kind: topk}}", "grid.d_sae=[8]", "grid.l0=[2]"]
    monkeypatch.syspath_prepend(str(FOLDER))
    arguments = [str(sweep), str(tmp_path / "world"), "--pairs", str(tmp_path / "pairs.npy"), "--change", *changes]
    monkeypatch.setattr(sys, "argv", ["claims_worlds.py", *arguments])
    runpy.run_path(str(FOLDER / "claims_worlds.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert "| | topk, 1 seeds |" in printed
    line = next(line for line in printed.splitlines() if line.startswith("| n shared "))
    assert line == "| n shared | 0 |"
