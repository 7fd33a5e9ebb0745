"""Decoder language models: blocks of any architecture, context, next-token loss."""

import os
import random
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from thresher.errors import ConfigError, ModelError
from thresher.harvest.adapters import HFCausalLMModel, open_adapter
from thresher.harvest.adapters.hf_causal_lm import HFCausalLM
from thresher.harvest.adapters.hub_models import find_blocks

DATA = os.environ.get("THRESHER_DATA")
CPU = torch.device("cpu")
TEXTS = ["a red square and a circle", "one", "two small green circles on dark"]
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
CONFIGS: dict[str, Callable[[int], Any]] = {
    "gpt_neox": lambda n: transformers.GPTNeoXConfig(vocab_size=n, **SMALL),
    "opt": lambda n: transformers.OPTConfig(
        vocab_size=n, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=16
    ),
    "gemma2": lambda n: transformers.Gemma2Config(vocab_size=n, head_dim=8, num_key_value_heads=2, **SMALL),
    "mixtral": lambda n: transformers.MixtralConfig(vocab_size=n, num_key_value_heads=2, num_local_experts=3, **SMALL),
}


def load(folder: Path, **changes: Any) -> HFCausalLM:
    adapter = open_adapter(HFCausalLMModel(name=str(folder), **changes), CPU)
    assert isinstance(adapter, HFCausalLM)
    return adapter


@pytest.mark.parametrize("family", CONFIGS)
def test_blocks_are_found_in_any_architecture(family: str, make_causal_lm: Callable[..., Path]) -> None:
    adapter = load(make_causal_lm(CONFIGS[family]))
    inputs = adapter.prepare_texts(TEXTS)
    with torch.inference_mode():
        captured = adapter.capture(inputs, adapter.resolve(["*"], ["text"]))
        states = adapter.model(**inputs.tensors, output_hidden_states=True, use_cache=False).hidden_states
    assert list(captured) == ["text.start", "text.0", "text.1", "text.final"]
    assert torch.equal(captured["text.start"], states[0])
    assert torch.equal(captured["text.0"], states[1])
    assert torch.equal(captured["text.final"], states[-1])
    assert not torch.equal(captured["text.1"], captured["text.final"])


def test_a_model_without_limit_asks_for_a_context(make_causal_lm: Callable[..., Path]) -> None:
    folder = make_causal_lm(lambda n: transformers.MambaConfig(vocab_size=n, hidden_size=32, num_hidden_layers=2, state_size=4))
    with pytest.raises(ModelError, match=r"set model\.context"):
        load(folder)
    adapter = load(folder, context=8)
    assert adapter.prepare_texts(["one word after another and no end"]).layout.valid.shape == (1, 8)


def test_a_context_beyond_the_model_is_refused(llama_folder: Path) -> None:
    with pytest.raises(ModelError, match="context=25 is longer than the model's 24 positions"):
        load(llama_folder, context=25)
    with pytest.raises(ConfigError, match="context=1"):
        HFCausalLMModel(name="x", context=1)


def test_the_loss_is_the_models_own(llama_folder: Path) -> None:
    adapter = load(llama_folder)
    loss = adapter.next_token_loss(TEXTS)
    total, n_tokens = 0.0, 0
    for text in TEXTS:
        ids = adapter.prepare_texts([text]).tensors["input_ids"]
        with torch.no_grad():
            total += adapter.model(input_ids=ids, labels=ids).loss.item() * (ids.shape[1] - 1)
        n_tokens += ids.shape[1] - 1
    assert loss.n_tokens == n_tokens
    assert loss.total.item() == pytest.approx(total, rel=1e-5)


@pytest.mark.skipif(DATA is None, reason="needs the trained model and texts in THRESHER_DATA")
def test_a_trained_model_knows_stories_from_shuffled_words() -> None:
    folder = Path(DATA or "")
    adapter = load(folder / "stories260K-hf")
    stories = (folder / "text-corpora" / "tinystories_sample.txt").read_text(encoding="utf-8").split("\n")
    words = " ".join(stories).split()
    random.Random(0).shuffle(words)
    shuffled = [" ".join(words[start : start + 40]) for start in range(0, len(words), 40)]
    told, mixed = (adapter.next_token_loss([text for text in texts if text]) for texts in (stories, shuffled))
    assert told.total.item() / told.n_tokens == pytest.approx(1.84, abs=0.1)
    assert mixed.total.item() / mixed.n_tokens > 4


