"""Encoder language models of transformers: BERT and its relatives, sentence encoders and dense retrievers."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from thresher.config import config
from thresher.harvest.adapters.base import Inputs
from thresher.harvest.adapters.hooks import HookedModel
from thresher.harvest.adapters.hub_models import (
    HubTextModel,
    find_blocks,
    find_context,
    identify,
    load_model,
    load_parts,
    place_model,
    tap_stream,
)
from thresher.harvest.adapters.layouts import find_last, label_texts
from thresher.harvest.adapters.pooler import Head, Pooler, Pooling, Recipe, read_recipe
from thresher.harvest.adapters.taps import Tower, tap_field, tap_output
from thresher.harvest.adapters.tokens import TextEncoder
from thresher.hub import local_copy


@config
class HFEncoderModel(HubTextModel):
    """An encoder of texts: whatever AutoModel loads that gives a last hidden state."""

    kind: Literal["hf-encoder"] = "hf-encoder"
    """Which family this is."""
    pooling: Pooling | Literal["auto"] = "auto"
    """How tokens become one vector: the first token, the mean of all but padding, or the last token. auto does what the
    checkpoint's sentence-transformers files say, and takes the first token where it has none."""
    normalize: bool | None = None
    """Whether the embedding has unit norm; what the checkpoint says when not given, no where it says nothing."""
    prompt: str = ""
    """Put before every text, for instance `query: `."""


class HFEncoder(HookedModel):
    """A text encoder behind the interface of all models; its output is the embedding."""

    def __init__(self, settings: HFEncoderModel, device: torch.device) -> None:
        model, (tokenizer,) = load_model(settings, "AutoModel"), load_parts(settings, "AutoTokenizer")
        recipe = _find_recipe(settings)
        encoder = model.get_encoder() if model.config.is_encoder_decoder else model
        self._prompt = settings.prompt
        self._pooling = recipe.pooling
        self._encode = TextEncoder(tokenizer, find_context(settings, encoder, tokenizer), pad="longest")
        self.identity = identify(
            settings.kind, settings, model, text=self._encode.identity, prompt=settings.prompt, **recipe._asdict()
        )
        encoder, device = place_model(settings, encoder, device)
        pooler, head = Pooler(recipe.pooling), Head(normalize=recipe.normalize)

        def forward(inputs: Inputs) -> Tensor:
            states = encoder(**inputs.tensors).last_hidden_state
            return head(pooler(states, inputs.tensors["attention_mask"].bool()))

        taps = tap_stream("text", encoder, find_blocks(encoder, encoder.config))
        taps["text.final"] = tap_field(encoder, "last_hidden_state")
        taps |= {"text.pooled": tap_output(pooler), "text.embed": tap_output(head)}
        super().__init__(model, {"text": Tower(forward, taps, lambda: self.prepare_texts(["a b"]))}, device)

    def prepare_texts(self, texts: Sequence[str]) -> Inputs:
        """Token ids [item, position] of prompt and text, and the mask of padding, as long as the longest text."""
        found = self._encode([self._prompt + text for text in texts])
        places = {"cls": torch.zeros(len(texts), dtype=torch.int64), "last": find_last(found.valid)}
        layout = label_texts(found, places.get(self._pooling), ~found.valid)
        return Inputs("text", {"input_ids": found.ids, "attention_mask": found.valid.to(torch.int64)}, layout)


def _find_recipe(settings: HFEncoderModel) -> Recipe:
    """What the settings say, completed by what the checkpoint says."""
    normalize = bool(settings.normalize)
    if settings.pooling != "auto":
        return Recipe(settings.pooling, normalize)
    found = read_recipe(local_copy(settings.name), settings.revision) or Recipe("cls", normalize=False)
    return found if settings.normalize is None else found._replace(normalize=normalize)
