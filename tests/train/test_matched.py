"""Laws of training to the L0 of another dictionary."""

import dataclasses
from pathlib import Path

import pytest

from thresher.data.stream import StreamConfig
from thresher.errors import CheckpointError
from thresher.train import matched
from thresher.train.arch import MatchingPursuit, Relu, TopK
from thresher.train.checkpoint import load_sae
from thresher.train.config import TrainConfig
from thresher.train.matched import run_matched
from thresher.train.optimizer import OptimizerConfig
from thresher.train.run import run


def configure(store: Path, out: Path, sae, iterations: int = 90) -> TrainConfig:
    return TrainConfig(
        store=store,
        hook_points=("vision.embed", "text.embed"),
        sae=sae,
        out=out,
        # Rows of images weigh three times as much in training as among the held-out rows.
        stream=StreamConfig(batch_size=64, holdout=0.2, weights={"vision.embed": 3.0}),
        optimizer=OptimizerConfig(lr=0.01),
        rows=64 * iterations,
        evaluate_every=1000,
        device="cpu",
        tensorboard=False,
    )


def test_a_training_that_ends_off_the_wanted_l0_is_done_again_and_a_rerun_repeats_nothing(
    make_store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store()
    wanted = load_sae(run(configure(store, tmp_path / "mp", MatchingPursuit(d_sae=32, k=3), 30))).evaluation["l0"]
    config = configure(store, tmp_path / "relu", Relu(d_sae=32, l0_rate=0.005))
    run_matched(config, tmp_path / "mp")
    first, last = (load_sae(tmp_path / name) for name in ("relu.off-target-1", "relu"))
    off = [abs(trained.evaluation["l0"] / wanted - 1) for trained in (first, last)]
    assert first.config.sae.l0 == wanted
    assert off[0] > matched.TOLERANCE
    assert off[1] < off[0]
    monkeypatch.setattr("thresher.train.run._train", lambda *_: pytest.fail("trains again"))
    assert run_matched(config, tmp_path / "mp") == config.out
    other = dataclasses.replace(config, sae=Relu(d_sae=31))
    with pytest.raises(CheckpointError, match=r"relu\.off-target-1: was set aside by a training with other settings"):
        run_matched(other, tmp_path / "mp")


def test_a_k_that_is_a_whole_number_is_set_once(make_store, tmp_path: Path) -> None:
    store = make_store()
    run(configure(store, tmp_path / "mp", MatchingPursuit(d_sae=32, k=3), 10))
    run_matched(configure(store, tmp_path / "topk", TopK(d_sae=32), 10), tmp_path / "mp")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mp", "store", "topk"]
