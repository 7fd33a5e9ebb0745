"""Images to pixels by a transform for single images, with the layout of a plain grid of patches."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from thresher.harvest.adapters.base import Inputs
from thresher.harvest.adapters.layouts import label_patches


class PatchTransform(NamedTuple):
    """Makes inputs of images without the model: it can be pickled, and called from several threads."""

    transform: Callable[[Image.Image], Tensor]
    """An RGB image to pixels [3, height, width]."""
    dtype: torch.dtype
    grid: tuple[int, int]
    """Rows and columns of patches."""
    n_cls: int
    n_registers: int
    has_summary: bool = True
    """The tower pools its first CLS token, where it has one."""

    def __call__(self, images: Sequence[Image.Image]) -> Inputs:
        """Pixels [item, 3, height, width]."""
        pixels = torch.stack([self.transform(image.convert("RGB")) for image in images]).to(self.dtype)
        layout = label_patches([self.grid] * len(images), n_cls=self.n_cls, n_registers=self.n_registers)
        return Inputs("image", {"pixels": pixels}, layout if self.has_summary else layout._replace(summary=None))
