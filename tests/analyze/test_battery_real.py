"""Controls: embeddings of a real CLIP, of the same network with random weights, and of that with other captions."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from thresher.analyze.battery.study import examine, prepare
from thresher.analyze.config import AnalyzeConfig
from thresher.analyze.inputs import open_inputs
from thresher.analyze.measure import measure
from thresher.analyze.metrics.resample import Resample
from thresher.analyze.panels import open_panels
from thresher.config import validate
from thresher.data.store import Batch, HookPointSpec, Item, Rows, StoreWriter
from thresher.train.config import TrainConfig
from thresher.train.run import run as train

WIDTH, PAIRS = 512, 500
CENTRED = {"center": "per_hook_point"}
BRIDGED = ("bridged-collinear", "bridged-heterogeneous")


def write_store(path: Path, embeddings: np.ndarray) -> Path:
    """500 pairs of an image and a caption embedding; the captions themselves are not known."""
    specs = [
        HookPointSpec(f"{tower}.embed", name, f"{name}.items", WIDTH, "float32")
        for tower, name in (("vision", "image"), ("text", "text"))
    ]
    with StoreWriter(path, {"model": {"kind": "given"}, "source": {"kind": "given"}}, specs, ()) as writer:
        every = torch.arange(PAIRS)
        items: Any = {
            "image": [Item(f"{n}", n, "ok", None, None, ()) for n in range(PAIRS)],
            "text": [Item(f"{n}#0", n, "ok", "", None, ()) for n in range(PAIRS)],
        }
        rows = {
            f"{name}.items": Rows(
                every, torch.full((PAIRS,), -1, dtype=torch.int32), None, {f"{tower}.embed": torch.from_numpy(embeddings[side])}
            )
            for side, (tower, name) in enumerate((("vision", "image"), ("text", "text")))
        }
        writer.write(Batch(0, items, [(n, n) for n in range(PAIRS)], rows))
        writer.finish()
    return path


def judge(folder: Path, embeddings: np.ndarray) -> Mapping[str, Any]:
    """What groups.json says of a dictionary of 64 atoms, fitted to 200 of the pairs and judged on the others."""
    store = write_store(folder / "store", embeddings)
    values = {
        "store": str(store),
        "out": str(folder / "sae"),
        "hook_points": ["vision.embed", "text.embed"],
        "stream": {"batch_size": 128, "holdout": 0.6},
        "normalize": CENTRED,
        "optimizer": {"lr": 3e-3},
        "epochs": 80,
        "device": "cpu",
        "sae": {"kind": "topk", "d_sae": 64, "k": 8},
    }
    sae = train(validate(TrainConfig, values, "test"))
    battery = {"ess_below": 8.0, "calibration_pairs": 0, "n_derangements": 3}
    settings = {"store": store, "saes": {"sae": sae}, "out": folder / "out", "n_bootstrap": 50, "battery": battery}
    config = validate(AnalyzeConfig, settings | {"thresholds": {"rare_below": 10}}, "test")
    inputs, resample = open_inputs(config), Resample(config.n_bootstrap, config.seed)
    panels = open_panels(inputs.store, list(inputs.hook_points.values()), inputs.holdout, inputs.seed, None)
    study = prepare(config, inputs, panels, resample)
    assert study is not None
    measured = {
        name: measure(inputs.saes["sae"], inputs.store, panel, resample, config.chunk_rows, lambda _: None)
        for name, panel in panels.items()
    }
    return examine(study, "sae", inputs, panels, measured, None).groups


@pytest.fixture(scope="module")
def folder() -> Path:
    found = os.environ.get("THRESHER_DATA")
    if not found:
        pytest.skip("THRESHER_DATA is not set: it names the folder with clip-embeddings/")
    return Path(found) / "clip-embeddings"


def count(groups: Mapping[str, Any], *classes: str) -> int:
    return sum(groups["classes"][name]["n"] for name in classes)


def test_a_real_clip_has_shared_features(folder: Path, tmp_path: Path) -> None:
    found = judge(tmp_path, np.load(folder / "coco500_vitb16.npy"))
    assert count(found, "shared") >= 10
    assert found["classes"]["shared"]["expected_false"] <= 1
    assert found["margin"]["total"]["low"] > 0


def test_random_weights_share_nothing(folder: Path, tmp_path: Path) -> None:
    found = judge(tmp_path, np.load(folder / "coco500_vitb16_random_init.npy"))
    assert count(found, "shared", "modality-bias") == 0
    # Through random weights images and captions stay a little dependent: CKA of the 500 pairs is 0.045, 9 standard deviations
    # above that with other captions (0.021); the strongest partners correlate by 0.2 to 0.3, just below a bridge.
    assert count(found, *BRIDGED) <= 2
    assert found["margin"]["shared_self"]["value"] is None


def test_random_weights_with_the_captions_of_other_images_have_not_even_bridges(folder: Path, tmp_path: Path) -> None:
    image, text = np.load(folder / "coco500_vitb16_random_init.npy")
    found = judge(tmp_path, np.stack([image, np.roll(text, 1, axis=0)]))
    assert count(found, "shared", *BRIDGED) <= 1
