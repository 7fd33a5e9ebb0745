"""What other libraries release is read as they meant it: their modules, saved as they save them, give the codes expected."""

import json
import types
from collections.abc import Callable
from pathlib import Path

import peers
import pytest
import torch
from torch import Tensor, nn

from thresher.train.checkpoint import load_sae
from thresher.train.exchange import export_sae, import_sae
from thresher.train.kernels import densify

D_IN, D_SAE, ROWS = 12, 40, 65
HOOK = "vision.embed"
Need = Callable[[str], None]


def draw_rows() -> Tensor:
    return torch.randn(ROWS, D_IN, generator=torch.Generator().manual_seed(1))


def draw_into(module: nn.Module) -> None:
    """Random parameters, so that no atom has unit norm and no bias is 0."""
    generator = torch.Generator().manual_seed(5)
    for value in module.parameters():
        value.data = torch.randn(value.shape, generator=generator) / (1 if value.ndim == 2 else 10)


def check(source: Path, out: Path, x: Tensor, codes: Tensor, x_hat: Tensor, norms: Tensor | float) -> None:
    """Our codes are theirs as lengths, our reconstructions theirs."""
    import_sae(source, out, hook_point=HOOK)
    trained = load_sae(out)
    found = trained.encode(x, HOOK)
    assert 0 < (codes != 0).float().mean() < 0.9
    torch.testing.assert_close(densify(found, D_SAE).detach(), (codes * norms).detach(), rtol=1e-4, atol=3e-5)
    restored = trained.normalizer.restore(trained.decode(found, HOOK), x)
    torch.testing.assert_close(restored, x_hat.detach(), rtol=1e-4, atol=3e-5)


DICTIONARY_LEARNING = (
    ("dictionary", "GatedAutoEncoder", "GatedAutoEncoder"),
    ("dictionary", "AutoEncoderNew", "AutoEncoderNew"),
    ("dictionary", "JumpReluAutoEncoder", "JumpReluAutoEncoder"),
    ("trainers.top_k", "AutoEncoderTopK", "AutoEncoderTopK"),
    ("trainers.batch_top_k", "BatchTopKSAE", "BatchTopKSAE"),
    ("trainers.matryoshka_batch_top_k", "MatryoshkaBatchTopKSAE", "MatroyshkaBatchTopKSAE"),
)


@pytest.mark.interop
@pytest.mark.parametrize(("module", "name", "called"), DICTIONARY_LEARNING)
def test_what_dictionary_learning_saves_gives_its_codes(
    module: str, name: str, called: str, dictionary_learning: Callable[[str], types.ModuleType], tmp_path: Path
) -> None:
    more = {"k": 5} if "top_k" in module else {}
    more |= {"group_sizes": [10, D_SAE - 10]} if "matryoshka" in module else {}
    sae = getattr(dictionary_learning(module), name)(D_IN, D_SAE, **more)
    draw_into(sae)
    if "threshold" in sae.state_dict():
        sae.threshold.data = sae.threshold.data.abs() if sae.threshold.ndim else torch.tensor(0.6)
    torch.save(sae.state_dict(), tmp_path / "ae.pt")
    (tmp_path / "config.json").write_text(json.dumps({"trainer": {"dict_class": called, **more}, "buffer": {}}))
    x = draw_rows()
    norms = sae.W_dec.norm(dim=1) if hasattr(sae, "W_dec") else sae.decoder.weight.norm(dim=0)
    codes = sae.encode(x)
    check(tmp_path, tmp_path / "back", x, codes, sae.decode(codes), norms)


def make_overcomplete(name: str, **options: object) -> nn.Module:
    home = {"SAE": "base", "RATopKSAE": "rasae", "BatchTopKSAE": "batchtopk_sae", "MpSAE": "mp_sae"}.get(name, "topk_sae")
    return getattr(peers.import_peer(f"overcomplete.sae.{home}"), name)(D_IN, D_SAE, **options)


