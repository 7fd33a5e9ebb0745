"""Spliced losses for stores of language models: opens the model that the store was harvested from."""

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from thresher.analyze.config import AnalyzeConfig
from thresher.analyze.inputs import Inputs
from thresher.analyze.metrics.resample import Resample
from thresher.analyze.panels import Panel
from thresher.analyze.splice import (
    LanguageModel,
    Replacement,
    SpliceResult,
    ablate_to,
    ablate_to_zero,
    measure_losses,
    summarize_losses,
)
from thresher.errors import AnalysisError
from thresher.harvest.adapters import HFCausalLMModel, open_adapter
from thresher.progress import progress
from thresher.train.checkpoint import TrainedSAE

KIND = "hf-causal-lm"
"""The family of models that predict the next token."""


def measure_splice(config: AnalyzeConfig, inputs: Inputs, panels: Mapping[str, Panel]) -> dict[str, SpliceResult]:
    """Losses per dictionary on held-out documents; empty when the store is not of a language model, or none are asked for.

    Raises AnalysisError when the model is not the one that was harvested, ModelError when it cannot be had.
    """
    model = inputs.store.identity.get("model")
    if not isinstance(model, Mapping) or model.get("kind") != KIND or not config.splice.documents or "text" not in panels:
        return {}
    panel = panels["text"]
    texts = _held_out_texts(config, inputs, panel)
    adapter = _reopen(cast(Mapping[str, Any], model), next(iter(inputs.saes.values())).sae.dictionary.device)
    mean = torch.from_numpy(np.asarray(inputs.store.moments(panel.hook_point).mean))
    replacements: dict[str, Replacement] = {"zero": ablate_to_zero, "mean": ablate_to(mean)}
    replacements |= {f"sae:{name}": reconstruct(trained, panel.hook_point) for name, trained in inputs.saes.items()}
    first = int(inputs.store.position_of(panel.hook_point)[panel.rows].min())
    with progress("next-token loss", len(texts), "documents") as advance:
        losses = measure_losses(adapter, panel.hook_point, texts, replacements, first, advance)
    if len(losses.n_tokens) == 0:
        raise AnalysisError(f"{inputs.store.path}: no held-out text has a second token to predict; set splice.documents=0")
    resample = Resample(config.n_bootstrap, config.seed)
    return {name: summarize_losses(losses, f"sae:{name}", resample) for name in inputs.saes}


def reconstruct(trained: TrainedSAE, hook_point: str) -> Replacement:
    """Encode and decode; rows that the dictionary sees at unit norm get their own length back."""

    def replace(x: Tensor) -> Tensor:
        return trained.normalizer.restore(trained.decode(trained.encode(x, hook_point), hook_point), x)

    return replace


def _held_out_texts(config: AnalyzeConfig, inputs: Inputs, panel: Panel) -> list[str]:
    items = panel.items
    if len(items) > config.splice.documents:
        chosen = np.random.default_rng(config.seed).choice(len(items), config.splice.documents, replace=False)
        items = items[np.sort(chosen)]
    return inputs.store.items("text", columns=["text"])["text"].take(pa.array(items)).to_pylist()


def _reopen(identity: Mapping[str, Any], device: torch.device) -> LanguageModel:
    settings = HFCausalLMModel(
        name=identity["name"],
        revision=identity["revision"],
        context=identity["text"]["context"],
        precision=identity["precision"],
    )
    adapter = open_adapter(settings, device)
    if adapter.identity["weights"] != identity["weights"]:
        raise AnalysisError(
            f"{settings.name}: these are not the weights that were harvested; restore them, or set splice.documents=0"
        )
    return cast(LanguageModel, adapter)
