"""Folders that we export are loaded by the libraries they are for, which then give our codes and reconstructions."""

import dataclasses
import importlib
import importlib.util
import types
from collections.abc import Callable
from pathlib import Path

import peers
import pytest
import torch
from torch import Tensor

from thresher.analyze.splice import from_position
from thresher.errors import CheckpointError
from thresher.train.arch import (
    AbsTopK,
    Architecture,
    BatchTopK,
    JumpRelu,
    MatchingPursuit,
    Matryoshka,
    OrthogonalPursuit,
    Relu,
    TopK,
    build,
)
from thresher.train.checkpoint import TrainedSAE, load_sae
from thresher.train.config import TrainConfig
from thresher.train.exchange import export_sae, import_sae, load_saebench
from thresher.train.exchange.convert import Format
from thresher.train.exchange.files import read_json, read_tensors
from thresher.train.kernels import densify
from thresher.train.normalize import NormalizeConfig, Normalizer

D_IN, D_SAE, ROWS = 12, 40, 65
IMAGE, TEXT = "vision.embed", "text.embed"
LINEAR: tuple[Architecture, ...] = (
    Relu(d_sae=D_SAE),
    TopK(d_sae=D_SAE, k=5),
    BatchTopK(d_sae=D_SAE, k=5.0),
    Matryoshka(d_sae=D_SAE, k=5.0, prefixes=3),
    JumpRelu(d_sae=D_SAE, threshold=0.5),
)
MP = MatchingPursuit(d_sae=D_SAE, k=5)
OMP = OrthogonalPursuit(d_sae=D_SAE, k=5)


def name_kind(value: object) -> str:
    return getattr(value, "kind", str(value))


def make_trained(settings: Architecture, *, rows: str = "as_is") -> TrainedSAE:
    """A dictionary with no parameter at its start value, two hook points with a normalisation each."""
    generator = torch.Generator().manual_seed(7)
    sae = build(settings, D_IN, 3)
    for name, value in sae.named_parameters():
        if name != "dictionary":
            value.data += 0.1 * torch.randn(value.shape, generator=generator)
    if settings.kind in ("batch_topk", "matryoshka"):
        sae.observe(sae.loss(torch.randn(200, D_IN, generator=generator))[1])
    config = TrainConfig(
        store=Path("store"),
        hook_points=(IMAGE, TEXT),
        sae=settings,
        out=Path("sae"),
        normalize=NormalizeConfig(rows=rows, center="per_hook_point"),
    )
    mean, scale = torch.randn(2, D_IN, generator=generator), torch.tensor([0.4, 2.5])
    normalizer = Normalizer(rows == "unit", 0.1 * mean if rows == "unit" else 3 * mean, scale * (5 if rows == "unit" else 1))
    return TrainedSAE(sae, normalizer, config, "f" * 64, {"model": {"name": "planted"}}, {"r2": 0.5}, 3, True)


def draw_rows(trained: TrainedSAE, hook_point: str) -> Tensor:
    """Raw rows that are about as the normaliser expects them."""
    group = trained.hook_points.index(hook_point)
    noise = torch.randn(ROWS, D_IN, generator=torch.Generator().manual_seed(11))
    return trained.normalizer.mean[group] + noise / trained.normalizer.scale[group]


def ours(trained: TrainedSAE, x: Tensor, hook_point: str) -> tuple[Tensor, Tensor]:
    """Our dense codes in raw units, and our reconstruction."""
    codes = trained.encode(x, hook_point)
    scale = trained.normalizer.scale[trained.hook_points.index(hook_point)]
    return densify(codes, D_SAE).detach() / scale, trained.decode(codes, hook_point)


