"""Dictionaries over several hook points side by side: what they are asked for, and how raw rows become theirs and back."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from thresher.data.aligned import JOINT
from thresher.errors import CheckpointError
from thresher.train.codes import Codes
from thresher.train.normalize import Normalizer
from thresher.train.protocol import SAE


@runtime_checkable
class AlignedSAE(SAE, Protocol):
    """Trains on rows of several hook points side by side; `encode` reads some of these blocks, `decode` gives some."""

    @property
    def widths(self) -> tuple[int, ...]:
        """Of the blocks of a training row."""
        ...

    @property
    def encoded(self) -> tuple[int, ...]:
        """Blocks that `encode` reads."""
        ...

    @property
    def decoded(self) -> tuple[int, ...]:
        """Blocks that `decode` gives."""
        ...

    def transcode(self, x: Float[Tensor, "row d_in"]) -> tuple[Codes, Float[Tensor, "row d_out"]]:
        """The codes of rows of the encoded blocks, and all that the module makes of them for the decoded ones."""
        ...


class Blocks(NamedTuple):
    """The blocks of a row: hook points, each with its own affine map in the normaliser, in the same order."""

    names: Sequence[str]
    widths: Sequence[int]

    def find(self, hook_point: str) -> tuple[int, ...]:
        """The block of a name; all of them for the names joined by `+`. Raises CheckpointError."""
        if hook_point == JOINT.join(self.names):
            return tuple(range(len(self.names)))
        if hook_point not in self.names:
            raise CheckpointError(f"{hook_point}: the dictionary was fitted to {', '.join(self.names)}, side by side")
        return (self.names.index(hook_point),)

    def split(self, x: Float[Tensor, "row _"], which: Sequence[int]) -> tuple[Tensor, ...]:
        """The blocks `which` that the columns of `x` are."""
        return x.split([self.widths[index] for index in which], dim=1)

    def normalize(self, x: Float[Tensor, "row _"], normalizer: Normalizer, which: Sequence[int]) -> Float[Tensor, "row _"]:
        """Raw rows of the blocks `which` as the dictionary sees them."""
        parts = zip(self.split(x, which), which, strict=True)
        return torch.cat([normalizer.normalize(part, index) for part, index in parts], dim=1)

    def invert(self, x: Float[Tensor, "row _"], normalizer: Normalizer, which: Sequence[int]) -> Float[Tensor, "row _"]:
        """The raw rows that `normalize` turns into `x`."""
        parts = zip(self.split(x, which), which, strict=True)
        return torch.cat([normalizer.invert(part, index) for part, index in parts], dim=1)
