"""One file per model family. A new family is its file, its member of `ModelConfig` and its line in `open_adapter`."""

from typing import Annotated

import pydantic
import torch

from thresher.harvest.adapters.base import Adapter
from thresher.harvest.adapters.hf_causal_lm import HFCausalLM, HFCausalLMModel
from thresher.harvest.adapters.hf_clip import HFClip, HFClipModel
from thresher.harvest.adapters.hf_encoder import HFEncoder, HFEncoderModel
from thresher.harvest.adapters.hf_vision import HFVision, HFVisionModel
from thresher.harvest.adapters.hf_vlm import HFVisionLanguage, HFVisionLanguageModel
from thresher.harvest.adapters.open_clip import OpenClip, OpenClipModel
from thresher.harvest.adapters.timm_vision import TimmModel, TimmVision

AnyModel = OpenClipModel | HFClipModel | HFCausalLMModel | HFVisionLanguageModel | HFEncoderModel | HFVisionModel | TimmModel

ModelConfig = Annotated[AnyModel, pydantic.Field(discriminator="kind")]
"""The model to read, by family."""

__all__ = [
    "Adapter",
    "HFCausalLMModel",
    "HFClipModel",
    "HFEncoderModel",
    "HFVisionLanguageModel",
    "HFVisionModel",
    "ModelConfig",
    "OpenClipModel",
    "TimmModel",
    "open_adapter",
]


def open_adapter(model: AnyModel, device: torch.device) -> Adapter:
    """Load a model. Raises ModelError when it cannot be had or is of a form that its family does not know."""
    match model:
        case OpenClipModel():
            return OpenClip(model, device)
        case HFClipModel():
            return HFClip(model, device)
        case HFCausalLMModel():
            return HFCausalLM(model, device)
        case HFVisionLanguageModel():
            return HFVisionLanguage(model, device)
        case HFEncoderModel():
            return HFEncoder(model, device)
        case HFVisionModel():
            return HFVision(model, device)
        case TimmModel():
            return TimmVision(model, device)
