"""Laws of export and import that need no other library."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from thresher import load_sae
from thresher.cli import app
from thresher.errors import CheckpointError, ConfigError
from thresher.hub import MIRROR
from thresher.train.arch import (
    ICA,
    KSVD,
    NMF,
    PCA,
    AbsTopK,
    Architecture,
    BatchTopK,
    BatchTopKCrosscoder,
    Crosscoder,
    DistanceWeighted,
    Gated,
    JumpRelu,
    KMeans,
    MatchingPursuit,
    Matryoshka,
    NestedTopK,
    OnlineDictionary,
    OrthogonalPursuit,
    PAnneal,
    Relu,
    SemiNMF,
    Spade,
    TopK,
    Transcoder,
    build,
)
from thresher.train.assess import assess
from thresher.train.checkpoint import TrainedSAE, save_sae
from thresher.train.config import NOT_WRITTEN, TrainConfig
from thresher.train.exchange import Format, export_sae, import_sae, load_saebench
from thresher.train.exchange.hub import prepare_upload, pull_sae
from thresher.train.kernels import densify
from thresher.train.log import LOG
from thresher.train.normalize import NormalizeConfig, Normalizer

D_IN, D_SAE = 8, 24
IMAGE, TEXT = "vision.embed", "text.embed"
MP = MatchingPursuit(d_sae=D_SAE, k=3)
RELU, TOPK, JUMP = Relu(d_sae=D_SAE), TopK(d_sae=D_SAE, k=3), JumpRelu(d_sae=D_SAE, threshold=0.5)
GATED, ANNEALED, MSAE = Gated(d_sae=D_SAE), PAnneal(d_sae=D_SAE), NestedTopK(d_sae=D_SAE, k=3)
ABS, COMPONENTS, LEARNED = AbsTopK(d_sae=D_SAE, k=3), PCA(d_sae=D_IN, k=3), KSVD(d_sae=D_SAE, k=3)
BATCH, NESTED = BatchTopK(d_sae=D_SAE, k=3.0), Matryoshka(d_sae=D_SAE, k=3.0, prefixes=2)
ROUND_TRIPS: tuple[tuple[Format, Architecture, bool], ...] = (
    *(("saelens", settings, False) for settings in (MP, RELU, TOPK, BATCH, NESTED, JUMP)),
    *(("dictionary-learning", settings, False) for settings in (RELU, TOPK, BATCH, NESTED, JUMP)),
    *((to, settings, False) for to in ("saelens", "dictionary-learning") for settings in (GATED, ANNEALED, MSAE)),
    ("sparsify", TOPK, False),
    ("overcomplete", dataclasses.replace(MP, sign="signed"), True),
    *(("overcomplete", settings, True) for settings in (RELU, TOPK, BATCH, JUMP)),
    *(("saebench", settings, False) for settings in (MP, RELU, TOPK, BATCH, NESTED, JUMP)),
    ("saebench", OrthogonalPursuit(d_sae=D_SAE, k=3, residual_tol=0.1), True),
    *(("saelens", settings, False) for settings in (ABS, COMPONENTS)),
    *(("saebench", settings, True) for settings in (ABS, COMPONENTS, LEARNED, OnlineDictionary(d_sae=D_SAE, k=3))),
)


def make_trained(settings: Architecture, *, rows: str = "as_is", evaluation: dict | None = None) -> TrainedSAE:
    generator = torch.Generator().manual_seed(7)
    sae = build(settings, D_IN, 3)
    for name, value in sae.named_parameters():
        if name != "dictionary":
            value.data += 0.1 * torch.randn(value.shape, generator=generator)
    if settings.kind in ("batch_topk", "matryoshka"):
        sae.observe(sae.loss(torch.randn(200, D_IN, generator=generator))[1])
    normalize = NormalizeConfig(rows=rows, center="per_hook_point")
    config = TrainConfig(store=Path("s"), hook_points=(IMAGE, TEXT), sae=settings, out=Path("o"), normalize=normalize)
    normalizer = Normalizer(rows == "unit", torch.randn(2, D_IN, generator=generator), torch.tensor([0.4, 2.5]))
    return TrainedSAE(sae, normalizer, config, "f" * 64, {"model": {"name": "planted"}}, evaluation or {}, 3, True)


def draw(trained: TrainedSAE, n: int = 65) -> Tensor:
    x = torch.randn(n, D_IN, generator=torch.Generator().manual_seed(1))
    return trained.normalizer.mean[1] + x / trained.normalizer.scale[1]


def encode(trained: TrainedSAE, x: Tensor) -> Tensor:
    return densify(trained.encode(x, TEXT), trained.sae.d_sae).detach()


@pytest.mark.parametrize("rows", ["as_is", "unit"])
@pytest.mark.parametrize(("to", "settings", "lossy"), ROUND_TRIPS, ids=lambda value: getattr(value, "kind", value))
def test_export_then_import_gives_equal_codes(
    to: Format, settings: Architecture, lossy: bool, rows: str, tmp_path: Path
) -> None:
    trained = make_trained(settings, rows=rows)
    if to == "saebench" and rows == "unit":
        with pytest.raises(CheckpointError, match="unit norm"):
            export_sae(trained, tmp_path / to, to, hook_point=TEXT, hook_name="text.3", lossy=True)
        return
    is_lossy = lossy or (rows == "unit" and to != "saelens")
    export_sae(trained, tmp_path / to, to, hook_point=TEXT, hook_name="text.3", lossy=is_lossy)
    import_sae(tmp_path / to, tmp_path / "back", hook_point=TEXT)
    back, x = load_sae(tmp_path / "back"), draw(trained)
    expected = encode(trained, x)
    assert 0 < (expected != 0).float().mean() < 0.9
    torch.testing.assert_close(encode(back, x), expected, rtol=1e-4, atol=2e-5)
    x_hat = trained.decode(trained.encode(x, TEXT), TEXT)
    torch.testing.assert_close(back.decode(back.encode(x, TEXT), TEXT), x_hat, rtol=1e-4, atol=2e-5)
    assert back.is_finished
    assert back.iteration == 0


REFUSED: tuple[tuple[Format, Architecture, str, bool], ...] = (
    ("saelens", dataclasses.replace(MP, sign="signed"), "negative coefficients", True),
    ("saelens", dataclasses.replace(MP, residual_tol=0.1), "residual_tol=0.1", True),
    ("saelens", OrthogonalPursuit(d_sae=D_SAE, k=3), "least-squares", True),
    ("dictionary-learning", MP, "no pursuit", False),
    ("dictionary-learning", BatchTopK(d_sae=D_SAE, k=3.5), "whole numbers", True),
    ("sparsify", RELU, "TopK encoders only", False),
    ("sparsify", BATCH, "the threshold", True),
    ("overcomplete", MP, "sign=relu", True),
    ("overcomplete", OrthogonalPursuit(d_sae=D_SAE, k=3), "non-negative", False),
    ("saebench", dataclasses.replace(MP, sign="abs"), "negative coefficients", True),
    ("saebench", ABS, "negative coefficients", True),
    ("saelens", LEARNED, "least-squares", True),
    ("dictionary-learning", ABS, "no negative codes", False),
    ("sparsify", ABS, "TopK encoders only", False),
    ("overcomplete", ABS, "non-negative", False),
)
WITHOUT_COUNTERPART: tuple[tuple[Architecture, str], ...] = (
    (Spade(d_sae=D_SAE), "sparsemax"),
    (DistanceWeighted(d_sae=D_SAE, unrolled=2), "iterations over all atoms"),
    (KMeans(d_sae=D_SAE), "centroids"),
    (ICA(d_sae=D_IN, k=3), "fitted to the chosen components"),
    (NMF(d_sae=D_SAE, k=3), "iterations over all atoms"),
    (SemiNMF(d_sae=D_SAE, k=3), "iterations over all atoms"),
    (Crosscoder(d_sae=D_SAE, widths=(3, 5)), "several hook points at once"),
    (BatchTopKCrosscoder(d_sae=D_SAE, k=3.0, widths=(3, 5)), "several hook points at once"),
    (Transcoder(d_sae=D_SAE, k=3, widths=(8, 8)), "reconstructs another"),
)


@pytest.mark.parametrize(("settings", "message"), WITHOUT_COUNTERPART, ids=lambda value: getattr(value, "kind", ""))
def test_what_no_library_has_a_place_for_is_refused_even_when_losses_are_allowed(
    settings: Architecture, message: str, tmp_path: Path
) -> None:
    trained = make_trained(settings)
    for to in get_args(Format):
        with pytest.raises(CheckpointError, match=f"{settings.kind}: .*{message}"):
            export_sae(trained, tmp_path / to, to, hook_point=TEXT, hook_name="text.3", lossy=True)
        assert not (tmp_path / to).exists()


@pytest.mark.parametrize(("to", "settings", "message", "comes_near"), REFUSED)
def test_what_a_format_cannot_say_is_refused_by_name_and_recorded_when_asked_for(
    to: Format, settings: Architecture, message: str, comes_near: bool, tmp_path: Path
) -> None:
    trained, names = make_trained(settings), {"hook_point": TEXT, "hook_name": "text.3"}
    with pytest.raises(CheckpointError, match=message):
        export_sae(trained, tmp_path / "out", to, **names)
    assert not (tmp_path / "out").exists()
    if not comes_near:
        with pytest.raises(CheckpointError, match=message):
            export_sae(trained, tmp_path / "out", to, **names, lossy=True)
        return
    written = export_sae(trained, tmp_path / "out", to, **names, lossy=True)
    noted = json.loads((tmp_path / "out" / "thresher.json").read_bytes())["lost"]
    assert noted == list(written.lost)
    assert any(message in each for each in noted)


def test_hook_points_of_different_normalisation_must_be_chosen_and_a_folder_of_other_things_stays(tmp_path: Path) -> None:
    trained = make_trained(TOPK)
    with pytest.raises(CheckpointError, match=f"{IMAGE}, {TEXT}"):
        export_sae(trained, tmp_path / "out", "saelens")
    with pytest.raises(CheckpointError, match="fitted to"):
        export_sae(trained, tmp_path / "out", "saelens", hook_point="text.7")
    same = Normalizer(False, trained.normalizer.mean[:1].expand(2, -1), torch.ones(2))
    export_sae(dataclasses.replace(trained, normalizer=same), tmp_path / "out", "saelens")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(ConfigError, match=r"thesis\.tex"):
        export_sae(trained, tmp_path / "mine", "saelens", hook_point=IMAGE)


@pytest.fixture
def peer(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a SAELens folder of ours with changes to its configuration and tensors, without our note."""

    def make(settings: Architecture, norms: Tensor | None = None, **changes: object) -> Path:
        folder = export_sae(make_trained(settings), tmp_path / "peer", "saelens", hook_point=TEXT).folder
        (folder / "thresher.json").unlink()
        config = json.loads((folder / "cfg.json").read_bytes()) | changes
        (folder / "cfg.json").write_text(json.dumps(config))
        tensors = load_file(folder / "sae_weights.safetensors")
        if norms is not None:
            tensors["W_dec"] = tensors["W_dec"] * norms[:, None]
        save_file(tensors, folder / "sae_weights.safetensors")
        return folder

    return make


