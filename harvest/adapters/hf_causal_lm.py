"""Decoder language models of transformers: whatever AutoModelForCausalLM loads."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from thresher.config import config
from thresher.harvest.adapters.base import HookPoint, Inputs
from thresher.harvest.adapters.hooks import HookedModel
from thresher.harvest.adapters.hub_models import (
    HubTextModel,
    build_decoder,
    find_context,
    identify,
    load_model,
    load_parts,
    place_model,
)
from thresher.harvest.adapters.layouts import find_last, label_texts
from thresher.harvest.adapters.packing import check_packing, pack
from thresher.harvest.adapters.tokens import TextEncoder


@config
class HFCausalLMModel(HubTextModel):
    """A decoder language model of transformers."""

    kind: Literal["hf-causal-lm"] = "hf-causal-lm"
    """Which family this is."""


class TokenLoss(NamedTuple):
    """Next-token loss summed over tokens, so that batches can be added up."""

    total: Float[Tensor, ""]
    """Sum of negative log-likelihoods in nats, float64, on the device."""
    n_tokens: int
    """Predicted tokens."""


class HFCausalLM(HookedModel):
    """A decoder language model behind the interface of all models."""

    def __init__(self, settings: HFCausalLMModel, device: torch.device) -> None:
        model, (tokenizer,) = load_model(settings, "AutoModelForCausalLM"), load_parts(settings, "AutoTokenizer")
        self._context = find_context(settings, model, tokenizer)
        self._encode = TextEncoder(tokenizer, self._context, pad="longest")
        # Flash attention keeps texts apart in a batch of one sequence only.
        self._is_flat = "flash" in str(getattr(model.config, "_attn_implementation", ""))
        self.identity = identify(settings.kind, settings, model, text=self._encode.identity)
        model, device = place_model(settings, model, device)
        super().__init__(model, {"text": build_decoder(model, lambda: self.prepare_texts(["a b"]))}, device)

    def prepare_texts(self, texts: Sequence[str]) -> Inputs:
        """Token ids [item, position] and the mask of padding, as long as the longest text; the last token is the summary."""
        found = self._encode(texts)
        summary = find_last(found.valid)
        layout = label_texts(found, summary, ~found.valid)
        return Inputs("text", {"input_ids": found.ids, "attention_mask": found.valid.to(torch.int64)}, layout)

    def check_packing(self, length: int, hook_points: Sequence[HookPoint]) -> None:
        """Raises ModelError unless texts keep their activations in shared sequences of `length` places; found by trying."""
        check_packing(self, length, self._context, hook_points, is_flat=self._is_flat)

    def pack_texts(self, inputs: Inputs, length: int) -> Inputs:
        """Texts of `prepare_texts`, several to a sequence, with their positions."""
        return pack(inputs, length, is_flat=self._is_flat)

    def next_token_loss(self, texts: Sequence[str]) -> TokenLoss:
        """Loss of predicting each token of `texts` from those before it; the first token and padding are not predicted.

        Inside `splice`, the loss with the replaced activations.
        """
        inputs = self.prepare_texts(texts)
        with torch.inference_mode():
            logits = self.forward(inputs.send(self.device))[:, :-1].float()
            valid = inputs.layout.valid[:, 1:].to(self.device)
            target = inputs.tensors["input_ids"].to(self.device)[:, 1:].masked_fill(~valid, -100)
            losses = functional.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=-100, reduction="none")
            return TokenLoss(losses.double().sum(), int(inputs.layout.valid[:, 1:].sum()))

    def predict_next(self, text: str) -> tuple[Float[Tensor, "token vocabulary"], Int[Tensor, "token"]]:
        """Logits (float32, on the device) for each token of a text but the first, from those before it; and these tokens.

        Inside `splice`, the logits with the replaced activations.
        """
        inputs = self.prepare_texts([text])
        with torch.inference_mode():
            logits = self.forward(inputs.send(self.device))[0, :-1].float()
        valid = inputs.layout.valid[0, 1:].to(self.device)
        return logits[valid], inputs.tensors["input_ids"].to(self.device)[0, 1:][valid]