OVERCOMPLETE: dict[str, Callable[[], nn.Module]] = {
    "topk": lambda: make_overcomplete("TopKSAE", top_k=5),
    "tied": lambda: make_overcomplete("TopKSAE", top_k=5).tied(),
    "untied": lambda: make_overcomplete("TopKSAE", top_k=5).untied(bias=True),
    "batch_topk": lambda: make_overcomplete("BatchTopKSAE", top_k=5 * ROWS),
    "mp": lambda: make_overcomplete("MpSAE", k=5),
    "not_normalised": lambda: make_overcomplete("SAE", dictionary_params={"normalization": "identity"}),
    "archetypal": lambda: make_overcomplete("RATopKSAE", points=torch.randn(50, D_IN), top_k=5, delta=0.5),
    "batch_norm": lambda: make_overcomplete(
        "TopKSAE", top_k=5, encoder_module=peers.import_peer("overcomplete.sae.modules").MLPEncoder(D_IN, D_SAE, nb_blocks=0)
    ),
}


@pytest.mark.interop
@pytest.mark.parametrize("name", OVERCOMPLETE)
def test_modules_that_overcomplete_pickles_give_their_codes(name: str, need: Need, tmp_path: Path) -> None:
    need("overcomplete")
    sae, x = OVERCOMPLETE[name](), draw_rows()
    draw_into(sae)
    sae.train()
    sae(x)
    sae(0.9 * x)  # So that the running threshold is no value that a code has.
    sae.eval()
    torch.save(sae, tmp_path / "sae.pth")
    with torch.no_grad():
        _, codes, x_hat = sae(x)
    norms = 1.0 if name == "mp" else sae.get_dictionary().norm(dim=1)
    check(tmp_path / "sae.pth", tmp_path / "back", x, codes, x_hat, norms)


@pytest.mark.interop
@pytest.mark.parametrize("rows", ["layer_norm", "constant_norm_rescale"])
def test_saelens_shapes_rows_as_we_do_there_and_back(rows: str, need: Need, tmp_path: Path) -> None:
    need("saelens")
    classes = peers.import_peer("sae_lens.saes.topk_sae")
    sae = classes.TopKSAE(classes.TopKSAEConfig(d_in=D_IN, d_sae=D_SAE, k=5, normalize_activations=rows))
    draw_into(sae)
    sae.W_dec.data /= sae.W_dec.data.norm(dim=1, keepdim=True)
    sae.save_model(tmp_path / "theirs")
    x = 0.04 * draw_rows() + 0.01
    codes = sae.encode(x)
    x_hat = sae.decode(codes)
    check(tmp_path / "theirs", tmp_path / "back", x, codes, x_hat, 1.0)
    export_sae(load_sae(tmp_path / "back"), tmp_path / "again", "saelens")
    again = peers.import_peer("sae_lens").SAE.load_from_disk(str(tmp_path / "again"))
    torch.testing.assert_close(again.encode(x), codes, rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(again.decode(again.encode(x)), x_hat, rtol=1e-4, atol=2e-5)


@pytest.mark.interop
def test_settings_from_before_saelens_6_mean_what_saelens_takes_them_for(need: Need, tmp_path: Path) -> None:
    need("saelens")
    classes = peers.import_peer("sae_lens.saes.topk_sae")
    made = classes.TopKSAE(classes.TopKSAEConfig(d_in=D_IN, d_sae=D_SAE, k=5))
    draw_into(made)
    made.save_model(tmp_path / "theirs")
    old = {"hook_point": HOOK, "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 5}, "normalize_activations": False}
    shared = {"architecture": "standard", "d_in": D_IN, "d_sae": D_SAE, "dtype": "float32", "device": "cpu"}
    (tmp_path / "theirs" / "cfg.json").write_text(json.dumps(shared | old))
    sae = peers.import_peer("sae_lens").SAE.load_from_disk(str(tmp_path / "theirs"))
    x = draw_rows()
    codes = sae.encode(x)
    assert (codes != 0).sum(1).max() == 5
    check(tmp_path / "theirs", tmp_path / "back", x, codes, sae.decode(codes), sae.W_dec.norm(dim=1))
