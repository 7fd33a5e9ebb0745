"""Several texts to a sequence: the store is that of texts alone, and models that mix texts are refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from thresher.config import validate
from thresher.data.sources import MemorySource
from thresher.data.store import Store, open_store
from thresher.errors import ConfigError, ModelError
from thresher.harvest.adapters import HFCausalLMModel, open_adapter
from thresher.harvest.adapters.base import Inputs, Layout, TokenKind
from thresher.harvest.adapters.hf_causal_lm import HFCausalLM
from thresher.harvest.adapters.packing import pack
from thresher.harvest.passes import fill_sequences
from thresher.harvest.rows import gather, locate, select_tokens
from thresher.harvest.run import HarvestConfig, run

CPU = torch.device("cpu")
WORDS = ("a", "red", "square", "and", "two", "small", "green", "circles", "on", "dark", "ground", "one", "word", "after")
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED = SMALL | {"num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0}
CONFIGS: dict[str, Callable[[int], Any]] = {
    "llama": lambda n: transformers.LlamaConfig(vocab_size=n, **GROUPED),
    "gpt2": lambda n: transformers.GPT2Config(vocab_size=n, n_embd=32, n_layer=2, n_head=4, n_positions=64),
    "gpt_neox": lambda n: transformers.GPTNeoXConfig(vocab_size=n, max_position_embeddings=64, **SMALL),
    "gemma2": lambda n: transformers.Gemma2Config(vocab_size=n, head_dim=8, sliding_window=4, **GROUPED),
    "mixtral": lambda n: transformers.MixtralConfig(vocab_size=n, num_local_experts=3, **GROUPED),
}
STATE = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}
MIXING: dict[str, Callable[[int], Any]] = {
    "mamba": lambda n: transformers.MambaConfig(vocab_size=n, **STATE),
    "bloom": lambda n: transformers.BloomConfig(vocab_size=n, hidden_size=32, n_layer=2, n_head=4),
    "recurrent_gemma": lambda n: transformers.RecurrentGemmaConfig(
        vocab_size=n, lru_width=32, attention_window_size=8, block_types=["recurrent", "attention"], **(SMALL | {"head_dim": 8})
    ),
}


def make_texts(n: int = 26) -> list[str]:
    """Texts of 0 to 60 words, unlike each other; some much longer than most."""
    generator = np.random.default_rng(0)
    lengths = [int(length) for length in generator.integers(0, 12, n)]
    lengths[3], lengths[6] = 60, 25
    return [" ".join(generator.choice(WORDS, length).tolist()) for length in lengths]


def harvest(folder: Path, out: Path, **changes: Any) -> Store:
    values = {
        "out": out,
        "model": {"kind": "hf-causal-lm", "name": str(folder), "context": 24},
        "source": {"kind": "in-memory"},
        "hook_points": ["text.1"],
        "batch_size": 16,
        "packed_length": 32,
    }
    config = validate(HarvestConfig, values | changes, "test")
    return open_store(run(config, source=MemorySource(make_texts())))


def load(folder: Path, **changes: Any) -> HFCausalLM:
    adapter = open_adapter(HFCausalLMModel(name=str(folder), **({"context": 40} | changes)), CPU)
    assert isinstance(adapter, HFCausalLM)
    return adapter


def read_rows(adapter: HFCausalLM, inputs: Inputs, text: int | None = None) -> dict[str, Tensor]:
    """The activations of all texts of a batch, or of one."""
    tokens = select_tokens(inputs.layout, "all")
    places, points = locate(tokens, inputs.packing), adapter.resolve(["**"], ["text"])
    with torch.inference_mode():
        captured = adapter.capture(inputs, points)
    kept = torch.ones_like(tokens.item, dtype=torch.bool) if text is None else tokens.item == text
    return {point.name: gather(captured[point.name], places, "tokens")[kept] for point in points}


def assert_same_rows(packed: Store, alone: Store) -> None:
    assert packed.items("text").to_pylist() == alone.items("text").to_pylist()
    assert list(packed.hook_points) == list(alone.hook_points)
    for name in alone.hook_points:
        assert packed.rows(name) == alone.rows(name) > 0
        assert np.array_equal(packed.item_of(name), alone.item_of(name))
        assert np.array_equal(packed.position_of(name), alone.position_of(name))
        if "tokens" in alone.hook_points[name].space:
            assert np.array_equal(packed.token_id_of(name), alone.token_id_of(name))
            assert np.array_equal(packed.column_of(name, "kind"), alone.column_of(name, "kind"))
        found, expected = (store.read(name, 0, store.rows(name)) for store in (packed, alone))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("family", CONFIGS)
def test_packed_activations_are_those_of_texts_alone(family: str, make_causal_lm: Callable[..., Path]) -> None:
    adapter = load(make_causal_lm(CONFIGS[family]))
    adapter.check_packing(48, adapter.resolve(["**"], ["text"]))
    alone = adapter.prepare_texts(make_texts(12))
    packed = adapter.pack_texts(alone, 48)
    assert 1 < packed.shape[0] < alone.shape[0]
    expected, found = (read_rows(adapter, inputs) for inputs in (alone, packed))
    assert set(found) == set(adapter.hook_points)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize(
    "policy",
    [
        {"hook_points": ["text.0.z/heads", "text.final"]},
        {"text_rows": "content", "pool": "mean", "order": "shuffled"},
        {"text_rows": "attended", "positions_per_item": 2, "packed_length": 2},
    ],
)
def test_a_packed_harvest_has_the_rows_of_an_unpacked_one(policy: dict[str, Any], llama_folder: Path, tmp_path: Path) -> None:
    packed, alone = (harvest(llama_folder, tmp_path / passes, text_passes=passes, **policy) for passes in ("packed", "source"))
    assert {"ok", "truncated"} <= {item["status"] for item in alone.items("text").to_pylist()}
    assert_same_rows(packed, alone)


@pytest.mark.parametrize("family", MIXING)
def test_a_model_that_mixes_texts_is_refused(family: str, make_causal_lm: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_causal_lm(MIXING[family])
    with pytest.raises(ModelError, match=r"text_passes=packed: .*; text_passes=length saves padding with any model"):
        harvest(folder, tmp_path / "store", text_passes="packed")
    assert not (tmp_path / "store").exists()


def test_a_family_without_sequences_of_several_texts_is_refused(hf_clip_folder: Path, tmp_path: Path) -> None:
    model = {"kind": "hf-clip", "name": str(hf_clip_folder)}
    with pytest.raises(ModelError, match=r"is for decoder language models \(model\.kind=hf-causal-lm\)"):
        harvest(hf_clip_folder, tmp_path / "store", model=model, text_passes="packed")
    with pytest.raises(ConfigError, match="packed_length=1: at least 2"):
        harvest(hf_clip_folder, tmp_path / "store", model=model, packed_length=1)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_text_does_not_see_the_others_of_its_sequence(attention: str, make_causal_lm: Callable[..., Path]) -> None:
    adapter = load(make_causal_lm(CONFIGS["llama"]), attention=attention)
    found: list[dict[str, Tensor]] = []
    for others in ("red green word", "dark two one"):
        inputs = adapter.pack_texts(adapter.prepare_texts([others, "one small circles on a", others]), 64)
        assert inputs.shape[0] == 1
        found.append(read_rows(adapter, inputs, 1))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_sequences_laid_end_to_end_give_the_same(make_causal_lm: Callable[..., Path]) -> None:
    adapter = load(make_causal_lm(CONFIGS["llama"]))
    inputs = adapter.prepare_texts(make_texts(8))
    stacked, flat = (pack(inputs, 40, is_flat=is_flat) for is_flat in (False, True))
    assert flat.shape == (1, stacked.shape[0] * stacked.shape[1])
    assert stacked.shape[0] > 1
    a, b = read_rows(adapter, stacked), read_rows(adapter, flat)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-5)


@given(st.lists(st.integers(0, 9), max_size=30), st.integers(9, 20))
@settings(deadline=None, max_examples=60)
def test_sequences_hold_every_text_once_and_are_well_filled(lengths: list[int], size: int) -> None:
    sequences = fill_sequences(lengths, size)
    assert sorted(text for found in sequences for text in found) == [text for text, length in enumerate(lengths) if length]
    fills = [sum(lengths[text] for text in found) for found in sequences]
    assert all(fill <= size for fill in fills)
    assert all(a + b > size for place, a in enumerate(fills) for b in fills[:place])


@given(st.lists(st.integers(0, 9), min_size=1, max_size=20), st.integers(9, 70), st.booleans())
@settings(deadline=None, max_examples=60)
def test_every_token_is_at_a_place_of_its_own_with_its_position(lengths: list[int], size: int, is_flat: bool) -> None:
    valid = torch.arange(9) < torch.tensor(lengths)[:, None]
    ids = torch.arange(1, valid.numel() + 1).view(valid.shape)
    kind = torch.where(valid, TokenKind.TEXT, TokenKind.PADDING).to(torch.int8)
    layout = Layout(kind, None, ids, (False,) * len(lengths))
    inputs = pack(Inputs("text", {"input_ids": ids, "attention_mask": valid.long()}, layout), size, is_flat=is_flat)
    rows = select_tokens(layout, "all")
    places = locate(rows, inputs.packing)
    assert inputs.tensors["input_ids"].shape == inputs.shape
    assert torch.equal(inputs.tensors["input_ids"][places.item, places.position], ids[valid])
    assert torch.equal(inputs.tensors["position_ids"][places.item, places.position], rows.position)
    assert int((inputs.tensors["input_ids"] > 0).sum()) == sum(lengths)
    gathered = gather(inputs.tensors["input_ids"].unsqueeze(-1).float(), places, "tokens")
    assert torch.equal(gathered.flatten(), ids[valid].float())
