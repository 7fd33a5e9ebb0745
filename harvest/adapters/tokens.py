"""Texts to padded token ids by a tokenizer of transformers, with nothing lost in silence."""

import threading
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from thresher.runs import fingerprint


class Encoded(NamedTuple):
    """Texts as token ids, padded on the right, or on the left where a model that reads its padding wants it there."""

    ids: Int[Tensor, "item position"]
    valid: Bool[Tensor, "item position"]
    """False on padding."""
    special: Bool[Tensor, "item position"]
    """BOS, EOS, CLS, SEP."""
    is_truncated: tuple[bool, ...]
    """Per text: it had more tokens than the context."""


class TextEncoder:
    """A tokenizer with a context length; may be called from several threads."""

    def __init__(self, tokenizer: Any, context: int, pad: Literal["longest", "context"]) -> None:
        self._tokenizer = tokenizer
        self._context = context
        self._pad = pad
        # Where a model reads its padding, the side of it matters.
        self._is_left = pad == "context" and tokenizer.padding_side == "left"
        # Tokenizers written in Rust refuse to be used by two threads at once.
        self._lock = threading.Lock()
        named = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id)
        self._special = torch.tensor(sorted({int(token) for token in named if token is not None}), dtype=torch.int64)
        pads = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
        self._pad_id = next(int(token) for token in pads if token is not None)

    @property
    def pad_id(self) -> int:
        """The id that fills what is not of a text."""
        return self._pad_id

    @property
    def identity(self) -> dict[str, Any]:
        """Plain values that decide which ids a text becomes."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        content = backend.to_str() if backend is not None else sorted(self._tokenizer.get_vocab().items())
        return {
            "context": self._context,
            "pad": self._pad,
            "side": "left" if self._is_left else "right",
            "pad_id": self._pad_id,
            "tokenizer": fingerprint(content),
        }

    def __call__(self, texts: Sequence[str]) -> Encoded:
        """Encode texts with the special tokens that the tokenizer adds; a text may have no token at all."""
        with self._lock:
            rows = self._tokenizer(list(texts), verbose=False)["input_ids"]
            is_truncated = tuple(len(row) > self._context for row in rows)
            rows = [self._shorten(text) if cut else row for text, row, cut in zip(texts, rows, is_truncated, strict=True)]
        width = self._context if self._pad == "context" else max(1, *(len(row) for row in rows))
        ids = torch.full((len(rows), width), self._pad_id, dtype=torch.int64)
        for target, row in zip(ids, rows, strict=True):
            target[: len(row)] = torch.tensor(row, dtype=torch.int64)
        valid = torch.arange(width) < torch.tensor([len(row) for row in rows])[:, None]
        if self._is_left:
            shifts = [width - len(row) for row in rows]
            ids, valid = (torch.stack([v.roll(n) for v, n in zip(part, shifts, strict=True)]) for part in (ids, valid))
        return Encoded(ids, valid, valid & torch.isin(ids, self._special), is_truncated)

    def _shorten(self, text: str) -> list[int]:
        """The first tokens of a text; the tokenizer keeps what must stand at the end."""
        return self._tokenizer(text, truncation=True, max_length=self._context)["input_ids"]
