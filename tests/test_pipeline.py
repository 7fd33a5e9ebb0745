"""Laws of a run: what follows from `out`, and baselines at the L0 of another."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from thresher import pipeline
from thresher.config import load_config
from thresher.errors import CheckpointError, ConfigError
from thresher.train.config import TrainConfig

HOOK_POINTS = ["vision.embed", "text.embed"]
COMMON: dict[str, Any] = {
    "hook_points": HOOK_POINTS,
    "stream": {"batch_size": 16, "holdout": 0.5},
    "rows": 160,
    "evaluate_every": 1000,
}


def write(path: Path, **changes: Any) -> Path:
    """A run of a relu, which reaches some L0 of its own, and a TopK and a BatchTopK after it; a TopK before it."""
    kinds = {
        "before": {"kind": "topk", "d_sae": 16, "k": 5},
        "free": {"kind": "relu", "d_sae": 16},
        "topk": {"kind": "topk", "d_sae": 16, "k": 2},
        "batch_topk": {"kind": "batch_topk", "d_sae": 16, "k": 2},
    }
    values = {
        "out": str(path.parent / "out"),
        "harvest": {
            "model": {"kind": "open-clip", "name": "scenes"},
            "source": {"kind": "scenes", "n_records": 64, "seed": 3},
            "hook_points": HOOK_POINTS,
            "thumbnail": 0,
        },
        "train": {name: COMMON | {"sae": sae} for name, sae in kinds.items()},
        "match_l0": "free",
        "analyze": {
            "n_bootstrap": 20,
            "thresholds": {"min_items": 2},
            "figures": "none",
            "site": {"build": False},
            "functional": {"images": 0},
            "battery": {"calibration_pairs": 0, "n_derangements": 1},
        },
    }
    path.write_text(yaml.safe_dump(values | changes, sort_keys=False))
    return path


def read(folder: Path) -> Any:
    return json.loads((folder / "config.json").read_text())


@pytest.fixture(scope="module")
def run_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration of a finished run."""
    path = write(tmp_path_factory.mktemp("run") / "run.yaml")
    pipeline.run(pipeline.load(path))
    return path


def test_folders_follow_from_out_unless_given(tmp_path: Path) -> None:
    settings = pipeline.load(write(tmp_path / "run.yaml"), ["train.topk.out=elsewhere", "analyze.out=page"])
    out = tmp_path / "out"
    assert settings.harvest.out == settings.train["free"].store == settings.analyze.store == out / "store"
    assert settings.train["free"].out == out / "sae/free"
    assert settings.analyze.saes["topk"] == settings.train["topk"].out == Path("elsewhere")
    assert settings.analyze.out == Path("page")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("match_l0=fre", "match_l0='fre': expected one of before, free, topk, batch_topk"),
        ("match_l0=batch_topk", "nothing is trained after it"),
        ("train=", "name at least one sparse autoencoder"),
        ("train.topk=5", "train.topk: expected the fields of a training, found 5"),
        ("analyze=[]", "analyze: expected a group of fields"),
    ],
)
def test_nonsense_is_refused_before_any_work(tmp_path: Path, override: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        pipeline.load(write(tmp_path / "run.yaml"), [override])
    assert not (tmp_path / "out").exists()


def test_later_ones_are_trained_to_the_realised_l0_and_earlier_ones_as_written(run_file: Path) -> None:
    saes = run_file.parent / "out/sae"
    target = read(saes / "free")["evaluation"]["l0"]
    assert read(saes / "before")["architecture"]["k"] == 5
    assert read(saes / "topk")["architecture"]["k"] == max(1, round(target))
    assert read(saes / "batch_topk")["architecture"]["k"] == pytest.approx(target)


def test_a_matched_checkpoint_tells_what_it_was_trained_with(run_file: Path) -> None:
    folder = run_file.parent / "out/sae/topk"
    assert load_config(TrainConfig, folder / "config.yaml").sae.k == read(folder)["architecture"]["k"]


def test_one_trained_to_another_target_is_refused_with_the_reason(run_file: Path, tmp_path: Path) -> None:
    shutil.copytree(run_file.parent / "out", tmp_path / "out")
    path = write(tmp_path / "run.yaml")
    shutil.rmtree(tmp_path / "out/sae/free")
    before = (tmp_path / "out/sae/topk/config.json").read_bytes()
    with pytest.raises(
        CheckpointError, match=r"sae.k is \d+ there, \d here(.|\n)*match_l0=before: train.topk.sae is set to its L0"
    ):
        pipeline.run(pipeline.load(path, ["match_l0=before", "train.free.sae={kind: topk, d_sae: 16, k: 7}"]))
    assert (tmp_path / "out/sae/topk/config.json").read_bytes() == before


def test_a_training_on_what_is_not_harvested_is_refused_before_the_harvest(tmp_path: Path) -> None:
    path = write(tmp_path / "run.yaml")
    with pytest.raises(
        ConfigError,
        match=r"train\.topk\.hook_points: 'vision\.embeds' is none of harvest\.hook_points \(vision\.embed, text\.embed\)",
    ):
        pipeline.load(path, ["train.topk.hook_points=[vision.embeds]"])
    globbed = pipeline.load(path, ["harvest.hook_points=[vision.*, text.e*]"])
    assert globbed.train["topk"].hook_points == ("vision.embed", "text.embed")
    elsewhere = pipeline.load(path, ["train.topk.hook_points=[vision.3]", "train.topk.store=elsewhere"])
    assert elsewhere.train["topk"].hook_points == ("vision.3",)
