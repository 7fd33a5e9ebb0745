"""Laws of a training run: what it leaves, that it resumes bit for bit, and what it refuses."""

import dataclasses
import json
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from architectures import list_over_batches, list_over_rows

from thresher.config import dump_config
from thresher.data.store import open_store
from thresher.data.stream import StreamConfig
from thresher.errors import CheckpointError, ConfigError, StoreError, ThresherError
from thresher.train.arch import (
    Architecture,
    MatchingPursuit,
    TopK,
)
from thresher.train.arch.hull import HullConfig
from thresher.train.checkpoint import load_sae
from thresher.train.config import TrainConfig
from thresher.train.evaluate import evaluate
from thresher.train.log import TrainLog
from thresher.train.optimizer import OptimizerConfig
from thresher.train.run import run
from thresher.train.split import read_side

FILES = ("config.json", "model.safetensors")
NAMES = ("vision.embed", "text.embed")


def configure(store: Path, out: Path, sae: Architecture | None = None, **fields) -> TrainConfig:
    settings = {
        "stream": StreamConfig(batch_size=64, holdout=0.2),
        "rows": 64 * 60,
        "log_every": 7,
        "evaluate_every": 25,
        "checkpoint_every": 20,
        "device": "cpu",
    } | fields
    return TrainConfig(store=store, hook_points=NAMES, sae=sae or MatchingPursuit(d_sae=32, k=2), out=out, **settings)


def lines(out: Path, kind: str) -> list[dict]:
    found = [json.loads(line) for line in (out / "train_log.jsonl").read_text().splitlines()]
    return [line for line in found if line["kind"] == kind]


def contents(out: Path) -> list[bytes]:
    """The checkpoint's bytes, with `out` itself taken out of the configuration."""
    return [(out / name).read_bytes().replace(str(out).encode(), b"OUT") for name in FILES]


def test_a_run_leaves_a_checkpoint_its_evaluation_and_logs(make_store, tmp_path) -> None:
    config = configure(make_store(), tmp_path / "sae")
    assert run(config) == tmp_path / "sae"
    left = {path.name for path in (tmp_path / "sae").iterdir()}
    assert left == {*FILES, "config.yaml", "provenance.json", "train_log.jsonl", "tensorboard"}
    assert [line["iteration"] for line in lines(config.out, "train")] == [7, 14, 21, 28, 35, 42, 49, 56, 60]
    assert [line["iteration"] for line in lines(config.out, "evaluation")] == [0, 25, 50, 60]
    assert list((config.out / "tensorboard").iterdir())
    trained, store = load_sae(config.out), open_store(config.store)
    assert (trained.iteration, trained.is_finished, trained.store_fingerprint) == (60, True, store.fingerprint)
    rows = {name: read_side(store, name, "held_out", holdout=0.2, seed=0) for name in NAMES}
    pooled = evaluate(trained.sae, trained.normalizer, rows)["pooled"]
    assert trained.evaluation["r2"] == pytest.approx(pooled.r2, abs=1e-6)
    assert trained.evaluation["l0"] == pytest.approx(pooled.l0)
    assert trained.evaluation["hook_points"].keys() == set(NAMES)
    assert trained.evaluation["r2"] > lines(config.out, "evaluation")[0]["r2"]


def test_a_finished_run_returns_at_once_and_changes_nothing(make_store, tmp_path) -> None:
    config = configure(make_store(), tmp_path / "sae", rows=64 * 3)
    run(config)
    before = {path: path.stat().st_mtime_ns for path in config.out.rglob("*")}
    # What does not decide the result may differ.
    run(dataclasses.replace(config, log_every=1, checkpoint_every=1))
    assert {path: path.stat().st_mtime_ns for path in config.out.rglob("*")} == before


def test_equal_runs_give_equal_checkpoints_and_another_seed_another(make_store, tmp_path) -> None:
    store = make_store()
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(configure(store, tmp_path / name, rows=64 * 5, seed=seed))
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert contents(tmp_path / "a")[1] != contents(tmp_path / "c")[1]


