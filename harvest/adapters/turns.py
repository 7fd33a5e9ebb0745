"""Images and texts to the sequences of a vision-language decoder, by the checkpoint's own processor."""

import math
import threading
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from thresher.errors import ModelError
from thresher.harvest.adapters.base import Inputs, Layout, TokenKind
from thresher.harvest.adapters.layouts import count_cells, find_last
from thresher.harvest.adapters.tokens import TextEncoder

_IMAGE = "{image}"
_TEXT = "{text}"


class TurnEncoder:
    """A processor with a template and a context length; may be called from several threads."""

    def __init__(self, processor: Any, settings: Any, template: str | None, context: int, dtype: torch.dtype) -> None:
        self._processor = processor
        self._is_cut = hasattr(processor.image_processor, "image_grid_pinpoints")
        self._context = context
        self._dtype = dtype
        self._lock = threading.Lock()
        # A causal model reads the same whether padding stands left or right, but for its positions.
        processor.tokenizer.padding_side = "right"
        self._tokens = TextEncoder(processor.tokenizer, context, pad="longest")
        self._image_id = _find_image_id(processor, settings)
        self._merge = int(getattr(processor.image_processor, "merge_size", 1) or 1)
        self._templates = _find_templates(processor, template)
        # PaliGemma's processor ends every prompt with a line break of its own.
        self._n_added = 1 if type(processor).__name__ == "PaliGemmaProcessor" else 0

    @property
    def identity(self) -> dict[str, Any]:
        """Plain values that decide which sequence an image and a text become."""
        return self._tokens.identity | {"templates": list(self._templates)}

    def __call__(self, images: Sequence[Image.Image | None], texts: Sequence[str]) -> Inputs:
        """One sequence per text, padded on the right. Raises ModelError when an image alone is longer than the context."""
        parts: list[tuple[list[int], dict[str, Tensor]]] = []
        with self._lock:
            for has_image in (True, False):
                places = [place for place, image in enumerate(images) if (image is not None) == has_image]
                if places:
                    parts.append((places, self._process([images[place] for place in places], [texts[p] for p in places])))
        tensors = _merge(parts, len(texts), self._tokens.pad_id)
        offsets, special = tensors.pop("offset_mapping"), tensors.pop("special_tokens_mask").bool()
        layout = self._label(tensors, offsets, special, images, texts)
        sequences = {name for name, value in tensors.items() if value.shape[:2] == layout.kind.shape}
        width = min(self._context, layout.kind.shape[1])
        cut = {name: value[:, :width] if name in sequences else value for name, value in tensors.items()}
        return Inputs("text", cut, self._shorten(layout, width))

    def _process(self, images: Sequence[Image.Image | None], texts: Sequence[str]) -> dict[str, Tensor]:
        """The processor's tensors for items that all have an image, or all have none."""
        with_image, without = self._templates
        options = {"return_tensors": "pt", "padding": True, "return_offsets_mapping": True, "return_special_tokens_mask": True}
        if images[0] is None:
            found = self._processor.tokenizer([without.replace(_TEXT, text) for text in texts], verbose=False, **options)
        else:
            pictures = [[image.convert("RGB")] for image in images if image is not None]
            found = self._processor(text=[with_image.replace(_TEXT, text) for text in texts], images=pictures, **options)
        values = {name: value if isinstance(value, Tensor) else torch.as_tensor(value) for name, value in found.items()}
        return {name: value.to(self._dtype) if value.is_floating_point() else value for name, value in values.items()}

    def _label(
        self, tensors: dict[str, Tensor], offsets: Tensor, special: Tensor, images: Sequence[Any], texts: Sequence[str]
    ) -> Layout:
        ids, valid = tensors["input_ids"], tensors["attention_mask"].bool()
        kind = torch.where(valid, TokenKind.SPECIAL, TokenKind.PADDING).to(torch.int8)
        for item, text in enumerate(texts):
            template = self._templates[0 if images[item] is not None else 1]
            n_after = len(template.partition(_TEXT)[2]) + (self._n_added if images[item] is not None else 0)
            stop = int(offsets[item].max()) - n_after
            # Ends count, because a token may begin with the blank before the text.
            ends = offsets[item, :, 1]
            kind[item, valid[item] & ~special[item] & (ends > stop - len(text)) & (ends <= stop)] = TokenKind.TEXT
        is_image = valid & (ids == self._image_id)
        kind[is_image] = TokenKind.IMAGE
        shapes = [(int(h) // self._merge, int(w) // self._merge) for _, h, w in tensors.get("image_grid_thw", ())]
        grid = _place(is_image, shapes) if is_image.any() else None
        if grid is not None and self._is_cut:
            grid.fill_(-1)  # the whole image, then rows of several crops, each row with an end: no one grid
        truncated = tuple((valid.sum(dim=1) > self._context).tolist())
        return Layout(kind, find_last(valid), ids, truncated, grid, ~valid)

    def _shorten(self, layout: Layout, width: int) -> Layout:
        """The layout of the first `width` positions."""
        if (layout.kind[:, width:] == TokenKind.IMAGE).any():
            raise ModelError(f"an image takes more than the context of {self._context} tokens; raise model.context")
        assert layout.token_id is not None
        assert layout.summary is not None
        assert layout.unattended is not None
        return layout._replace(
            kind=layout.kind[:, :width],
            summary=layout.summary.clamp(max=width - 1),
            token_id=layout.token_id[:, :width],
            grid=None if layout.grid is None else layout.grid[:, :width],
            unattended=layout.unattended[:, :width],
        )


def _find_image_id(processor: Any, settings: Any) -> int:
    for owner, name in ((settings, "image_token_id"), (settings, "image_token_index"), (processor, "image_token_id")):
        if isinstance(getattr(owner, name, None), int):
            return getattr(owner, name)
    raise ModelError(
        f"{type(processor).__name__}: names no token for images; this model cannot be read as a vision-language model"
    )


def _find_templates(processor: Any, template: str | None) -> tuple[str, str]:
    """The sequence of an item with and without an image, with {text} where the text goes."""
    if template is None and getattr(processor, "chat_template", None):
        pictured, plain = (
            processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
            for content in ([{"type": "image"}, {"type": "text", "text": _TEXT}], [{"type": "text", "text": _TEXT}])
        )
        return pictured, plain
    template = template or _IMAGE + _TEXT
    return template.replace(_IMAGE, _find_mark(processor)), template.replace(_IMAGE, "").lstrip("\n")


def _find_mark(processor: Any) -> str:
    """What stands for an image in a text that the processor reads."""
    tokenizer = processor.tokenizer
    mark = getattr(processor, "boi_token", None) or getattr(processor, "image_token", None)
    mark = str(getattr(mark, "content", mark))
    if "<|vision_start|>" in tokenizer.get_vocab():
        return f"<|vision_start|>{mark}<|vision_end|>"
    return mark


def _merge(parts: Sequence[tuple[list[int], dict[str, Tensor]]], n_items: int, pad_id: int) -> dict[str, Tensor]:
    """Sequences of several groups of items as one batch, in the items' order; what is not a sequence as it is."""
    width = max(part["input_ids"].shape[1] for _, part in parts)
    merged: dict[str, Tensor] = {}
    for places, part in parts:
        shape = part["input_ids"].shape
        for name, value in part.items():
            if value.shape[:2] != shape:
                merged[name] = value
                continue
            fill = pad_id if name == "input_ids" else 0
            whole = merged.setdefault(name, value.new_full((n_items, width, *value.shape[2:]), fill))
            whole[places, : shape[1]] = value
    return merged


def _place(is_image: Tensor, shapes: Sequence[tuple[int, int]]) -> Tensor:
    """Row and column of image tokens within their run; -1 where a run is neither as long as said nor a square."""
    grid = torch.full((*is_image.shape, 2), -1, dtype=torch.int16)
    known = iter(shapes)
    for item, row in enumerate(is_image):
        places = row.nonzero().flatten()
        breaks = (places.diff() > 1).nonzero().flatten() + 1
        for run in torch.tensor_split(places, breaks.tolist()):
            rows, columns = next(known, (math.isqrt(len(run)), math.isqrt(len(run))))
            if len(run) and rows * columns == len(run):
                grid[item, run] = count_cells(rows, columns)
    return grid
