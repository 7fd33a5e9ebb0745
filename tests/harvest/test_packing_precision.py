"""Packed texts keep their activations in every precision and attention, compiled and spread; what mixes texts is refused."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import pytest
import torch
import transformers

from thresher.errors import ModelError
from thresher.harvest.adapters import HFCausalLMModel, open_adapter
from thresher.harvest.adapters.hf_causal_lm import HFCausalLM
from thresher.harvest.rows import gather, locate, select_tokens

CPU = torch.device("cpu")
WORDS = ("a", "red", "square", "and", "two", "small", "green", "circles", "on", "dark", "ground", "one", "word", "after")
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED = SMALL | {"num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0}
CONFIGS: dict[str, Callable[[int], Any]] = {
    "llama": lambda n: transformers.LlamaConfig(vocab_size=n, **GROUPED),
    "gemma2": lambda n: transformers.Gemma2Config(vocab_size=n, head_dim=8, sliding_window=4, **GROUPED),
    "mixtral": lambda n: transformers.MixtralConfig(vocab_size=n, num_local_experts=3, **GROUPED),
}
ERROR = {"float32": 1e-5, "bfloat16": 3e-2}
"""Norm of the difference of a row, as a share of its norm."""


def make_texts(n: int = 12) -> list[str]:
    generator = np.random.default_rng(0)
    return [" ".join(generator.choice(WORDS, int(length)).tolist()) for length in generator.integers(1, 12, n)]


def load(folder: Path, **changes: Any) -> HFCausalLM:
    adapter = open_adapter(HFCausalLMModel(name=str(folder), **({"context": 40} | changes)), CPU)
    assert isinstance(adapter, HFCausalLM)
    return adapter


def largest_error(adapter: HFCausalLM) -> float:
    """Over all rows of the blocks' outputs, packed against alone, after the check that a harvest makes."""
    points = adapter.resolve(["text.*"], ["text"])
    adapter.check_packing(48, points)
    alone = adapter.prepare_texts(make_texts())
    packed = adapter.pack_texts(alone, 48)
    assert packed.shape[0] < alone.shape[0] / 2
    tokens, error = select_tokens(alone.layout, "all"), 0.0
    with torch.inference_mode():
        expected, found = (adapter.capture(inputs, points) for inputs in (alone, packed))
    for point in points:
        a = gather(expected[point.name], tokens, "tokens").float()
        b = gather(found[point.name], locate(tokens, packed.packing), "tokens").float()
        error = max(error, float(((a - b).norm(dim=1) / a.norm(dim=1)).max()))
    return error


@pytest.mark.parametrize(
    ("family", "attention"),
    [("llama", "eager"), ("llama", "sdpa"), ("gemma2", "eager"), ("mixtral", "eager"), ("mixtral", "sdpa")],
)
def test_packed_activations_are_those_of_texts_alone_to_the_rounding(
    family: str, attention: str, make_causal_lm: Callable[..., Path]
) -> None:
    folder = make_causal_lm(CONFIGS[family])
    for precision, bound in ERROR.items():
        assert largest_error(load(folder, precision=precision, attention=attention)) <= bound
    with torch.autocast("cpu", torch.bfloat16):
        assert largest_error(load(folder, attention=attention)) <= ERROR["bfloat16"]


@pytest.mark.parametrize("precision", ERROR)
def test_texts_that_change_each_other_are_found_in_every_precision(precision: str, make_causal_lm: Callable[..., Path]) -> None:
    changes = {"head_dim": 8, "lru_width": 32, "attention_window_size": 8, "block_types": ["recurrent", "attention"]}
    folder = make_causal_lm(lambda n: transformers.RecurrentGemmaConfig(vocab_size=n, **(SMALL | changes)))
    adapter = load(folder, precision=precision)
    with pytest.raises(ModelError, match=r"texts that share a sequence change each other.*error 0\.\d+ at text\.0\)"):
        adapter.check_packing(48, adapter.resolve(["text.*"], ["text"]))
    adapter.check_packing(48, adapter.resolve(["module:model.embed_tokens"], ["text"]))


def test_packed_texts_of_a_model_that_waits_in_memory_and_on_disk_keep_their_activations(
    make_causal_lm: Callable[..., Path], tmp_path: Path
) -> None:
    adapter = load(make_causal_lm(CONFIGS["llama"]))
    whole = largest_error(adapter)
    parts = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.rotary_emb": "cpu"}
    parts |= {"model.layers.1": "disk", "model.norm": "disk", "lm_head": "disk"}
    accelerate.dispatch_model(adapter.model, parts, main_device="cpu", offload_dir=tmp_path / "disk", force_hooks=True)
    assert any(weight.is_meta for weight in adapter.model.parameters())
    assert largest_error(adapter) == whole <= ERROR["float32"]


COMPILED = """
import functools, sys
import torch
from thresher.config import validate
from thresher.data.sources import MemorySource
from thresher.data.store import open_store
from thresher.harvest.run import HarvestConfig, run

# Traced as ever; what is traced is run as it is, which saves the C++ compiler.
torch.compile = functools.partial(torch.compile, backend="eager")
texts = ["one two three four", "a b", "and red and green", "word after word", "on", "small circles on dark ground"] * 2
values = {"model": {"kind": "hf-causal-lm", "name": sys.argv[1]}, "source": {"kind": "in-memory"}, "device": "cpu",
    "batch_size": 12, "packed_length": 32}
for names in (["text.0"], ["text.0", "text.1"]):
    stores = []
    for passes, flag in (("source", False), ("packed", True)):
        out = f"{sys.argv[2]}/{len(names)}-{passes}"
        changes = {"out": out, "hook_points": names, "text_passes": passes, "compile": flag}
        config = validate(HarvestConfig, values | changes, "test")
        stores.append(open_store(run(config, source=MemorySource(texts))))
    for name in stores[0].hook_points:
        alone, packed = (store.read(name, 0, store.rows(name)) for store in stores)
        torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-5)
assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1, "nothing was compiled"
"""


@pytest.mark.slow
def test_packed_texts_of_a_compiled_model_keep_their_activations(
    make_causal_lm: Callable[..., Path], tmp_path: Path, python: Path
) -> None:
    # In a process without jaxtyping's import hook, which torch.compile cannot trace.
    command = [python, "-c", COMPILED, str(make_causal_lm(CONFIGS["llama"])), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
