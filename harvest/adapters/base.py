"""What every model family gives the harvest: named places to read, inputs in its own form, a forward pass."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor

from thresher.data.records import Modality
from thresher.data.store import TokenKind

Level = Literal["tokens", "items"]
"""Whether a hook point gives a row per token (or patch) or one per item."""

Precision = Literal["float32", "bfloat16", "float16"]
"""What a model's weights are held in and what it computes in."""

Function = Callable[[Float[Tensor, "*position d"]], Float[Tensor, "*position d"]]
"""Maps the activations of a hook point to what the model shall go on with."""


class HookPoint(NamedTuple):
    """A named place in a model, as found by running it once."""

    name: str
    """`vision.<i>`, `text.<i>`, `vision.pooled`, `text.embed`, ... or `module:<path>`."""
    modality: Modality
    """Whose tower it is in."""
    level: Level
    """A row per token or one per item."""
    width: int
    """Length of one activation."""
    is_overwritten: bool
    """The model changes the tensor in place later in its forward pass, so that a capture has to copy it."""

    @property
    def space(self) -> str:
        """Row space in the store, for instance `image.tokens`."""
        return f"{self.modality}.{self.level}"


class Layout(NamedTuple):
    """Which positions of a batch hold what; all tensors on the CPU."""

    kind: Int[Tensor, "item position"]
    """A `TokenKind` for each position, int8."""
    summary: Int[Tensor, " item"] | None
    """The position that stands for the item by the model's own rule (CLS, EOT, last token), the one that it pools where
    it pools one; may be padding (SigLIP's texts). None when the tower has none (it averages, or has a pooling head)."""
    token_id: Int[Tensor, "item position"] | None
    """Vocabulary indices of texts, image tokens included; None for images. -1 at a token without index."""
    is_truncated: tuple[bool, ...]
    """Per item: it was longer than the context."""
    grid: Int[Tensor, "item position 2"] | None = None
    """Row and column, int16, of the patch or image token at each position, -1 at the others; None when no position has one."""
    unattended: Bool[Tensor, "item position"] | None = None
    """True where the model's attention mask hides a position from the others; None when it hides none."""

    @property
    def valid(self) -> Bool[Tensor, "item position"]:
        """False on padding."""
        return self.kind != TokenKind.PADDING

    @property
    def special(self) -> Bool[Tensor, "item position"]:
        """CLS and register tokens of images; BOS, EOS and the like of texts."""
        return (self.kind == TokenKind.SPECIAL) | (self.kind == TokenKind.CLS) | (self.kind == TokenKind.REGISTER)


class Packing(NamedTuple):
    """Where items stand in a forward pass whose sequences hold several of them; on the CPU.

    Position p of item i is at place `start[i] + p` of sequence `sequence[i]`; no two positions share a place.
    """

    sequence: Int[Tensor, " item"]
    start: Int[Tensor, " item"]
    shape: tuple[int, int]
    """Sequences of the pass and places of each; what no item fills is padding."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """A batch of items of one modality in the form its tower takes."""

    modality: Modality
    tensors: Mapping[str, Tensor]
    """Arguments of the tower by name."""
    layout: Layout
    packing: Packing | None = None
    """Where the positions of the layout are in the forward pass; None where each item has a sequence of its own."""

    @property
    def shape(self) -> tuple[int, int]:
        """The first two axes of activations with one per token: items and positions, or sequences and places if packed."""
        if self.packing is not None:
            return self.packing.shape
        n_items, n_positions = self.layout.valid.shape
        return n_items, n_positions

    def send(self, device: torch.device) -> "Inputs":
        """The same inputs on a device; the copy to a GPU does not wait when the tensors are pinned."""
        return replace(self, tensors={name: value.to(device, non_blocking=True) for name, value in self.tensors.items()})

    def pin(self) -> "Inputs":
        """The same inputs in page-locked memory, from where a copy to the GPU is asynchronous."""
        return replace(self, tensors={name: value.pin_memory() for name, value in self.tensors.items()})


ImageTransform = Callable[[Sequence[Image.Image]], Inputs]
"""Images through a model's own preprocessing."""


@runtime_checkable
class Adapter(Protocol):
    """One model of one family. `AdapterSuite` in `thresher.testing` holds an implementation to these words."""

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """What it has towers for."""
        ...

    @property
    def identity(self) -> Mapping[str, Any]:
        """Plain values that name the model: kind, id, revision if known, digest of the weights, preprocessing."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        ...

    @property
    def hook_points(self) -> tuple[str, ...]:
        """Names of its hook points in the order of the forward pass; beside them `module:<path>` names any module."""
        ...

    def resolve(self, patterns: Sequence[str], modalities: Sequence[Modality]) -> tuple[HookPoint, ...]:
        """The hook points that names and globs stand for, each once, in the order given; how names are written is told
        in `thresher.harvest.adapters.names`.

        Globs speak of the towers of `modalities` only; a name outside of them is an error. Runs each tower concerned
        once. Raises ModelError: unknown name (with the nearest ones), a place that the forward pass does not reach or
        reaches more than once, an output that is no tensor of [item, d] or [item, position, d].
        """
        ...

    def prepare_images(self, images: Sequence[Image.Image]) -> Inputs:
        """Images through the model's own preprocessing; safe to call from several threads."""
        ...

    @property
    def image_transform(self) -> ImageTransform | None:
        """What `prepare_images` does, as an object without the model that can be pickled: images are prepared by it in
        processes of their own. None where the model has no tower for images."""
        ...

    def prepare_texts(self, texts: Sequence[str]) -> Inputs:
        """Texts through the model's own tokenizer, padded on the right; safe to call from several threads."""
        ...

    def check_packing(self, length: int, hook_points: Sequence[HookPoint]) -> None:
        """Raises ModelError unless texts that are packed into sequences of `length` get the activations that they get alone,
        to rounding, as the model is now: compiled, spread, under the surrounding autocast."""
        ...

    def pack_texts(self, inputs: Inputs, length: int) -> Inputs:
        """What `prepare_texts` gave, for a forward pass with several texts to a sequence of at most `length` places.

        No text may be longer. Safe to call from several threads.
        """
        ...

    @property
    def reads_pairs(self) -> bool:
        """Whether its texts stand in one sequence with an image, so that they are prepared by `prepare_pairs`."""
        ...

    def prepare_pairs(self, images: Sequence[Image.Image | None], texts: Sequence[str]) -> Inputs:
        """One sequence of an image, where there is one, and a text per item; of modality text."""
        ...

    def forward(self, inputs: Inputs) -> Float[Tensor, "item *position d"]:
        """The tower's own output: joint embeddings of a two-tower model, logits of a language model."""
        ...

    def capture(self, inputs: Inputs, hook_points: Sequence[HookPoint]) -> dict[str, Float[Tensor, "item *_ _"]]:
        """Activations by name from one forward pass, detached, on the device, in the model's precision: [item, position, d]
        or [item, d]; those of packed inputs are [sequence, place, d].

        The pass ends as soon as all of them have been seen. Leaves no hook behind, also on an error.
        """
        ...

    def compile(self, hook_points: Sequence[HookPoint]) -> None:
        """Make later captures of these hook points, or some of them, faster by torch.compile; values may differ in the last
        bits. Other places inside of what is compiled can no longer be read or replaced, which is an error.

        Raises ModelError when torch cannot compile the model on this machine.
        """
        ...

    def splice(self, hook_point: str, function: Function) -> AbstractContextManager[None]:
        """While the block runs, the model goes on with `function(activations)` at `hook_point`.

        `function` gets all positions, padding included. Captures at the same place see what it returned.
        """
        ...
