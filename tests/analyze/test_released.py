"""Dictionaries from elsewhere on embeddings from elsewhere: everything an analysis needs comes from two arrays and a folder."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from thresher.analyze.config import External
from thresher.analyze.run import AnalyzeConfig, load_results
from thresher.analyze.run import run as analyze
from thresher.config import validate
from thresher.data.store import import_pairs
from thresher.errors import AnalysisError, CheckpointError
from thresher.train.assess import assess
from thresher.train.checkpoint import load_sae
from thresher.train.config import TrainConfig
from thresher.train.exchange import Stated, export_sae, import_sae
from thresher.train.run import run as train

HOOK_POINTS = ["vision.embed", "text.embed"]
PAIRS, WIDTH = 60, 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of embeddings, and the same released dictionary imported for both towers, and for some other place."""
    folder = tmp_path_factory.mktemp("released")
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(PAIRS, WIDTH))
    for name in ("images", "texts"):
        np.save(folder / f"{name}.npy", (shared + 0.3 * rng.normal(size=shared.shape)).astype("f4"))
    import_pairs(folder / "images.npy", folder / "texts.npy", folder / "store")
    values = {"store": str(folder / "store"), "out": str(folder / "sae"), "hook_points": HOOK_POINTS, "rows": 2000}
    topk = {"sae": {"kind": "topk", "d_sae": 16, "k": 2}, "stream": {"batch_size": 50, "holdout": 0.5}, "device": "cpu"}
    train(validate(TrainConfig, values | topk, "test"))
    trained = load_sae(folder / "sae")
    export_sae(trained, folder / "released", "saelens", hook_point=HOOK_POINTS[0])
    import_sae(folder / "released", folder / "both", hook_point=HOOK_POINTS)
    import_sae(folder / "released", folder / "elsewhere", hook_point="blocks.3")
    far = {
        "W_enc": torch.eye(WIDTH),
        "b_enc": torch.zeros(WIDTH),
        "W_dec": torch.eye(WIDTH),
        "b_dec": torch.full((WIDTH,), 9.0),
    }
    save_file(far, folder / "far.safetensors")
    import_sae(folder / "far.safetensors", folder / "far", hook_point="blocks.3", stated=Stated("relu", subtracts_bias=True))
    return folder


def make_config(folder: Path, saes: dict[str, str], **more: object) -> AnalyzeConfig:
    battery = {"calibration_pairs": 0, "n_derangements": 0}
    values = {
        "store": str(folder / "store"),
        "saes": saes,
        "n_bootstrap": 20,
        "battery": battery,
        "device": "cpu",
        "figures": "none",
    }
    return validate(AnalyzeConfig, values | more, "test")


def test_a_released_dictionary_is_measured_on_every_row_of_any_store(folder: Path) -> None:
    saes = {name: str(folder / name) for name in ("both", "elsewhere", "far")}
    places = {"image": HOOK_POINTS[0], "text": HOOK_POINTS[1]}
    report = analyze(make_config(folder, saes, out=str(folder / "all"), rows="all", **places))
    found = load_results(report.parent)
    assert {panel["n_rows"] for panel in found["held_out"]["panels"].values()} == {PAIRS}
    assert any("Every row was measured" in warning for warning in found["warnings"])
    both, elsewhere = (pq.read_table(report.parent / name / "features.parquet") for name in ("both", "elsewhere"))
    assert both.equals(elsewhere)
    cautions = [each for each in json.loads((report.parent / "warnings.json").read_bytes()) if each["id"] == "worse-than-mean"]
    assert [each["sae"] for each in cautions] == ["far"]
    assert "sae import --rows" in cautions[0]["text"]


def test_what_rows_a_released_dictionary_saw_is_not_made_up(folder: Path) -> None:
    with pytest.raises(AnalysisError, match=r"was imported, .* with rows=all, and say with image= and text="):
        analyze(make_config(folder, {"a": str(folder / "both")}, out=str(folder / "x")))
    with pytest.raises(AnalysisError, match=r"no hook point 'vision.embedd'; nearest: vision\.embed"):
        analyze(make_config(folder, {"a": str(folder / "both")}, out=str(folder / "x"), rows="all", image="vision.embedd"))
    with pytest.raises(AnalysisError, match=r"name those with image= and text="):
        analyze(make_config(folder, {"a": str(folder / "elsewhere")}, out=str(folder / "x"), rows="all"))
    assert not (folder / "x").exists()


def test_a_dictionary_of_several_places_is_not_applied_to_others(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="only one of a single hook point can be applied elsewhere"):
        load_sae(folder / "sae").place_at([HOOK_POINTS[0], "text.other"])


def test_an_analysis_that_fails_leaves_the_one_before_it_as_it_was(folder: Path) -> None:
    places = {"image": HOOK_POINTS[0], "text": HOOK_POINTS[1], "rows": "all", "out": str(folder / "kept")}
    analyze(make_config(folder, {"a": str(folder / "both")}, **places))
    before = {path: path.read_bytes() for path in (folder / "kept").rglob("*") if path.is_file()}
    config = make_config(folder, {"a": str(folder / "both")}, **places)
    external = External(image=str(folder / "none.npy"), text=str(folder / "none.npy"))
    broken = dataclasses.replace(config, battery=dataclasses.replace(config.battery, external=external))
    with pytest.raises(AnalysisError, match=r"none\.npy"):
        analyze(broken)
    assert {path: path.read_bytes() for path in (folder / "kept").rglob("*") if path.is_file()} == before


def test_a_dictionary_trained_on_an_imported_store_is_known_to_have_been_trained_here(folder: Path) -> None:
    assert assess(folder / "sae", device="cpu").is_known_split
    import_sae(folder / "released", folder / "declared", hook_point=HOOK_POINTS, store=folder / "store")
    assert not assess(folder / "declared", device="cpu").is_known_split
