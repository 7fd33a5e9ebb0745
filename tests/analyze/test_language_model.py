"""The laws of spliced losses on a real language model; needs the folder THRESHER_DATA."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from thresher.analyze.language import reconstruct
from thresher.analyze.run import AnalyzeConfig, load_results, run
from thresher.config import validate
from thresher.data.store import open_store
from thresher.errors import AnalysisError
from thresher.harvest.run import HarvestConfig
from thresher.harvest.run import run as harvest
from thresher.train.checkpoint import load_sae

DATA = Path(os.environ.get("THRESHER_DATA", "/nowhere"))
MODEL = DATA / "stories260K-hf"

pytestmark = pytest.mark.skipif(not MODEL.is_dir(), reason="THRESHER_DATA does not name a folder with stories260K-hf")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Block outputs of a small trained Llama over stories."""
    values = {
        "out": tmp_path_factory.mktemp("language") / "store",
        "model": {"kind": "hf-causal-lm", "name": str(MODEL)},
        "source": {"kind": "text", "files": [str(DATA / "text-corpora" / "tinyshakespeare.txt")], "max_characters": 500},
        "hook_points": ["text.2"],
        "limit": 80,
        "device": "cpu",
    }
    return harvest(validate(HarvestConfig, values, "test"))


@pytest.fixture(scope="module")
def sae(store: Path, make_sae, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TopK dictionary of that block."""
    return make_sae(store, tmp_path_factory.mktemp("language-sae"), ("text.2",), stream={"batch_size": 512, "holdout": 0.2})


def configure(store: Path, sae: Path, out: Path, **fields) -> AnalyzeConfig:
    return validate(
        AnalyzeConfig,
        {"store": store, "saes": {"topk": sae}, "out": out, "n_bootstrap": 20, "figures": "none"} | fields,
        "test",
    )


def test_losses_are_ordered_as_they_must_be_and_the_clean_one_is_the_models_own(store: Path, sae: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    results = load_results(run(configure(store, sae, tmp_path)).parent)
    found = results["saes"]["topk"]["splice"]
    loss = {name: found[name]["value"] for name in ("clean", "spliced", "mean", "zero")}
    assert loss["clean"] < loss["spliced"] < loss["mean"]
    assert 0 < found["recovered_from_mean"]["value"] < 1
    expected = (loss["mean"] - loss["spliced"]) / (loss["mean"] - loss["clean"])
    assert found["recovered_from_mean"]["value"] == pytest.approx(expected)
    assert "modality" not in results["saes"]["topk"]

    opened = open_store(store)
    held_out = results["held_out"]["panels"]["text"]["n_items"]
    assert found["clean"]["n"] == held_out
    model, tokenizer = AutoModelForCausalLM.from_pretrained(MODEL), AutoTokenizer.from_pretrained(MODEL)
    total, n_tokens = 0.0, 0
    records = np.unique(opened.item_of("text.2"))
    from thresher.data.stream import held_out as find_held_out

    chosen = find_held_out(opened, "text", 0.2, 0)
    for index in records[chosen[records]]:
        text = opened.items("text")["text"][int(index)].as_py()
        ids = tokenizer(text, return_tensors="pt").input_ids
        with torch.no_grad():
            logits = model(ids).logits[0, :-1]
        total += float(functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
        n_tokens += ids.shape[1] - 1
    assert loss["clean"] == pytest.approx(total / n_tokens, rel=1e-5)


def test_the_report_shows_the_losses_and_no_modality(store: Path, sae: Path, tmp_path: Path) -> None:
    text = run(configure(store, sae, tmp_path, splice={"documents": 5})).read_text()
    assert "mean-ablated" in text
    assert 'id="classes"' not in text
    assert load_results(tmp_path)["saes"]["topk"]["splice"]["clean"]["n"] == 5


def test_a_limit_of_no_documents_leaves_the_losses_out(store: Path, sae: Path, tmp_path: Path) -> None:
    run(configure(store, sae, tmp_path, splice={"documents": 0}))
    assert "splice" not in load_results(tmp_path)["saes"]["topk"]


def test_other_weights_than_the_harvested_ones_are_refused(store: Path, sae: Path, tmp_path: Path, monkeypatch) -> None:
    from thresher.analyze import language

    def open_other(settings, device):
        adapter = language_open(settings, device)
        adapter.identity = dict(adapter.identity) | {"weights": "others"}
        return adapter

    language_open = language.open_adapter
    monkeypatch.setattr(language, "open_adapter", open_other)
    with pytest.raises(AnalysisError, match="not the weights that were harvested"):
        run(configure(store, sae, tmp_path))


def test_a_dictionary_of_unit_rows_gives_rows_of_their_own_length_back(store: Path, make_sae, tmp_path: Path) -> None:
    folder = make_sae(store, tmp_path / "sae", ("text.2",), rows=5_000, normalize={"rows": "unit"})
    trained = load_sae(folder)
    x = open_store(store).read("text.2", 0, 50)
    unit = trained.decode(trained.encode(x, "text.2"), "text.2")
    torch.testing.assert_close(reconstruct(trained, "text.2")(x), unit * x.norm(dim=1, keepdim=True))