def test_the_loss_follows_what_is_spliced_in(llama_folder: Path) -> None:
    adapter = load(llama_folder)
    clean = adapter.next_token_loss(TEXTS).total
    with adapter.splice("text.1", lambda activation: activation):
        assert torch.equal(adapter.next_token_loss(TEXTS).total, clean)
    with adapter.splice("text.final", torch.zeros_like):
        uniform = adapter.next_token_loss(TEXTS)
    vocabulary = adapter.model.config.vocab_size
    assert uniform.total.item() / uniform.n_tokens == pytest.approx(torch.tensor(vocabulary).log().item(), rel=1e-5)
    assert torch.equal(adapter.next_token_loss(TEXTS).total, clean)


def test_splices_at_several_places_hold_together(llama_folder: Path) -> None:
    adapter = load(llama_folder)
    seen: list[str] = []
    with adapter.splice("text.0", lambda a: seen.append("0") or a), adapter.splice("text.2", lambda a: seen.append("2") or a):
        adapter.next_token_loss(TEXTS)
    assert seen == ["0", "2"]


def test_a_splice_outside_the_adapter_says_so(llama_folder: Path) -> None:
    adapter = load(llama_folder)
    with adapter.splice("text.0", torch.zeros_like), pytest.raises(ModelError, match="through the adapter's own methods"):
        adapter.model(input_ids=torch.tensor([[1, 5, 6]]))


def test_texts_without_a_token_are_rows_of_nothing(make_causal_lm: Callable[..., Path]) -> None:
    adapter = load(
        make_causal_lm(
            lambda n: transformers.GPT2Config(
                vocab_size=n, n_embd=32, n_layer=2, n_head=2, n_positions=24, bos_token_id=0, eos_token_id=0
            ),
            with_bos=False,
        )
    )
    layout = adapter.prepare_texts(["", "two"]).layout
    assert layout.valid.any(dim=1).tolist() == [False, True]
    assert adapter.next_token_loss(["", "o"]).n_tokens == 0


def test_images_are_refused(llama_folder: Path) -> None:
    with pytest.raises(ModelError, match="no tower for images"):
        load(llama_folder).prepare_images([])


def test_a_model_that_is_not_there_is_named() -> None:
    with pytest.raises(ModelError, match="/nowhere/at/all"):
        load(Path("/nowhere/at/all"))


def test_a_model_of_two_lists_of_layers_gives_the_outer_one(llama_folder: Path) -> None:
    adapter = load(llama_folder)
    adapter.model.model.layers[0].mlp.extra = nn.ModuleList([nn.Identity() for _ in range(3)])
    assert find_blocks(adapter.model.model, adapter.model.config)[0] is adapter.model.model.layers[0]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_implementations_of_attention_give_the_same_rows(llama_folder: Path, attention: str) -> None:
    chosen, usual = load(llama_folder, attention=attention), load(llama_folder)
    assert chosen.model.config._attn_implementation == attention
    assert chosen.identity["attention"] == attention
    names = ["text.0", "text.1.z", "text.1"]
    with torch.inference_mode():
        mine, other = (a.capture(a.prepare_texts(TEXTS), a.resolve(names, ["text"])) for a in (chosen, usual))
    is_token = usual.prepare_texts(TEXTS).layout.valid
    for name in names:
        torch.testing.assert_close(mine[name][is_token], other[name][is_token], rtol=1e-5, atol=1e-5)


COMPILED = """
import sys
import torch
from thresher.harvest.adapters import HFCausalLMModel, open_adapter

names = ["text.0", "text.1.mlp", "text.1"]
texts = ["a red square and a circle", "one", "two small green circles on dark"]
plain, compiled = (open_adapter(HFCausalLMModel(name=sys.argv[1]), torch.device("cpu")) for _ in range(2))
compiled.compile(compiled.resolve(names, ["text"]))
with torch.inference_mode():
    mine, other = (a.capture(a.prepare_texts(texts), a.resolve(names, ["text"])) for a in (compiled, plain))
valid = plain.prepare_texts(texts).layout.valid
for name in names:
    torch.testing.assert_close(mine[name][valid], other[name][valid], rtol=1e-5, atol=1e-5)
assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1, "nothing was compiled"
"""


@pytest.mark.slow
def test_a_compiled_language_model_gives_the_same_rows(llama_folder: Path, python: Path) -> None:
    # In a process without jaxtyping's import hook, which torch.compile cannot trace.
    done = subprocess.run([python, "-c", COMPILED, str(llama_folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
