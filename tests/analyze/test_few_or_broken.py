"""Laws of analyses of few records and of arrays with holes: what cannot be trusted is said, what cannot be read is named."""

from pathlib import Path

import numpy as np
import pytest
import torch

from thresher.analyze import warn
from thresher.analyze.config import AnalyzeConfig
from thresher.analyze.run import run
from thresher.config import validate
from thresher.data.store import open_store
from thresher.data.store.ingest import import_store
from thresher.data.store.ingest_pairs import import_pairs
from thresher.errors import StoreError
from thresher.train.arch import build
from thresher.train.checkpoint import TrainedSAE, save_sae
from thresher.train.config import TrainConfig
from thresher.train.normalize import Normalizer

ROWS, WIDTH = 60, 8


def configure(folder: Path, images: np.ndarray) -> AnalyzeConfig:
    """A store of imported pairs and a dictionary that nothing was fitted to."""
    generator = np.random.default_rng(1)
    np.save(folder / "images.npy", images)
    np.save(folder / "texts.npy", images + 0.1 * generator.normal(size=images.shape).astype(np.float32))
    store = open_store(import_pairs(folder / "images.npy", folder / "texts.npy", folder / "store"))
    values = {"store": str(store.path), "out": str(folder / "sae"), "hook_points": ["vision.embed", "text.embed"]}
    train = validate(TrainConfig, values | {"sae": {"kind": "relu", "d_sae": 16}}, "test")
    trained = TrainedSAE(
        build(train.sae, WIDTH, 0),
        Normalizer(False, torch.zeros(2, WIDTH), torch.ones(2)),
        train,
        store.fingerprint,
        store.identity,
        {},
        1,
        True,
    )
    save_sae(folder / "sae", trained)
    light = {"n_bootstrap": 20, "figures": "none", "site": {"build": False}, "functional": {"images": 0}, "rows": "all"}
    battery = {"n_derangements": 0, "calibration_pairs": 0}
    values = {"store": folder / "store", "saes": {"one": folder / "sae"}, "out": folder / "out", "battery": battery}
    return validate(AnalyzeConfig, values | light, "test")


def test_an_analysis_names_the_row_that_is_not_finite_and_writes_nothing(tmp_path: Path) -> None:
    images = np.random.default_rng(0).normal(size=(ROWS, WIDTH)).astype(np.float32)
    images[37, 2] = np.nan
    config = configure(tmp_path, images)
    with pytest.raises(StoreError, match=r"vision\.embed: activations that are not finite: row 37 \(item '37'\)"):
        run(config)
    assert not (tmp_path / "out" / "metrics.json").exists()


@pytest.mark.parametrize(("records", "is_narrow"), [(99, True), (100, False)])
def test_with_fewer_than_a_hundred_records_the_intervals_are_called_too_narrow(records: int, is_narrow: bool) -> None:
    found = warn._about_comparison({"saes": {}, "held_out": {"records": records, "fraction": 0.5}})
    assert ("narrow-intervals" in {one.id for one in found}) == is_narrow


def test_an_array_beside_is_imported_by_its_bare_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "images.npy", np.ones((3, WIDTH), np.float32))
    monkeypatch.chdir(tmp_path)
    import_store(Path("images.npy"), Path("store"), modality="image")
    assert open_store(tmp_path / "store").rows("images") == 3
