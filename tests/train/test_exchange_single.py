"""Dictionaries in single files, as they are released for vision models; the formulas are stated here, their code is not."""

import json
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from typer.testing import CliRunner

from thresher import load_sae
from thresher.cli import app
from thresher.errors import CheckpointError, ConfigError
from thresher.hub import MIRROR
from thresher.train.assess import assess
from thresher.train.exchange import Stated, export_sae, import_sae
from thresher.train.exchange.pickles import collect_state, name_class, read_attributes, read_pickle
from thresher.train.kernels import densify

D_IN, D_SAE, K = 6, 20, 4
X = torch.randn(33, D_IN, generator=torch.Generator().manual_seed(3))


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape) + sum(shape) + seed))


def keep_largest(values: Tensor) -> Tensor:
    found = values.topk(K, dim=1)
    return torch.zeros_like(values).scatter(1, found.indices, found.values.relu())


def check(source: Path, out: Path, codes: Tensor, x_hat: Tensor, norms: Tensor | float = 1.0, **options: object) -> None:
    import_sae(source, out, hook_point="vision.embed", **options)
    trained = load_sae(str(out))
    found = trained.encode(X, "vision.embed")
    torch.testing.assert_close(densify(found, D_SAE).detach(), codes * norms, rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(trained.decode(found, "vision.embed").detach(), x_hat, rtol=1e-4, atol=2e-5)


VISION = {"W_enc": draw(D_IN, D_SAE), "b_enc": draw(D_SAE), "W_dec": draw(D_SAE, D_IN), "b_dec": draw(D_IN)}
NORMS = VISION["W_dec"].norm(dim=1)
SETTINGS = {"d_in": D_IN, "d_sae": D_SAE, "activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}}


def encode_vision() -> tuple[Tensor, Tensor]:
    codes = keep_largest((X - VISION["b_dec"]) @ VISION["W_enc"] + VISION["b_enc"])
    return codes, codes @ VISION["W_dec"] + VISION["b_dec"]


def test_a_pickled_configuration_beside_a_state_dict_is_read_as_data(tmp_path: Path) -> None:
    settings = types.SimpleNamespace(**SETTINGS, dtype=torch.float32, device=torch.device("cpu"), path=Path("x"))
    torch.save({"cfg": settings, "state_dict": VISION}, tmp_path / "clip-vit-base-patch16_-2_resid.pt")
    check(tmp_path, tmp_path / "back", *encode_vision(), NORMS)


def test_a_folder_of_weights_and_a_configuration_is_read(tmp_path: Path) -> None:
    torch.save(VISION, tmp_path / "weights.pt")
    (tmp_path / "config.json").write_text(json.dumps(SETTINGS | {"architecture": "standard"}))
    check(tmp_path, tmp_path / "back", *encode_vision(), NORMS)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_what_a_file_does_not_say_is_asked_for(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    if suffix == ".npz":
        np.savez(path, **{name: value.numpy() for name, value in VISION.items()})
    else:
        save_file(VISION, path)
    with pytest.raises(CheckpointError, match="say --kind"):
        import_sae(path, tmp_path / "back", hook_point="x")
    with pytest.raises(CheckpointError, match="--k gives one"):
        import_sae(path, tmp_path / "back", hook_point="x", stated=Stated("topk", subtracts_bias=True))
    with pytest.raises(CheckpointError, match="--subtract-bias"):
        import_sae(path, tmp_path / "back", hook_point="x", stated=Stated("topk", K))
    check(path, tmp_path / "back", *encode_vision(), NORMS, stated=Stated("topk", K, subtracts_bias=True))
    codes = keep_largest(X @ VISION["W_enc"] + VISION["b_enc"])
    x_hat = codes @ VISION["W_dec"] + VISION["b_dec"]
    check(path, tmp_path / "back", codes, x_hat, NORMS, stated=Stated("topk", K, subtracts_bias=False))


def test_gemma_scope_does_not_subtract_the_bias_first(tmp_path: Path) -> None:
    threshold = draw(D_SAE, seed=1).abs()
    np.savez(tmp_path / "params.npz", threshold=threshold.numpy(), **{name: value.numpy() for name, value in VISION.items()})
    outputs = X @ VISION["W_enc"] + VISION["b_enc"]
    codes = outputs.relu() * (outputs > threshold)
    check(tmp_path, tmp_path / "back", codes, codes @ VISION["W_dec"] + VISION["b_dec"], NORMS)


def test_openai_checkpoints_are_read(tmp_path: Path) -> None:
    encoder, decoder, pre, latent = draw(D_SAE, D_IN), draw(D_IN, D_SAE), draw(D_IN), draw(D_SAE)
    named = {"encoder.weight": encoder, "decoder.weight": decoder, "pre_bias": pre, "latent_bias": latent}
    torch.save(named | {"activation": "TopK", "activation_state_dict": {"k": K}}, tmp_path / "4.pt")
    codes = keep_largest((X - pre) @ encoder.T + latent)
    check(tmp_path / "4.pt", tmp_path / "back", codes, codes @ decoder.T + pre, decoder.norm(dim=0))


def save_msae(path: Path, scale: object, **changes: object) -> tuple[Tensor, Tensor]:
    """A checkpoint as it was released; its codes and reconstructions of X."""
    pre, encoder, latent, mean = draw(D_IN, seed=1), draw(D_IN, D_SAE, seed=1), draw(D_SAE, seed=2), draw(D_IN, seed=2)
    decoder = torch.nn.functional.normalize(draw(D_SAE, D_IN, seed=1), dim=1) * torch.linspace(0.9, 1.1, D_SAE)[:, None]
    named = {"pre_bias": pre, "encoder": encoder, "latent_bias": latent, "decoder": decoder}
    state = named | {"latents_activation_frequency": torch.zeros(D_SAE, dtype=torch.int64)}
    torch.save({"model": state, "mean_center": mean, "scaling_factor": scale, "target_norm": 2.0} | changes, path)
    codes = keep_largest(((X - mean) * 2.5 - pre) @ encoder + latent)
    return codes * decoder.norm(dim=1), (codes @ decoder + pre) / 2.5 + mean


def test_msae_checkpoints_are_read_with_what_their_names_say(tmp_path: Path) -> None:
    path = tmp_path / f"{D_SAE}_{D_IN}_TopKReLU_{K}_RW_False_False_0.0_cc3m_ViT-L~14_train_image_2905954_768.pth"
    codes, x_hat = save_msae(path, np.float64(2.5))
    check(path, tmp_path / "back", codes, x_hat)
    assert load_sae(str(tmp_path / "back")).store_identity["imported"]["k"] == K
    nameless = tmp_path / "best.pth"
    save_msae(nameless, 2.5)
    with pytest.raises(CheckpointError, match="says in its name"):
        import_sae(nameless, tmp_path / "back", hook_point="x")
    preprocessing = {"mean_center": draw(D_IN, seed=2), "scaling_factor": 2.5}
    settings = {"activation": "TopKReLU", "nesting_list": [K, 8], "normalize": False, "latent_soft_cap": 0.0}
    save_msae(nameless, None, model_config=settings, preprocessing=preprocessing)
    check(nameless, tmp_path / "back", codes, x_hat)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("TopKReLU_4_UW_False_False_30.0_x", "latent_soft_cap=30"),
        ("BatchTopKReLU_4_False_False_0.0_x", "no counterpart"),
        ("TopKReLU_4_False_True_0.0_x", "normalised inputs"),
        ("TopKReLU_99_False_False_0.0_x", "k=99 atoms per row of 20"),
    ],
)
def test_what_msae_has_and_we_do_not_is_refused(name: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / f"{D_SAE}_{D_IN}_{name}.pth"
    save_msae(path, 2.5)
    with pytest.raises(CheckpointError, match=message):
        import_sae(path, tmp_path / "back", hook_point="x")


def test_rows_at_unit_norm_are_what_a_dictionary_gets_that_was_trained_on_them(tmp_path: Path) -> None:
    save_file(VISION, tmp_path / "weights.safetensors")
    stated = Stated("relu", subtracts_bias=True)
    import_sae(tmp_path / "weights.safetensors", tmp_path / "raw", hook_point="x", stated=stated)
    import_sae(tmp_path / "weights.safetensors", tmp_path / "unit", hook_point="x", stated=stated, rows="unit")
    raw, unit = (load_sae(str(tmp_path / name)) for name in ("raw", "unit"))
    expected = raw.encode(torch.nn.functional.normalize(X, dim=1), "x")
    found = unit.encode(7 * X, "x")
    torch.testing.assert_close(densify(found, D_SAE), densify(expected, D_SAE))


class Malicious:
    """A pickle that would create a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


def test_reading_a_pickle_runs_nothing_in_it_and_keeps_what_is_data(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    module.top_k = 5
    content = {"evil": Malicious(tmp_path / "victim"), "module": module, "number": np.float32(1.5), "set": {1}, "kind": Path}
    torch.save(content, tmp_path / "all.pt")
    found = read_pickle(tmp_path / "all.pt")
    assert not (tmp_path / "victim").exists()
    assert found["number"] == 1.5
    assert found["set"] == {1}
    assert name_class(found["module"]) == "torch.nn.modules.container.Sequential"
    assert read_attributes(found["module"])["top_k"] == 5
    state = collect_state(found["module"])
    assert all(torch.equal(state[name], value) for name, value in module.state_dict().items())


def test_files_that_hold_no_dictionary_are_refused_with_what_they_hold(tmp_path: Path) -> None:
    out = tmp_path / "back"
    torch.save({"weight": draw(2, 2)}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="it has weight"):
        import_sae(tmp_path / "a.pt", out, hook_point="x")
    (tmp_path / "a.pt").write_bytes(b"PK not really")
    with pytest.raises(CheckpointError, match=r"not a file of torch\.save"):
        import_sae(tmp_path / "a.pt", out, hook_point="x")
    save_file(VISION | {"b_enc": draw(D_SAE + 1)}, tmp_path / "b.safetensors")
    with pytest.raises(CheckpointError, match="more than one dictionary"):
        import_sae(tmp_path, out, hook_point="x")
    with pytest.raises(CheckpointError, match=r"encoder_bias \[21\] beside a dictionary \[20, 6\]"):
        import_sae(tmp_path / "b.safetensors", out, hook_point="x", stated=Stated("relu", subtracts_bias=True))
    save_file(VISION | {"b_enc": torch.full((D_SAE,), torch.nan)}, tmp_path / "b.safetensors")
    with pytest.raises(CheckpointError, match="b_enc: numbers that are not finite"):
        import_sae(tmp_path / "b.safetensors", out, hook_point="x", stated=Stated("relu", subtracts_bias=True))
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(CheckpointError, match="no file of tensors by its ending"):
        import_sae(tmp_path / "notes.txt", out, hook_point="x")
    assert not out.exists()


def test_what_cannot_be_written_or_is_said_twice_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / f"{D_SAE}_{D_IN}_TopKReLU_{K}_RW_False_False_0.0_x.pth"
    save_msae(path, 2.5)
    with pytest.raises(CheckpointError, match="leave out what was said of it: kind"):
        import_sae(path, tmp_path / "back", hook_point="x", stated=Stated("relu"))
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"file/back.: cannot be written"):
        import_sae(path, tmp_path / "file" / "back", hook_point="x")
    import_sae(path, tmp_path / "back", hook_point="x")
    with pytest.raises(CheckpointError, match="name the store to measure with --store"):
        assess(tmp_path / "back")
    with pytest.raises(CheckpointError, match="were compared by their coefficients"):
        export_sae(load_sae(str(tmp_path / "back")), tmp_path / "out", "saelens")


def test_the_command_imports_what_a_repository_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "hub" / "owner" / "released" / "layer_11"
    folder.mkdir(parents=True)
    save_file(VISION, folder / "sae.safetensors")
    monkeypatch.setenv(MIRROR, str(tmp_path / "hub"))
    out = str(tmp_path / "back")
    options = ["--hook-point", "vision.embed", "--kind", "topk", "--k", str(K), "--subtract-bias", "--rows", "unit"]
    done = CliRunner().invoke(app, ["sae", "import", "owner/released/layer_11", out, *options])
    assert done.exit_code == 0, done.output
    assert load_sae(out).config.normalize.rows == "unit"
    refused = CliRunner().invoke(app, ["sae", "import", "owner/released", out, *options])
    assert refused.exit_code == 2
    assert "layer_11" in refused.output
