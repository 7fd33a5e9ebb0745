"""Crosscoders, transcoders and classical dictionaries go through the stage of training, its checkpoint and its evaluation."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from thresher.cli import app
from thresher.data.aligned import AlignedStore
from thresher.data.store import open_store
from thresher.data.stream import StreamConfig, held_out
from thresher.errors import CheckpointError, ConfigError
from thresher.train.arch import KSVD, NMF, PCA, Architecture, BatchTopKCrosscoder, Crosscoder, KMeans, Transcoder
from thresher.train.arch.crosscoder import relative_norms
from thresher.train.assess import assess
from thresher.train.checkpoint import TrainedSAE, load_sae
from thresher.train.config import TrainConfig
from thresher.train.normalize import NormalizeConfig
from thresher.train.run import run

IMAGE, TEXT = "vision.embed", "text.embed"
JOINT = f"{IMAGE}+{TEXT}"
WIDTHS = (16, 10)


def configure(store: Path, out: Path, sae: Architecture, **fields: object) -> TrainConfig:
    settings = {
        "stream": StreamConfig(batch_size=64, holdout=0.2),
        "rows": 64 * 30,
        "evaluate_every": 100,
        "checkpoint_every": 10,
        "device": "cpu",
        "tensorboard": False,
    } | fields
    return TrainConfig(**{"store": store, "hook_points": (IMAGE, TEXT), "sae": sae, "out": out} | settings)


def read_rows(store: Path, side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The raw rows of all pairs of a side: images, texts."""
    aligned = AlignedStore(open_store(store), (IMAGE, TEXT))
    mask = held_out(aligned, "image", 0.2, 0)[aligned.item_of(JOINT)]
    x = aligned.read_rows(JOINT, np.flatnonzero(mask if side == "held_out" else ~mask))
    first, second = x.split(WIDTHS, dim=1)
    return first, second


def measure_r2(x: torch.Tensor, x_hat: torch.Tensor) -> float:
    return 1 - float((x - x_hat).square().sum() / (x - x.mean(0)).square().sum())


def test_a_crosscoder_says_of_each_hook_point_how_well_it_is_reconstructed(make_store, tmp_path) -> None:
    config = configure(make_store(text_width=WIDTHS[1]), tmp_path / "sae", BatchTopKCrosscoder(d_sae=48, k=3.0))
    trained = load_sae(run(config))
    assert trained.config.sae.widths == WIDTHS
    x = torch.cat(read_rows(config.store, "held_out"), dim=1)
    codes = trained.encode(x, JOINT)
    whole = trained.decode(codes, JOINT)
    assert torch.equal(trained.transcode(x, JOINT), whole)
    found = trained.evaluation["hook_points"]
    for name, raw, part in zip((IMAGE, TEXT), x.split(WIDTHS, 1), whole.split(WIDTHS, 1), strict=True):
        assert torch.equal(trained.decode(codes, name), part)
        assert found[name]["r2"] == pytest.approx(measure_r2(raw, part), abs=1e-4)
        assert found[name]["n_rows"] == len(x)
    normalized = trained.normalizer.normalize(x, 0)
    assert trained.evaluation["r2"] == pytest.approx(measure_r2(normalized, trained.normalizer.normalize(whole, 0)), abs=1e-4)
    shares = relative_norms(trained.sae.dictionary.detach(), WIDTHS)
    deciles = trained.evaluation["relative_norms"][TEXT]
    assert deciles[5] == pytest.approx(float(shares[:, 1].median()), abs=0.02)
    assert deciles == sorted(deciles)


def test_each_hook_point_is_centred_and_scaled_on_its_own(make_store, tmp_path) -> None:
    config = configure(make_store(text_width=WIDTHS[1], gap=5.0), tmp_path / "sae", Crosscoder(d_sae=16), rows=64)
    trained = load_sae(run(config))
    x = torch.cat(read_rows(config.store, "training"), dim=1)
    for part in trained.normalizer.normalize(x, 0).split(WIDTHS, dim=1):
        torch.testing.assert_close(part.mean(0), torch.zeros(part.shape[1]), rtol=0, atol=1e-4)
        assert float(part.square().mean()) == pytest.approx(1, abs=1e-4)
    torch.testing.assert_close(trained.normalizer.invert(trained.normalizer.normalize(x, 0), 0), x, rtol=1e-4, atol=1e-4)


def test_a_crosscoder_that_was_stopped_ends_as_if_it_had_not_been(make_store, tmp_path) -> None:
    store, sae = make_store(text_width=WIDTHS[1]), BatchTopKCrosscoder(d_sae=48, k=3.0)
    whole = configure(store, tmp_path / "whole", sae, rows=64 * 20)
    run(whole)
    states = load_sae(run(configure(store, tmp_path / "parts", sae, rows=64 * 20, keep=3)))
    again = configure(store, tmp_path / "parts", sae, rows=64 * 20, keep=3, go_back_to=10)
    back = load_sae(run(again))
    expected = load_sae(whole.out)
    for one in (states, back):
        assert all(torch.equal(a, b) for a, b in zip(parameters(one), parameters(expected), strict=True))


def parameters(trained: TrainedSAE) -> list[torch.Tensor]:
    return [*trained.sae.state_dict().values()]


