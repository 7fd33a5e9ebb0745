"""Laws of a batch: what is killed is done again, what fails stops only what needs it, what is done stays done."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from thresher import pipeline
from thresher.analyze.run import load_summary
from thresher.batch.engines import LocalEngine
from thresher.batch.plan import Plan, load_plan
from thresher.batch.run import run
from thresher.batch.units import UnitFiles
from thresher.errors import ConfigError
from thresher.testing.store import tree

BASE: dict[str, Any] = {
    "harvest": {
        "model": {"kind": "open-clip", "name": "scenes"},
        "source": {"kind": "scenes", "n_records": 64, "seed": 3},
        "hook_points": ["vision.embed", "text.embed"],
        "batch_size": 16,
        "items_per_shard": 16,
        "thumbnail": 0,
        "device": "cpu",
    },
    "train": {
        "topk": {
            "hook_points": ["vision.embed", "text.embed"],
            "stream": {"batch_size": 16, "holdout": 0.5},
            "rows": 160,
            "evaluate_every": 1000,
            "sae": {"kind": "topk", "d_sae": 16, "k": 2},
            "device": "cpu",
        }
    },
    "analyze": {
        "n_bootstrap": 20,
        "thresholds": {"min_items": 2},
        "figures": "none",
        "site": {"build": False},
        "functional": {"images": 0},
        "battery": {"calibration_pairs": 0, "n_derangements": 1},
    },
}


def write(folder: Path, **plan: Any) -> Path:
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump({"out": str(folder / "batch"), "base": BASE, "retries": 1} | plan, sort_keys=False))
    return path


DYING = """#!{python}
import os, runpy, signal, sys
from pathlib import Path
from thresher.data.store import StoreWriter

write, killed = StoreWriter.write, Path({folder!r}) / "killed"

def write_then_die(self, batch):
    write(self, batch)
    if batch.index == 2 and not killed.exists():
        killed.touch()
        os.kill(os.getpid(), signal.SIGKILL)

StoreWriter.write = write_then_die
flag, module, *sys.argv[1:] = sys.argv[1:]
assert flag == "-m"
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""
"""Stands in for the interpreter of the units; the first of them that harvests is killed on its way."""


@pytest.fixture(scope="module")
def batch(python: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, Any, Path]:
    """A batch of two runs, one of which cannot be analyzed, whose harvest was killed once; its plan and outcome."""
    folder = tmp_path_factory.mktemp("batch")
    path = write(folder, runs={"good": {}, "bad": {"analyze.image": "vision.nowhere"}})
    plan = load_plan(path)
    dying = folder / "dying"
    dying.write_text(DYING.format(python=python, folder=str(folder)))
    dying.chmod(0o700)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", str(dying))
        outcome = run(plan, LocalEngine(2, 1))
    assert (folder / "killed").exists()
    return plan, outcome, path


def states(outcome: Any) -> dict[str, str]:
    return {re.sub("-[0-9a-f]{10}$", "", row["unit"]): row["state"] for row in outcome.units}


def test_a_failing_unit_is_reported_and_the_others_are_done(batch: tuple[Plan, Any, Path]) -> None:
    plan, outcome, _ = batch
    assert states(outcome) == {"harvest": "done", "train-topk": "done", "analyze-good": "done", "analyze-bad": "failed"}
    assert not outcome.is_complete
    failed = next(row for row in outcome.units if row["state"] == "failed")
    assert "vision.nowhere" in (plan.config.out / "logs" / f"{failed['unit']}.log").read_text()
    assert failed["attempts"] == "1"
    assert [(row["run"], row["sae"], row["L0"]) for row in outcome.results] == [("good", "topk", "2.0")]
    summary = json.loads((plan.config.out / "summary.json").read_bytes())
    assert summary["units"] == outcome.units


def test_a_killed_unit_is_done_again_with_the_same_result(batch: tuple[Plan, Any, Path], tmp_path: Path) -> None:
    plan, outcome, _ = batch
    assert next(row for row in outcome.units if row["stage"] == "harvest")["attempts"] == "2"
    alone = pipeline.complete({**BASE, "out": str(tmp_path / "alone")}, "test")
    pipeline.run(alone)
    run_of = plan.runs["good"]
    beside = {".lock", "config.yaml", "provenance.json"}
    stores = [
        {k: v for k, v in tree(Path(store)).items() if k not in beside} for store in (alone.harvest.out, run_of.harvest.out)
    ]
    assert stores[0] == stores[1]
    saes = [(config.train["topk"].out / "model.safetensors").read_bytes() for config in (alone, run_of)]
    assert saes[0] == saes[1]
    by_one, by_batch = (load_summary(config.analyze.out) for config in (alone, run_of))
    assert by_one == by_batch


def test_a_second_batch_repeats_only_what_failed(batch: tuple[Plan, Any, Path]) -> None:
    plan, _, path = batch
    logs = {log.name: log.read_bytes() for log in (plan.config.out / "logs").iterdir() if "bad" not in log.name}
    mended = load_plan(path, ["runs={good: {}}"])
    outcome = run(mended, LocalEngine(1, 0))
    assert states(outcome) == {"harvest": "found", "train-topk": "found", "analyze-good": "found"}
    assert outcome.is_complete
    assert logs == {log.name: log.read_bytes() for log in (plan.config.out / "logs").iterdir() if "bad" not in log.name}


def test_a_unit_whose_input_is_gone_is_not_done(batch: tuple[Plan, Any, Path]) -> None:
    plan, _, _ = batch
    files = UnitFiles(plan.config.out)
    training = next(unit for unit in plan.units.values() if unit.stage == "train")
    assert files.is_done(training)
    manifest = next(unit for unit in plan.units.values() if unit.stage == "harvest").out / "manifest.json"
    manifest.rename(manifest.with_name("manifest.gone"))
    assert not files.is_done(training)
    manifest.with_name("manifest.gone").rename(manifest)
    changed = training._replace(config={**training.config, "seed": 1})
    assert not files.is_done(changed)


def test_two_batches_in_one_folder_are_refused(tmp_path: Path) -> None:
    plan = load_plan(write(tmp_path))
    hold = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, 2); print('held', flush=True); sys.stdin.read()"
    (tmp_path / "batch").mkdir()
    command = [sys.executable, "-S", "-c", hold, str(tmp_path / "batch/.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(ConfigError, match="another batch works in this folder"):
            run(plan, LocalEngine(1, 0))
        assert other.stdin is not None
        other.stdin.close()