def test_planted_atoms_are_recovered(make_store, planted_atoms, tmp_path) -> None:
    """32 atoms in 16 dimensions, two per row, through store, stream and normaliser: mean best cosine above 0.9."""
    config = configure(
        make_store(4000, gap=0.0),
        tmp_path / "sae",
        MatchingPursuit(d_sae=64, k=3),
        rows=256 * 400,
        stream=StreamConfig(batch_size=256, holdout=0.1),
        optimizer=OptimizerConfig(lr=0.01),
        evaluate_every=1000,
        checkpoint_every=1000,
    )
    trained = load_sae(run(config))
    cosines = planted_atoms @ trained.sae.dictionary.detach().T
    assert cosines.amax(1).mean() > 0.9
    assert trained.evaluation["r2"] > 0.9


REMEMBERING = ("p_anneal", "spade", "batch_topk", "matryoshka")
"""Architectures with more state than parameters; that nothing of any state is left out is a law of `test_learner.py`."""


@pytest.mark.parametrize(
    "sae",
    [
        MatchingPursuit(d_sae=32, k=2, dropout=0.3, redraw=4, revive=0.01, revive_when="batch", dead_after=200),
        TopK(d_sae=32, k=2, selection="bf16"),
        TopK(d_sae=32, k=2, dead_after=500),
        TopK(d_sae=32, k=2, hull=HullConfig(points=150, mixed=4)),
        *[sae for sae in [*list_over_rows(32, 40), *list_over_batches(32)] if sae.kind in REMEMBERING],
    ],
    ids=lambda sae: sae.kind,
)
def test_a_run_cut_between_two_iterations_goes_on_bit_for_bit(make_store, tmp_path, monkeypatch, sae) -> None:
    """The process dies in the middle of iteration 33, after the checkpoint of iteration 20: nothing but files is left."""
    store = make_store()
    whole, cut = (configure(store, tmp_path / name, sae) for name in ("whole", "cut"))
    run(whole)
    with monkeypatch.context() as patch:
        _die_at(patch, 33)
        with pytest.raises(_Death):
            run(cut)
    assert (cut.out / "training.safetensors").exists()
    assert load_sae(cut.out).iteration == 20
    run(cut)
    assert contents(cut.out) == contents(whole.out)
    for kind in ("train", "evaluation"):
        assert lines(cut.out, kind) == lines(whole.out, kind)
    assert not (cut.out / "training.safetensors").exists()


class _Death(BaseException):
    """Stands for a kill inside this process."""


def _die_at(patch: pytest.MonkeyPatch, iteration: int) -> None:
    step = torch.optim.Adam.step
    done = [0]

    def die(*arguments, **named):
        done[0] += 1
        if done[0] == iteration:
            raise _Death
        return step(*arguments, **named)

    patch.setattr(torch.optim.Adam, "step", die)


SIGNALLED = """
import os, signal, sys
from pathlib import Path
import torch
from thresher.config import load_config
from thresher.train.run import TrainConfig, run
step, done = torch.optim.Adam.step, [0]
def signal_at_33(*arguments, **named):
    done[0] += 1
    if done[0] == 33:
        os.kill(os.getpid(), getattr(signal, sys.argv[2]))
    return step(*arguments, **named)
torch.optim.Adam.step = signal_at_33
run(load_config(TrainConfig, Path(sys.argv[1])))
"""
"""A run that gets a signal in the middle of iteration 33."""


def run_signalled(python: Path, config: TrainConfig, folder: Path, name: str) -> subprocess.CompletedProcess[str]:
    path = folder / "train.yaml"
    path.write_text(dump_config(config))
    return subprocess.run([python, "-c", SIGNALLED, str(path), name], capture_output=True, text=True, check=False)


def test_a_run_killed_by_the_system_goes_on_bit_for_bit(make_store, tmp_path, python) -> None:
    store = make_store()
    whole, killed = (configure(store, tmp_path / name) for name in ("whole", "killed"))
    assert run_signalled(python, killed, tmp_path, "SIGKILL").returncode == -signal.SIGKILL
    assert load_sae(killed.out).iteration == 20
    run(killed)
    run(whole)
    assert contents(killed.out) == contents(whole.out)


def test_ctrl_c_ends_after_the_iteration_it_came_in_and_the_run_goes_on_bit_for_bit(make_store, tmp_path, python) -> None:
    store = make_store()
    whole, stopped = (configure(store, tmp_path / name) for name in ("whole", "stopped"))
    ended = run_signalled(python, stopped, tmp_path, "SIGINT")
    assert ended.returncode != 0
    assert ended.stderr.rstrip().endswith("KeyboardInterrupt")
    assert load_sae(stopped.out).iteration == 33
    run(stopped)
    run(whole)
    assert contents(stopped.out) == contents(whole.out)


