"""Every code block of docs/exchange.md works as written, on untrained dictionaries in the place of those of the README."""

import importlib
import importlib.util
import re
import runpy
import shlex
import warnings
from pathlib import Path

import pytest
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM
from typer.testing import CliRunner

from thresher.cli import app
from thresher.hub import MIRROR
from thresher.train.arch import Architecture, MatchingPursuit, TopK, build
from thresher.train.checkpoint import TrainedSAE, save_sae
from thresher.train.config import TrainConfig
from thresher.train.normalize import Normalizer

ROOT = Path(__file__).resolve().parent.parent
WIDTH = 32


def save_untrained(folder: Path, settings: Architecture) -> None:
    config = TrainConfig(store=Path("s"), hook_points=("text.3",), sae=settings, out=folder)
    normalizer = Normalizer(False, torch.ones(1, WIDTH), torch.full((1,), 2.0))
    identity = {"model": {"name": "EleutherAI/pythia-70m-deduped"}}
    save_sae(folder, TrainedSAE(build(settings, WIDTH, 0), normalizer, config, "f" * 64, identity, {"r2": 0.5}, 1, True))


def import_transformer_lens() -> bool:
    """Whether the extra `interop` brought it; what it warns about while it is imported is its own."""
    if importlib.util.find_spec("transformer_lens") is None:
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        importlib.import_module("transformer_lens")
    return True


@pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning")
def test_every_block_of_the_exchange_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process: a Python block as a module of its own, a command through the application that the command calls."""
    model = GPTNeoXConfig(
        vocab_size=50, hidden_size=WIDTH, num_hidden_layers=6, num_attention_heads=2, intermediate_size=64, bos_token_id=0
    )
    GPTNeoXForCausalLM(model).save_pretrained(tmp_path / "hub" / "EleutherAI" / "pythia-70m-deduped")
    save_untrained(tmp_path / "runs" / "pythia" / "sae" / "mp", MatchingPursuit(d_sae=64, k=4))
    save_untrained(tmp_path / "runs" / "pythia" / "sae" / "topk", TopK(d_sae=64, k=4))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(MIRROR, str(tmp_path / "hub"))
    text = (ROOT / "docs" / "exchange.md").read_text(encoding="utf-8")
    found = re.findall(r"^```(\w+)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    assert {language for language, _ in found} == {"sh", "python"}
    for language, body in found:
        if language == "python":
            if "transformer_lens" in body and not import_transformer_lens():
                continue
            if "nnsight" in body:
                # It reads the source of what it traces from its file.
                if importlib.util.find_spec("nnsight") is not None:
                    (tmp_path / "nnsight_block.py").write_text(body, encoding="utf-8")
                    runpy.run_path(str(tmp_path / "nnsight_block.py"))
                continue
            exec(compile(body, "docs/exchange.md", "exec"), {"__name__": "__main__"})
            continue
        for line in body.splitlines():
            program, *arguments = shlex.split(line)
            assert program == "thresher"
            done = CliRunner().invoke(app, arguments)
            assert done.exit_code == 0, f"{line}\n{done.output}"
