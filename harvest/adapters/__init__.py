"""One file per model family. A new family is its file, its member of `ModelConfig` and its line in `open_adapter`."""

from typing import Annotated

import pydantic
import torch

from thresher.harvest.adapters.base import Adapter
from thresher.harvest.adapters.hf_causal_lm import HFCausalLM, HFCausalLMModel
from thresher.harvest.adapters.hf_clip import HFClip, HFClipModel
from thresher.harvest.adapters.open_clip import OpenClip, OpenClipModel

ModelConfig = Annotated[OpenClipModel | HFClipModel | HFCausalLMModel, pydantic.Field(discriminator="kind")]
"""The model to read, by family."""

__all__ = ["Adapter", "HFCausalLMModel", "HFClipModel", "ModelConfig", "OpenClipModel", "open_adapter"]


def open_adapter(model: OpenClipModel | HFClipModel | HFCausalLMModel, device: torch.device) -> Adapter:
    """Load a model. Raises ModelError when it cannot be had or is of a form that its family does not know."""
    match model:
        case OpenClipModel():
            return OpenClip(model, device)
        case HFClipModel():
            return HFClip(model, device)
        case HFCausalLMModel():
            return HFCausalLM(model, device)