def test_a_folder_with_another_run_is_refused_with_what_differs(make_store, tmp_path) -> None:
    config = configure(make_store(), tmp_path / "sae", rows=64 * 2)
    run(config)
    other = dataclasses.replace(config, sae=MatchingPursuit(d_sae=32, k=3), seed=1)
    with pytest.raises(CheckpointError, match=r"holds another run: sae\.k is 2 there, 3 here; seed is 0 there, 1 here"):
        run(other)


def test_a_store_that_has_changed_is_refused(make_store, tmp_path) -> None:
    config = configure(make_store(), tmp_path / "sae", rows=64 * 2)
    run(config)
    with pytest.raises(CheckpointError, match="was trained on a store with fingerprint"):
        run(dataclasses.replace(config, store=make_store(name="other", gap=3.0)))


@pytest.mark.parametrize("poisoned", [30, 23], ids=["logged", "evaluated"])
def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(make_store, tmp_path, monkeypatch, poisoned) -> None:
    config = configure(make_store(), tmp_path / "sae", optimizer=OptimizerConfig(lr=1e-3))
    with monkeypatch.context() as patch:
        step = torch.optim.Adam.step
        done = [0]

        def poison(optimizer, *arguments, **named):
            done[0] += 1
            if done[0] == poisoned:
                optimizer.param_groups[0]["params"][0].grad.fill_(torch.nan)
            return step(optimizer, *arguments, **named)

        patch.setattr(torch.optim.Adam, "step", poison)
        message = rf"stopped being finite at iteration {poisoned + 1}; the last checkpoint is kept"
        with pytest.raises(ThresherError, match=message):
            run(config)
    assert load_sae(config.out).iteration == 20
    assert all(value.isfinite().all() for value in load_sae(config.out).sae.state_dict().values() if value.is_floating_point())


def test_a_damaged_state_is_refused(make_store, tmp_path, monkeypatch) -> None:
    config = configure(make_store(), tmp_path / "sae")
    with monkeypatch.context() as patch:
        _die_at(patch, 33)
        with pytest.raises(_Death):
            run(config)
    state = config.out / "training.safetensors"
    state.write_bytes(state.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=r"training\.safetensors: damaged"):
        run(config)


def test_what_the_store_does_not_have_is_refused(make_store, tmp_path) -> None:
    store = make_store()
    wide = make_store(name="wide", text_width=20)
    unknown = dataclasses.replace(configure(store, tmp_path / "a"), hook_points=("vision.7",))
    for config, message in (
        (unknown, r"no hook point 'vision\.7'"),
        (configure(wide, tmp_path / "b"), r"vision\.embed has 16, text\.embed has 20"),
        (configure(tmp_path / "nothing", tmp_path / "c"), r"nothing"),
        (configure(store, tmp_path / "d", stream=StreamConfig(batch_size=64, holdout=0.0)), r"no rows are held out"),
    ):
        with pytest.raises(StoreError, match=message):
            run(config)


@pytest.mark.parametrize(
    "fields",
    [{"rows": 0}, {"epochs": 0.0}, {"rows": 5, "epochs": 1.0}, {"log_every": 0}, {"checkpoint_every": 0}, {"evaluate_rows": 0}],
)
def test_nonsense_is_refused(tmp_path, fields) -> None:
    with pytest.raises(ConfigError, match=next(iter(fields))):
        configure(tmp_path, tmp_path, **{"rows": None} | fields)


def test_the_budget_counts_rows_or_passes(tmp_path) -> None:
    assert configure(tmp_path, tmp_path, rows=640).count_iterations(999) == 10
    assert configure(tmp_path, tmp_path, rows=None, epochs=2.0).count_iterations(320) == 10
    assert configure(tmp_path, tmp_path, rows=None).count_iterations(64) == 10
    assert configure(tmp_path, tmp_path, rows=1).count_iterations(999) == 1


def test_a_resumed_log_drops_what_will_be_done_again(tmp_path) -> None:
    with TrainLog(tmp_path, 0) as log:
        for iteration in (10, 20, 30):
            log.write(iteration, "train", {"loss": 0.5})
    with (tmp_path / "train_log.jsonl").open("a") as file:
        file.write('{"iteration": 40, "ki')
    with TrainLog(tmp_path, 20) as log:
        log.write(25, "train", {"loss": 0.25})
    assert [line["iteration"] for line in lines(tmp_path, "train")] == [10, 20, 25]
