"""Laws of checkpoints."""

import json

import pytest
import torch

from thresher.errors import CheckpointError
from thresher.train.arch import BatchTopK, MatchingPursuit, Matryoshka, Relu, build
from thresher.train.checkpoint import TrainedSAE, check_width, describe_sae, load_sae, save_sae
from thresher.train.config import TrainConfig
from thresher.train.normalize import NormalizeConfig, Normalizer


@pytest.fixture
def trained(tmp_path) -> TrainedSAE:
    config = TrainConfig(
        store=tmp_path / "store",
        hook_points=("vision.embed", "text.embed"),
        sae=Matryoshka(d_sae=24, k=3.5),
        out=tmp_path / "sae",
        normalize=NormalizeConfig(rows="unit"),
        seed=4,
    )
    sae = build(config.sae, 8, 4)
    for seed in range(3):
        sae.observe(sae.loss(torch.randn(20, 8, generator=torch.Generator().manual_seed(seed)))[1])
    normalizer = Normalizer(True, torch.randn(2, 8), torch.rand(2))
    return TrainedSAE(
        sae=sae,
        normalizer=normalizer,
        config=config,
        store_fingerprint="f" * 64,
        store_identity={"model": {"name": "planted"}},
        evaluation={"r2": 0.5, "l0": 3.0},
        iteration=3,
        is_finished=True,
    )


def test_what_is_saved_is_loaded(trained: TrainedSAE, tmp_path) -> None:
    save_sae(tmp_path / "sae", trained)
    loaded = load_sae(tmp_path / "sae")
    x = torch.randn(30, 8)
    for name in trained.hook_points:
        codes = trained.encode(x, name)
        assert all(torch.equal(a, b) for a, b in zip(codes, loaded.encode(x, name), strict=True))
        assert torch.equal(trained.decode(codes, name), loaded.decode(codes, name))
    assert loaded.config == trained.config
    assert loaded.evaluation == trained.evaluation
    assert loaded.store_fingerprint == trained.store_fingerprint
    assert loaded.store_identity == trained.store_identity
    assert (loaded.iteration, loaded.is_finished) == (3, True)


def test_equal_saes_give_equal_files(trained: TrainedSAE, tmp_path) -> None:
    for name in "ab":
        save_sae(tmp_path / name, trained)
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_the_description_needs_no_tensors(trained: TrainedSAE, tmp_path) -> None:
    save_sae(tmp_path / "sae", trained)
    found = describe_sae(tmp_path / "sae")
    assert found["architecture"]["kind"] == "matryoshka"
    assert found["hook_points"] == ["vision.embed", "text.embed"]
    assert found["evaluation"] == {"r2": 0.5, "l0": 3.0}
    assert found["normalizer"]["rows"] == "unit"
    json.dumps(found)


def test_rows_of_half_precision_and_fewer_atoms_are_encoded(trained: TrainedSAE) -> None:
    codes = trained.encode(torch.randn(5, 8).bfloat16(), "text.embed", k=2)
    assert codes.indices.shape[1] <= 2
    assert codes.values.dtype == torch.float32
    assert not codes.values.requires_grad


def test_a_hook_point_it_was_not_fitted_to_and_another_width_are_refused(trained: TrainedSAE) -> None:
    with pytest.raises(CheckpointError, match=r"vision\.3: the dictionary was fitted to vision\.embed, text\.embed"):
        trained.encode(torch.randn(5, 8), "vision.3")
    with pytest.raises(CheckpointError, match=r"text\.embed: rows of width 9 for a dictionary of width 8"):
        trained.encode(torch.randn(5, 9), "text.embed")
    with pytest.raises(CheckpointError, match=r"text\.embed: the store has rows of width 9"):
        check_width(trained, "text.embed", 9)
    check_width(trained, "text.embed", 8)


def test_a_folder_without_a_checkpoint_is_refused(tmp_path) -> None:
    for read in (load_sae, describe_sae):
        with pytest.raises(CheckpointError, match=r"no checkpoint of a dictionary: config\.json is missing"):
            read(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("version", 99, r"format version 99, this thresher reads 1"),
        ("format", "other", r"not a checkpoint of thresher"),
        ("d_in", 9, r"cannot be loaded"),
        ("training", {"k": 1}, r"training|field|mistake"),
    ],
)
def test_another_version_or_a_misfit_is_refused(trained: TrainedSAE, tmp_path, field, value, message) -> None:
    save_sae(tmp_path / "sae", trained)
    path = tmp_path / "sae" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(CheckpointError, match=message):
        load_sae(tmp_path / "sae")


def test_missing_or_damaged_tensors_are_refused(trained: TrainedSAE, tmp_path) -> None:
    save_sae(tmp_path / "sae", trained)
    model = tmp_path / "sae" / "model.safetensors"
    model.write_bytes(model.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_sae(tmp_path / "sae")
    model.unlink()
    for read in (load_sae, describe_sae):
        with pytest.raises(CheckpointError, match=r"model\.safetensors is missing"):
            read(tmp_path / "sae")
    (tmp_path / "sae" / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_sae(tmp_path / "sae")


@pytest.mark.parametrize("config", [MatchingPursuit(d_sae=24, k=3), BatchTopK(d_sae=24, k=3.0), Relu(d_sae=24)])
def test_tensors_of_another_architecture_are_refused(trained: TrainedSAE, tmp_path, config) -> None:
    save_sae(tmp_path / "sae", trained)
    path = tmp_path / "sae" / "config.json"
    description = json.loads(path.read_text())
    description["training"]["sae"] = {"kind": config.kind, "d_sae": 24}
    if config.kind != "relu":
        description["training"]["sae"]["k"] = 3
    path.write_text(json.dumps(description))
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_sae(tmp_path / "sae")