def check(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    """Both agree to float32 rounding, and the codes are no trivial ones."""
    assert 0 < (expected[0] != 0).float().mean() < 0.9
    for theirs, mine in zip(found, expected, strict=True):
        torch.testing.assert_close(theirs.detach(), mine, rtol=1e-4, atol=2e-5)


@pytest.fixture
def export(tmp_path: Path) -> Callable[..., Path]:
    def write(trained: TrainedSAE, to: Format, hook_point: str = IMAGE, **options: object) -> Path:
        return export_sae(trained, tmp_path / f"{to}-{hook_point}", to, hook_point=hook_point, **options).folder

    return write


Export = Callable[..., Path]
Need = Callable[[str], None]


def load_saelens(folder: Path) -> torch.nn.Module:
    return peers.import_peer("sae_lens").SAE.load_from_disk(str(folder))


@pytest.mark.interop
@pytest.mark.parametrize("hook_point", [IMAGE, TEXT])
@pytest.mark.parametrize("settings", [MP, *LINEAR, AbsTopK(d_sae=D_SAE, k=5)], ids=name_kind)
def test_saelens_gives_our_codes_on_raw_rows(settings: Architecture, hook_point: str, export: Export, need: Need) -> None:
    need("saelens")
    trained = make_trained(settings)
    x = draw_rows(trained, hook_point)
    sae = load_saelens(export(trained, "saelens", hook_point))
    codes = sae.encode(x)
    check((codes, sae.decode(codes)), ours(trained, x, hook_point))
    assert sae.cfg.metadata.hook_name == hook_point
    assert sae.cfg.metadata.model_name == "planted"


@pytest.mark.interop
@pytest.mark.parametrize("settings", [MP, LINEAR[1], LINEAR[4]], ids=name_kind)
def test_saelens_brings_rows_to_unit_norm_as_we_do_and_gives_their_length_back(
    settings: Architecture, export: Export, need: Need
) -> None:
    need("saelens")
    trained = make_trained(settings, rows="unit")
    x = 3 * draw_rows(trained, IMAGE)
    sae = load_saelens(export(trained, "saelens"))
    codes = sae.encode(x)
    expected, x_hat = ours(trained, x, IMAGE)
    check((codes / D_IN**0.5, sae.decode(codes)), (expected, x_hat * x.norm(dim=1, keepdim=True)))


@pytest.mark.interop
def test_sparsify_gives_our_codes_on_raw_rows(export: Export, need: Need) -> None:
    need("sparsify")
    trained = make_trained(TopK(d_sae=D_SAE, k=5))
    x = draw_rows(trained, TEXT)
    sae = peers.import_peer("sparsify").SparseCoder.load_from_disk(export(trained, "sparsify", TEXT))
    values, indices, _ = sae.encode(x)
    dense = torch.zeros(ROWS, D_SAE).scatter(1, indices, values.detach())
    check((dense, sae.decode(values, indices)), ours(trained, x, TEXT))


PLACES = {
    "relu": ("dictionary", "AutoEncoder"),
    "topk": ("trainers.top_k", "AutoEncoderTopK"),
    "batch_topk": ("trainers.batch_top_k", "BatchTopKSAE"),
    "matryoshka": ("trainers.batch_top_k", "BatchTopKSAE"),
    "jumprelu": ("dictionary", "JumpReluAutoEncoder"),
}


@pytest.mark.interop
@pytest.mark.parametrize("settings", LINEAR, ids=name_kind)
def test_dictionary_learning_gives_our_codes_on_raw_rows(
    settings: Architecture, export: Export, dictionary_learning: Callable[[str], types.ModuleType]
) -> None:
    module, name = PLACES[settings.kind]
    cls = getattr(dictionary_learning(module), name)
    trained = make_trained(settings)
    x = draw_rows(trained, IMAGE)
    sae = cls.from_pretrained(str(export(trained, "dictionary-learning") / "ae.pt"))
    codes = sae.encode(x)
    check((codes, sae.decode(codes)), ours(trained, x, IMAGE))


OVERCOMPLETE = {"mp": "mp_sae", "relu": "base", "topk": "topk_sae", "jumprelu": "jump_sae", "batch_topk": "jump_sae"}


@pytest.mark.interop
@pytest.mark.parametrize("settings", [dataclasses.replace(MP, sign="signed"), *LINEAR[:3], LINEAR[4]], ids=name_kind)
def test_overcomplete_gives_our_codes_once_the_offset_is_taken_care_of(
    settings: Architecture, export: Export, need: Need
) -> None:
    need("overcomplete")
    trained = make_trained(settings)
    x = draw_rows(trained, IMAGE)
    with pytest.raises(CheckpointError, match="has no bias"):
        export(trained, "overcomplete")
    folder = export(trained, "overcomplete", lossy=True)
    description = read_json(folder / "config.json")
    module = peers.import_peer(f"overcomplete.sae.{OVERCOMPLETE[settings.kind]}")
    sae = getattr(module, description["class"])(**description["arguments"])
    sae.load_state_dict(torch.load(folder / "state_dict.pt", weights_only=True))
    offset = read_tensors(folder / "offset.safetensors")["offset"]
    codes = sae.encode(x - offset if settings.kind == "mp" else x)[1]
    check((codes, sae.decode(codes) + offset), ours(trained, x, IMAGE))


@pytest.mark.interop
def test_overcomplete_needs_no_offset_where_nothing_is_centred(export: Export, need: Need) -> None:
    need("overcomplete")
    trained = make_trained(MatchingPursuit(d_sae=D_SAE, k=5, sign="signed", bias=False))
    trained.sae.bias.data.zero_()
    trained = trained_without_centre(trained)
    x = draw_rows(trained, IMAGE)
    folder = export(trained, "overcomplete")
    sae = peers.import_peer("overcomplete.sae.mp_sae").MpSAE(**read_json(folder / "config.json")["arguments"])
    sae.load_state_dict(torch.load(folder / "state_dict.pt", weights_only=True))
    codes = sae.encode(x)[1]
    check((codes, sae.decode(codes)), ours(trained, x, IMAGE))
    assert not (folder / "offset.safetensors").exists()


def trained_without_centre(trained: TrainedSAE) -> TrainedSAE:
    normalizer = trained.normalizer._replace(mean=torch.zeros_like(trained.normalizer.mean))
    return dataclasses.replace(trained, normalizer=normalizer)


@pytest.mark.parametrize("settings", [MP, OMP, *LINEAR], ids=name_kind)
def test_the_object_for_saebench_gives_our_codes_on_raw_rows(settings: Architecture, export: Export) -> None:
    trained = make_trained(settings)
    x = draw_rows(trained, TEXT)
    options = {"model_name": "pythia-70m-deduped", "hook_name": "blocks.3.hook_resid_post", "lossy": settings is OMP}
    sae = load_saebench(export(trained, "saebench", TEXT, **options))
    codes = sae.encode(x.view(5, 13, D_IN))
    assert codes.shape == (5, 13, D_SAE)
    check((codes.flatten(0, 1), sae.decode(codes).flatten(0, 1)), ours(trained, x, TEXT))
    torch.testing.assert_close(sae(x), ours(trained, x, TEXT)[1], rtol=1e-4, atol=2e-5)
    assert (sae.W_enc.shape, sae.W_dec.shape, sae.b_enc.shape, sae.b_dec.shape) == (
        (D_IN, D_SAE),
        (D_SAE, D_IN),
        (D_SAE,),
        (D_IN,),
    )
    assert sae.check_decoder_norms()
    assert (sae.cfg.hook_layer, sae.cfg.model_name, sae.cfg.hook_name) == (3, "pythia-70m-deduped", "blocks.3.hook_resid_post")
    half = sae.to(dtype=torch.bfloat16)
    assert half.encode(x).dtype == half.W_dec.dtype == torch.bfloat16
    assert half.check_decoder_norms()


@pytest.mark.interop
def test_the_object_for_saebench_has_the_fields_of_its_own_classes(export: Export) -> None:
    if importlib.util.find_spec("sae_bench") is None:
        pytest.skip("sae_bench is not installed: pip install --no-deps sae-bench")
    theirs = peers.import_peer("sae_bench.custom_saes.custom_sae_config").CustomSAEConfig
    module = peers.import_peer("sae_bench.custom_saes.relu_sae")
    reference = module.ReluSAE(D_IN, D_SAE, "pythia-70m-deduped", 3, torch.device("cpu"), torch.float32)
    sae = load_saebench(export(make_trained(MP), "saebench", hook_name="blocks.3.hook_resid_post"))
    wanted = {name for name in vars(reference.cfg) if not name.startswith("_")} | set(theirs.__dataclass_fields__)
    assert wanted <= set(vars(sae.cfg))
    assert set(theirs.__dataclass_fields__) <= set(sae.cfg.to_dict())
    methods = {name for name in vars(module.ReluSAE.__mro__[1]) if not name.startswith("_")}
    parameters = {name for name, _ in reference.named_parameters()}
    assert {name for name in (methods | parameters) if not hasattr(sae, name)} == {"test_sae"}


def draw_into(sae: torch.nn.Module, norms: float = 1.0) -> None:
    """Random parameters: decoder rows of this norm, thresholds positive."""
    generator = torch.Generator().manual_seed(5)
    for name, value in sae.named_parameters():
        drawn = torch.randn(value.shape, generator=generator)
        value.data = drawn.abs() / 2 if name == "threshold" else drawn / (1 if drawn.ndim == 2 else 10)
    sae.W_dec.data = norms * torch.nn.functional.normalize(sae.W_dec.data, dim=1)


SAELENS: tuple[tuple[str, str, float, dict[str, object]], ...] = (
    ("standard", "Standard", 1.5, {}),
    ("gated", "Gated", 1.5, {"apply_b_dec_to_input": True}),
    ("jumprelu", "JumpReLU", 0.5, {"apply_b_dec_to_input": False}),
    ("topk", "TopK", 0.7, {"k": 5, "rescale_acts_by_decoder_norm": False}),
    ("topk", "TopK", 0.7, {"k": 5, "rescale_acts_by_decoder_norm": True}),
    ("abstopk", "AbsTopK", 0.7, {"k": 5, "rescale_acts_by_decoder_norm": False}),
    ("abstopk", "AbsTopK", 1.3, {"k": 5, "rescale_acts_by_decoder_norm": True}),
    (
        "matching_pursuit",
        "MatchingPursuit",
        1.0,
        {"max_iterations": 5, "residual_threshold": 0.0, "stop_on_duplicate_support": False},
    ),
)


@pytest.mark.interop
@pytest.mark.parametrize(("module", "name", "norms", "own"), SAELENS)
def test_what_saelens_saves_gives_its_codes_and_reconstructions_here(
    module: str, name: str, norms: float, own: dict[str, object], need: Need, tmp_path: Path
) -> None:
    """Codes become lengths: theirs times the norm of the atom, unless SAELens rescales by the norms itself."""
    need("saelens")
    classes = peers.import_peer(f"sae_lens.saes.{module}_sae")
    config = getattr(classes, f"{name}SAEConfig")(d_in=D_IN, d_sae=D_SAE, **own)
    config.metadata.hook_name = "blocks.3.hook_resid_post"
    sae = getattr(classes, f"{name}SAE")(config)
    draw_into(sae, norms)
    sae.save_model(tmp_path / "theirs")
    import_sae(tmp_path / "theirs", tmp_path / "back")
    back, x = load_sae(tmp_path / "back"), torch.randn(ROWS, D_IN, generator=torch.Generator().manual_seed(1))
    hook = "blocks.3.hook_resid_post"
    codes = back.encode(x, hook)
    theirs = sae.encode(x)
    factor = 1.0 if own.get("rescale_acts_by_decoder_norm") else norms
    check((densify(codes, D_SAE), back.decode(codes, hook)), ((theirs * factor).detach(), sae.decode(theirs).detach()))


@pytest.mark.interop
def test_what_sparsify_saves_gives_its_codes_and_reconstructions_here(need: Need, tmp_path: Path) -> None:
    need("sparsify")
    sae = peers.make_sparsify_topk(torch.zeros(D_SAE, D_IN), 5)
    draw_into(sae)
    sae.save_to_disk(tmp_path / "theirs")
    import_sae(tmp_path / "theirs", tmp_path / "back", hook_point=TEXT)
    back, x = load_sae(tmp_path / "back"), torch.randn(ROWS, D_IN, generator=torch.Generator().manual_seed(1))
    values, indices = peers.encode_sparsify(sae, x)
    codes = back.encode(x, TEXT)
    expected = torch.zeros(ROWS, D_SAE).scatter(1, indices, values.detach())
    check((densify(codes, D_SAE), back.decode(codes, TEXT)), (expected, sae.decode(values, indices).detach()))


@pytest.mark.interop
@pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning")
def test_transformer_lens_goes_on_with_our_reconstructions(need: Need) -> None:
    need("saelens")  # brings transformer_lens
    lens = peers.import_peer("transformer_lens")
    settings = lens.HookedTransformerConfig(
        n_layers=2, d_model=D_IN, n_ctx=16, d_head=6, n_heads=2, d_vocab=30, act_fn="relu", seed=0, device="cpu"
    )
    model, trained = lens.HookedTransformer(settings), make_trained(TopK(d_sae=D_SAE, k=5))
    tokens = torch.arange(10).view(1, 10)
    splice = from_position(1, lambda x: trained.decode(trained.encode(x, TEXT), TEXT))
    seen = {}

    def hook(x: Tensor, hook: object) -> Tensor:
        seen["before"], seen["after"] = x, splice(x)
        return seen["after"]

    spliced = model.run_with_hooks(tokens, fwd_hooks=[("blocks.0.hook_resid_post", hook)])
    assert torch.equal(seen["before"][:, 0], seen["after"][:, 0])
    rows = seen["before"][0, 1:]
    torch.testing.assert_close(seen["after"][0, 1:], trained.decode(trained.encode(rows, TEXT), TEXT))
    assert not torch.equal(spliced, model(tokens))
