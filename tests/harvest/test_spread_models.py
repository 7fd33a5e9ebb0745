"""A model that is spread over devices is the same model."""

from pathlib import Path

import accelerate
import pytest
import torch

from thresher.config import validate
from thresher.errors import ConfigError
from thresher.harvest.adapters import open_adapter
from thresher.harvest.adapters.hf_causal_lm import HFCausalLMModel
from thresher.harvest.adapters.hub_models import load_model
from thresher.harvest.adapters.weights import fingerprint_weights

CPU = torch.device("cpu")


def make_settings(folder: Path, device_map: str) -> HFCausalLMModel:
    return validate(HFCausalLMModel, {"kind": "hf-causal-lm", "name": str(folder), "device_map": device_map}, "test")


def test_a_spread_model_gives_the_same_activations_under_the_same_identity(llama_folder: Path) -> None:
    whole, spread = (open_adapter(make_settings(llama_folder, how), CPU) for how in ("none", "auto"))
    assert whole.identity == spread.identity
    points = whole.resolve(["text.*"], ["text"])
    assert points == spread.resolve(["text.*"], ["text"])
    inputs = whole.prepare_texts(["one word after another", "and no end"])
    with torch.inference_mode():
        expected = whole.capture(inputs.send(whole.device), points)
        found = spread.capture(inputs.send(spread.device), points)
    for point in points:
        assert torch.equal(found[point.name].cpu(), expected[point.name].cpu())


def test_weights_that_wait_elsewhere_have_the_same_fingerprint(llama_folder: Path) -> None:
    model = load_model(make_settings(llama_folder, "none"), "AutoModelForCausalLM")
    before = fingerprint_weights(model)
    accelerate.cpu_offload(model, execution_device=CPU)
    assert any(weight.is_meta for weight in model.parameters())
    assert fingerprint_weights(model) == before


def test_several_processes_of_a_machine_cannot_all_spread_theirs(llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="launch one process per machine"):
        load_model(make_settings(llama_folder, "auto"), "AutoModelForCausalLM")