def test_atoms_of_other_norms_reconstruct_the_same(peer: Callable[..., Path], tmp_path: Path) -> None:
    norms = torch.linspace(0.5, 2, D_SAE)
    folder = peer(JUMP, norms)
    tensors = load_file(folder / "sae_weights.safetensors")
    x = draw(make_trained(JUMP))
    pre = (x - tensors["b_dec"]) @ tensors["W_enc"] + tensors["b_enc"]
    codes = pre.relu() * (pre > tensors["threshold"])
    import_sae(folder, tmp_path / "back")
    back = load_sae(tmp_path / "back")
    torch.testing.assert_close(encode(back, x), codes * norms, rtol=1e-4, atol=2e-5)
    x_hat = back.decode(back.encode(x, TEXT), TEXT)
    torch.testing.assert_close(x_hat, codes @ tensors["W_dec"] + tensors["b_dec"], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(
    ("settings", "changes", "message"),
    [
        (MP, {"residual_threshold": 0.01}, "residual_threshold=0.01"),
        (MP, {"stop_on_duplicate_support": True}, "picked again"),
        (MP, {"norms": torch.linspace(0.5, 2, D_SAE)}, "unit norm"),
        (ABS, {"norms": torch.linspace(0.5, 2, D_SAE)}, "differ in norm"),
    ],
)
def test_what_ours_cannot_say_is_refused_and_recorded_when_asked_for(
    settings: Architecture, changes: dict, message: str, peer: Callable[..., Path], tmp_path: Path
) -> None:
    folder = peer(settings, **changes)
    with pytest.raises(CheckpointError, match=message):
        import_sae(folder, tmp_path / "back")
    import_sae(folder, tmp_path / "back", lossy=True)
    assert any(message in each for each in load_sae(tmp_path / "back").store_identity["lost"])


@pytest.mark.parametrize("changes", [{"architecture": "temporal"}, {"normalize_activations": "expected_average_only_in"}])
def test_what_has_no_counterpart_is_refused_in_any_case(changes: dict, peer: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no counterpart"):
        import_sae(peer(TOPK, **changes), tmp_path / "back", lossy=True)


class Malicious:
    """A pickle that would create a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.path,))


def test_a_pickle_is_never_run(tmp_path: Path) -> None:
    folder, victim = tmp_path / "peer", tmp_path / "victim"
    export_sae(make_trained(TOPK), folder, "dictionary-learning", hook_point=TEXT)
    torch.save(Malicious(victim), folder / "ae.pt")
    with pytest.raises(CheckpointError, match="pickled module is not loaded"):
        import_sae(folder, tmp_path / "back", lossy=True)
    assert not victim.exists()


def test_folders_of_nobody_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="expected the files of one of these"):
        import_sae(tmp_path, tmp_path / "back")
    save_sae(tmp_path / "own", make_trained(TOPK))
    with pytest.raises(CheckpointError, match="already a checkpoint"):
        import_sae(tmp_path / "own", tmp_path / "back")
    folder = export_sae(make_trained(TOPK), tmp_path / "peer", "sparsify", hook_point=TEXT).folder
    (tmp_path / "own" / LOG).touch()
    with pytest.raises(ConfigError, match="trained here; nothing was changed"):
        import_sae(folder, tmp_path / "own")
    save_file({"W_dec": torch.zeros(D_SAE, D_IN)}, folder / "sae.safetensors")
    with pytest.raises(CheckpointError, match=r"no tensor encoder\.weight"):
        import_sae(folder, tmp_path / "back")
    (folder / "sae.safetensors").write_bytes(b"\x00")
    with pytest.raises(CheckpointError, match="cannot be read"):
        import_sae(folder, tmp_path / "back")


def test_a_training_without_a_store_is_not_evaluated_without_one(tmp_path: Path) -> None:
    trained = make_trained(TOPK)
    save_sae(tmp_path, dataclasses.replace(trained, config=dataclasses.replace(trained.config, store=Path(NOT_WRITTEN))))
    with pytest.raises(CheckpointError, match="name it with --store"):
        assess(tmp_path)


EVALUATION = {
    "n_rows": 100,
    "r2": 0.5,
    "l0": 3.0,
    "hook_points": {IMAGE: {"n_rows": 50, "r2": 0.25, "l0": 3.5}, TEXT: {"n_rows": 50, "r2": 0.75, "l0": 2.5}},
    "by_k": {"1": {"r2": 0.125, "l0": 1.0}},
}


def test_what_is_uploaded_is_the_checkpoint_and_a_card_with_its_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = make_trained(MP, evaluation=EVALUATION)
    save_sae(tmp_path / "sae", trained)
    (tmp_path / "sae" / "train.jsonl").write_text("not for others")
    prepare_upload(tmp_path / "sae", tmp_path / "hub" / "someone" / "sae", "someone/sae")
    found = sorted(path.name for path in (tmp_path / "hub" / "someone" / "sae").iterdir())
    assert found == ["README.md", "config.json", "model.safetensors"]
    card = (tmp_path / "hub" / "someone" / "sae" / "README.md").read_text()
    for line in (
        "| all | 0.5 | 3 | 100 |",
        f"| {IMAGE} | 0.25 | 3.5 | 50 |",
        "| 1 | 0.125 | 1 |",
        'sae = thresher.load_sae("someone/sae")',
        "tags: [sparse-autoencoder, interpretability, mp]",
    ):
        assert line in card.splitlines(), line
    monkeypatch.setenv(MIRROR, str(tmp_path / "hub"))
    assert torch.equal(encode(load_sae("someone/sae"), draw(trained)), encode(trained, draw(trained)))
    pull_sae("someone/sae", tmp_path / "pulled")
    assert torch.equal(encode(load_sae(tmp_path / "pulled"), draw(trained)), encode(trained, draw(trained)))


def test_a_name_that_is_neither_folder_nor_repository_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no name of a repository"):
        load_sae(str(tmp_path / "nothing" / "here"))


def test_the_commands_export_say_what_is_lost_and_import(tmp_path: Path) -> None:
    trained = make_trained(MP)
    save_sae(tmp_path / "sae", trained)
    sae, out, back = (str(tmp_path / name) for name in ("sae", "out", "back"))
    run = CliRunner()
    arguments = ["sae", "export", sae, "--to", "saelens", out, "--hook-point", TEXT, "--hook-name", "blocks.3.hook_resid_post"]
    done = run.invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "out" / "cfg.json").read_bytes())["metadata"]["hook_name"] == "blocks.3.hook_resid_post"
    assert run.invoke(app, ["sae", "import", out, back]).exit_code == 0
    torch.testing.assert_close(encode(load_sae(back), draw(trained)), encode(trained, draw(trained)), rtol=1e-4, atol=2e-5)
    refused = run.invoke(app, ["sae", "export", sae, "--to", "overcomplete", str(tmp_path / "oc"), "--hook-point", TEXT])
    assert refused.exit_code == 2
    assert "sign=relu" in refused.output
    done = run.invoke(
        app, ["sae", "export", sae, "--to", "overcomplete", str(tmp_path / "oc"), "--hook-point", TEXT, "--lossy"]
    )
    assert done.exit_code == 0
    assert "lost: " in done.output
    assert "r2" not in run.invoke(app, ["sae", "card", sae, "me/sae"]).output


def test_an_object_for_saebench_needs_a_layer_in_the_name_of_its_hook(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no layer"):
        export_sae(make_trained(MP), tmp_path / "out", "saebench", hook_point=TEXT)
    export_sae(make_trained(MP), tmp_path / "out", "saebench", hook_point=TEXT, hook_name="blocks.3.hook_resid_post")
    assert load_saebench(tmp_path / "out").cfg.hook_layer == 3
