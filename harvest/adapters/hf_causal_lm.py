"""Decoder language models of transformers: whatever AutoModelForCausalLM loads."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from thresher.config import config
from thresher.errors import ConfigError, ModelError
from thresher.harvest.adapters.base import Inputs, Precision
from thresher.harvest.adapters.hooks import HookedModel, Tower
from thresher.harvest.adapters.layouts import find_last, label_texts
from thresher.harvest.adapters.tokens import TextEncoder
from thresher.harvest.adapters.taps import Tap, tap_field, tap_output
from thresher.harvest.adapters.weights import NO_HUB, fingerprint_weights, plain_log, torch_dtype
from thresher.hub import local_copy


@config
class HFCausalLMModel:
    """A decoder language model of transformers."""

    kind: Literal["hf-causal-lm"] = "hf-causal-lm"
    """Which family this is."""
    name: str
    """Hub id (<owner>/<name>) or folder, with model and tokenizer."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    context: int | None = None
    """Longest text in tokens, BOS included; the model's own limit when not given."""
    precision: Precision = "float32"
    """What the model computes in."""

    def __post_init__(self) -> None:
        if self.context is not None and self.context < 2:
            raise ConfigError(f"context={self.context}: at least 2 tokens")


class TokenLoss(NamedTuple):
    """Next-token loss summed over tokens, so that batches can be added up."""

    total: Float[Tensor, ""]
    """Sum of negative log-likelihoods in nats, float64, on the device."""
    n_tokens: int
    """Predicted tokens."""


class HFCausalLM(HookedModel):
    """A decoder language model behind the interface of all models."""

    def __init__(self, settings: HFCausalLMModel, device: torch.device) -> None:
        model, tokenizer = _load(settings)
        self._encode = TextEncoder(tokenizer, _find_context(settings, model), pad="longest")
        self.identity: Mapping[str, Any] = {
            "kind": settings.kind,
            "name": settings.name,
            "revision": getattr(model.config, "_commit_hash", None) or settings.revision,
            "precision": settings.precision,
            "weights": fingerprint_weights(model),
            "text": self._encode.identity,
        }
        model = model.eval().requires_grad_(requires_grad=False).to(device)
        taps: dict[str, Tap] = {f"text.{i}": tap_output(block) for i, block in enumerate(find_blocks(model))}
        taps["text.final"] = tap_field(model.get_decoder(), "last_hidden_state")

        def forward(inputs: Inputs) -> Tensor:
            return model(**inputs.tensors, use_cache=False).logits

        super().__init__(model, {"text": Tower(forward, taps, lambda: self.prepare_texts(["a b"]))}, device)

    def prepare_texts(self, texts: Sequence[str]) -> Inputs:
        """Token ids [item, position] and the mask of padding, as long as the longest text; the last token is the summary."""
        found = self._encode(texts)
        summary = find_last(found.valid)
        layout = label_texts(found, summary, ~found.valid)
        return Inputs("text", {"input_ids": found.ids, "attention_mask": found.valid.to(torch.int64)}, layout)

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


@plain_log()
def _load(settings: HFCausalLMModel) -> tuple[Any, Any]:
    """Model and tokenizer. Raises ModelError when they cannot be had."""
    # Takes seconds, and the configuration of this family is needed without it.
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place: Any = local_copy(settings.name)
    options: dict[str, Any] = {"revision": settings.revision} if settings.revision else {}
    try:
        model = AutoModelForCausalLM.from_pretrained(place, dtype=torch_dtype(settings.precision), **options)
        return model, AutoTokenizer.from_pretrained(place, **options)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(f"transformers cannot load {settings.name!r}: {error}; {NO_HUB}") from error


def _find_context(settings: HFCausalLMModel, model: Any) -> int:
    own: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    context = settings.context or own
    if context is None:
        raise ModelError(f"{settings.name}: the model states no longest text; set model.context")
    if own is not None and context > own:
        raise ModelError(f"{settings.name}: context={context} is longer than the model's {own} positions")
    return context


def find_blocks(model: Any) -> list[nn.Module]:
    """The decoder blocks: the outermost list of as many modules as the configuration counts layers."""
    n_layers = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    lists = {name: found for name, found in model.base_model.named_modules() if isinstance(found, nn.ModuleList)}
    fitting = sorted((name for name, found in lists.items() if len(found) == n_layers), key=lambda name: name.count("."))
    if not fitting:
        raise ModelError(f"{type(model).__name__}: found no list of {n_layers} blocks; lists of modules: {', '.join(lists)}")
    return list(lists[fitting[0]])
