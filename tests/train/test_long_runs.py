"""Laws of a training stage on several stores, with signals, bad rows, older states, early ends and other logs."""

import dataclasses
import json
import os
import signal
from pathlib import Path

import pytest
import torch

from thresher.analyze.config import AnalyzeConfig
from thresher.analyze.inputs import open_inputs
from thresher.data.store import open_store
from thresher.data.stream import StreamConfig
from thresher.errors import AnalysisError, CheckpointError, ConfigError, ThresherError
from thresher.train.arch import MatchingPursuit, TopK
from thresher.train.checkpoint import load_sae
from thresher.train.config import TrainConfig
from thresher.train.history import list_states
from thresher.train.log import WandbConfig
from thresher.train.normalize import NormalizeConfig
from thresher.train.optimizer import OptimizerConfig
from thresher.train.run import run
from thresher.train.tracing import TraceConfig

NAMES = ("vision.embed", "text.embed")


def configure(store, out: Path, **fields) -> TrainConfig:
    settings = {
        "sae": TopK(d_sae=32, k=2, dead_after=500),
        "stream": StreamConfig(batch_size=64, holdout=0.2),
        "rows": 64 * 60,
        "log_every": 7,
        "evaluate_every": 25,
        "checkpoint_every": 20,
        "device": "cpu",
        "tensorboard": False,
    } | fields
    return TrainConfig(store=store, hook_points=NAMES, out=out, **settings)


def contents(out: Path) -> tuple[bytes, dict]:
    """The tensors of a checkpoint, and its evaluation."""
    return (out / "model.safetensors").read_bytes(), json.loads((out / "config.json").read_bytes())["evaluation"]


def test_sigterm_saves_the_iteration_and_a_run_with_every_feature_on_two_stores_goes_on_bit_for_bit(
    make_store, tmp_path, monkeypatch
) -> None:
    stores = (make_store(), make_store(400, name="other", gap=2.0))
    features = {
        "optimizer": OptimizerConfig(lr=0.01, precision="bf16", micro_batches=3, ema=0.9, k_start=6.0, decay="sqrt"),
        "stream": StreamConfig(
            batch_size=64, holdout=0.2, pool_rows=300, weights={"text.embed": 5.0}, store_weights=(1.0, 2.0)
        ),
        "normalize": NormalizeConfig(center="per_modality"),
        "patience": 9,
    }
    whole, stopped = (configure(stores, tmp_path / name, **features) for name in ("whole", "stopped"))
    with monkeypatch.context() as patch:
        step, done = torch.optim.Adam.step, [0]

        def signal_at_33(*arguments, **named):
            done[0] += 1
            if done[0] == 33:
                os.kill(os.getpid(), signal.SIGTERM)
            return step(*arguments, **named)

        patch.setattr(torch.optim.Adam, "step", signal_at_33)
        with pytest.raises(KeyboardInterrupt):
            run(stopped)
    assert load_sae(stopped.out).iteration == 33
    run(stopped)
    run(whole)
    assert contents(stopped.out) == contents(whole.out)
    trained = load_sae(whole.out)
    opened = [open_store(store) for store in stores]
    assert trained.store_parts == tuple(store.fingerprint for store in opened)
    for store in stores:
        found = open_inputs(AnalyzeConfig(store=store, saes={"a": whole.out}, out=tmp_path / "report", device="cpu"))
        assert found.hook_points == {"image": "vision.embed", "text": "text.embed"}
    third = make_store(300, name="third", gap=3.0)
    with pytest.raises(AnalysisError, match="its held-out items are not known here"):
        open_inputs(AnalyzeConfig(store=third, saes={"a": whole.out}, out=tmp_path / "report", device="cpu"))


def test_a_row_that_is_not_finite_is_named_with_its_hook_point_and_item(make_store, tmp_path) -> None:
    store = make_store(nan_row=404)
    few = NormalizeConfig(statistics_rows=100)
    config = configure(store, tmp_path / "sae", normalize=few, sae=MatchingPursuit(d_sae=32, k=2))
    message = r"stopped being finite at iteration \d+; .*has 1 that are not finite: vision\.embed row 404 \(item '404'\)"
    with pytest.raises(ThresherError, match=message):
        run(config)


def test_older_states_are_kept_and_a_run_goes_back_to_one_and_on_again(make_store, tmp_path) -> None:
    config = configure(make_store(), tmp_path / "sae", rows=64 * 30, checkpoint_every=10, evaluate_every=12, keep=2)
    run(config)
    finished = contents(config.out)
    assert list_states(config.out) == [20, 30]
    assert load_sae(config.out / "states" / "00000020").iteration == 20
    with pytest.raises(CheckpointError, match=r"no state of iteration 10 is kept \(kept: 20, 30\)"):
        run(dataclasses.replace(config, go_back_to=10))
    run(dataclasses.replace(config, go_back_to=20))
    assert contents(config.out) == finished
    lines = [json.loads(line)["iteration"] for line in (config.out / "train_log.jsonl").read_text().splitlines()]
    assert lines == sorted(lines)


def test_a_run_ends_when_evaluations_become_no_better_and_keeps_the_best(make_store, tmp_path) -> None:
    averaged = OptimizerConfig(ema=0.9)
    early = {"evaluate_every": 5, "checkpoint_every": 5, "keep": 9, "patience": 2, "min_gain": 2.0, "optimizer": averaged}
    config = configure(make_store(), tmp_path / "sae", **early)
    run(config)
    trained = load_sae(config.out)
    assert trained.is_finished
    # The first evaluation is the best, because no other adds 2 to an R2; it has cost 15 iterations.
    assert trained.iteration == 5
    assert contents(config.out)[0] == contents(config.out / "states" / "00000005")[0]
    assert '"iteration": 15' in (config.out / "train_log.jsonl").read_text()
    with pytest.raises(CheckpointError, match="evaluate_every is 5 there, 6 here"):
        run(dataclasses.replace(config, evaluate_every=6))


def test_a_trace_of_some_iterations_is_left(make_store, tmp_path) -> None:
    config = configure(make_store(), tmp_path / "sae", rows=64 * 6, profile=TraceConfig(first=2, iterations=2))
    run(config)
    events = json.loads((config.out / "trace.json").read_text())["traceEvents"]
    assert sum("Optimizer.step" in str(event.get("name")) for event in events) == 2
    assert not (config.out / "tensorboard").exists()


def test_the_log_goes_to_wandb_offline(make_store, tmp_path) -> None:
    pytest.importorskip("wandb")
    config = configure(make_store(), tmp_path / "sae", rows=64 * 6, wandb=WandbConfig(mode="offline"))
    run(config)
    assert list((config.out / "wandb").glob("offline-run-*/*.wandb"))


@pytest.mark.parametrize("fields", [{"keep": -1}, {"patience": 0}, {"min_gain": -1.0}])
def test_nonsense_is_refused(tmp_path, fields) -> None:
    with pytest.raises(ConfigError, match=next(iter(fields))):
        configure(tmp_path, tmp_path, **fields)