@pytest.mark.parametrize("skip", [False, True])
def test_a_transcoder_is_measured_on_its_target(skip: bool, make_store, tmp_path) -> None:
    config = configure(make_store(text_width=WIDTHS[1]), tmp_path / "sae", Transcoder(d_sae=48, k=3, skip=skip))
    trained = load_sae(run(config))
    given, target = read_rows(config.store, "held_out")
    found = measure_r2(target, trained.transcode(given, IMAGE))
    assert trained.evaluation["r2"] == pytest.approx(found, abs=1e-4)
    assert trained.evaluation["hook_points"].keys() == {TEXT}
    assert "relative_norms" not in trained.evaluation
    assert trained.decode(trained.encode(given, IMAGE), TEXT).shape == target.shape
    for wrong in (TEXT, JOINT):
        with pytest.raises(CheckpointError, match=f"its codes are those of {IMAGE}"):
            trained.encode(given, wrong)
    with pytest.raises(CheckpointError, match=f"reconstructs {TEXT}"):
        trained.decode(trained.encode(given, IMAGE), IMAGE)


def test_widths_that_the_store_does_not_have_are_refused(make_store, tmp_path) -> None:
    config = configure(make_store(), tmp_path / "sae", Crosscoder(d_sae=16, widths=(16, 17)))
    with pytest.raises(ConfigError, match=r"widths=\[16, 17\]: vision.embed\+text.embed has \[16, 16\]; leave them out"):
        run(config)


def test_a_plain_dictionary_has_nothing_to_transcode(make_store, tmp_path) -> None:
    trained = load_sae(run(configure(make_store(), tmp_path / "sae", PCA(d_sae=8, k=2))))
    with pytest.raises(CheckpointError, match="pca: no hook points side by side"):
        trained.transcode(torch.zeros(1, 16), IMAGE)


@pytest.mark.parametrize("sae", [PCA(d_sae=10, k=3), KMeans(d_sae=24), KSVD(d_sae=24, k=2, iterations=3)], ids=lambda c: c.kind)
def test_a_classical_dictionary_is_fitted_to_the_same_rows_and_kept_in_the_same_checkpoint(
    sae: Architecture, make_store, tmp_path
) -> None:
    store = make_store()
    first, second = (load_sae(run(configure(store, tmp_path / name, sae))) for name in ("a", "b"))
    assert all(torch.equal(a, b) for a, b in zip(parameters(first), parameters(second), strict=True))
    assert first.is_finished
    assert first.evaluation["fit_rows"] == sum(len(rows) for rows in read_pooled(store))
    assert first.evaluation["l0"] <= sae.k
    assert 0.1 < first.evaluation["r2"] < 1
    assert first.evaluation["hook_points"].keys() == {IMAGE, TEXT}
    x = open_store(store).read(IMAGE, 0, 50)
    assert first.decode(first.encode(x, IMAGE), IMAGE).shape == x.shape
    lines = [json.loads(line) for line in (tmp_path / "a" / "train_log.jsonl").read_text().splitlines()]
    assert lines[-1]["r2"] == pytest.approx(first.evaluation["r2"])


def read_pooled(store: Path) -> list[torch.Tensor]:
    opened = open_store(store)
    masks = {name: ~held_out(opened, name, 0.2, 0) for name in ("image", "text")}
    pairs = {IMAGE: masks["image"], TEXT: masks["text"]}
    return [opened.read_rows(name, np.flatnonzero(mask[opened.item_of(name)])) for name, mask in pairs.items()]


def test_a_budget_of_fewer_rows_is_kept_and_a_refused_fit_leaves_the_folder_free(make_store, tmp_path) -> None:
    config = configure(make_store(), tmp_path / "sae", NMF(d_sae=8, k=2), rows=128)
    with pytest.raises(ConfigError, match="must not be negative"):
        run(config)
    mended = dataclasses.replace(config, sae=KMeans(d_sae=8), normalize=NormalizeConfig(center="none"))
    assert load_sae(run(mended)).evaluation["fit_rows"] == 128


def test_a_checkpoint_is_measured_again_as_it_was_at_its_end(make_store, tmp_path) -> None:
    store = make_store(text_width=WIDTHS[1])
    for kind, sae in {"cross": Crosscoder(d_sae=24), "trans": Transcoder(d_sae=24, k=2)}.items():
        trained = load_sae(run(configure(store, tmp_path / kind, sae, rows=640)))
        found = assess(tmp_path / kind, device="cpu")
        assert found.is_known_split
        for name, numbers in trained.evaluation["hook_points"].items():
            assert found.by_hook_point[name]._asdict() == pytest.approx(numbers)
        written = json.loads((tmp_path / kind / "assessment.json").read_text())
        assert written["evaluation"].keys() == found.by_hook_point.keys()


def test_the_command_shows_a_table_and_writes_where_it_is_told(make_store, tmp_path) -> None:
    run(configure(make_store(), tmp_path / "sae", PCA(d_sae=8, k=2), hook_points=(IMAGE,)))
    other = make_store(300, name="other", gap=0.5)
    arguments = ["sae", "evaluate", str(tmp_path / "sae"), "--store", str(other), "--out", str(tmp_path / "found.json")]
    done = CliRunner().invoke(app, [*arguments, "--hook-point", TEXT])
    assert done.exit_code == 0, done.output
    assert TEXT in done.output
    assert "was not trained here on this store" in done.output
    assert json.loads((tmp_path / "found.json").read_text())["evaluation"].keys() == {TEXT}
    refused = CliRunner().invoke(app, [*arguments, "--hook-point", "text.9"])
    assert refused.exit_code == 2
    assert "no hook point 'text.9'" in refused.output
