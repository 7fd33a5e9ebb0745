"""Positive and negative control: embeddings of a real CLIP, and of the same network with random weights."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from thresher.analyze.run import AnalyzeConfig
from thresher.analyze.run import run as analyze
from thresher.config import validate
from thresher.data.store import Batch, HookPointSpec, Item, Rows, StoreWriter
from thresher.train.config import TrainConfig
from thresher.train.run import run as train

WIDTH, PAIRS = 512, 500
CENTRED = {"center": "per_hook_point"}


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


def judge(folder: Path, embeddings: np.ndarray) -> dict[str, Any]:
    """Classes of a dictionary of 64 atoms, fitted to half of the pairs and judged on the others."""
    store = write_store(folder / "store", embeddings)
    values = {
        "store": str(store),
        "out": str(folder / "sae"),
        "hook_points": ["vision.embed", "text.embed"],
        "stream": {"batch_size": 128, "holdout": 0.6},
        "normalize": CENTRED,
        "optimizer": {"lr": 3e-3},
        "epochs": 200,
        "device": "cpu",
        "sae": {"kind": "topk", "d_sae": 64, "k": 8},
    }
    sae = train(validate(TrainConfig, values, "test"))
    battery = {"ess_below": 8.0, "calibration_pairs": 0, "n_derangements": 5}
    config = {
        "store": store,
        "saes": {"sae": sae},
        "out": folder / "out",
        "n_bootstrap": 50,
        "battery": battery,
        "figures": "none",
        "functional": {"images": 0},
        "site": {"build": False},
    }
    report = analyze(validate(AnalyzeConfig, config | {"thresholds": {"rare_below": 10}}, "test"))
    return json.loads((report.parent / "sae" / "groups.json").read_text())


@pytest.fixture(scope="module")
def folder() -> Path:
    found = os.environ.get("THRESHER_DATA")
    if not found:
        pytest.skip("THRESHER_DATA is not set: it names the folder with clip-embeddings/")
    return Path(found) / "clip-embeddings"


def test_a_real_clip_has_shared_features_and_a_random_one_has_none(folder: Path, tmp_path: Path) -> None:
    real = judge(tmp_path / "real", np.load(folder / "coco500_vitb16.npy"))
    assert real["classes"]["shared"]["n"] >= 10
    assert real["classes"]["shared"]["expected_false"] <= 1
    assert real["margin"]["total"]["low"] > 0
    random = judge(tmp_path / "random", np.load(folder / "coco500_vitb16_random_init.npy"))
    assert random["classes"]["shared"]["n"] == random["classes"]["modality-bias"]["n"] == 0
    # Through random weights images and captions stay a little dependent: CKA of the 500 pairs is 0.045, 9 standard deviations
    # above that with other captions (0.021). So a few faint bridges (rho 0.26) are no false ones.
    assert sum(random["classes"][name]["n"] for name in ("bridged-collinear", "bridged-heterogeneous")) <= 6
    assert random["margin"]["shared_self"]["value"] is None
