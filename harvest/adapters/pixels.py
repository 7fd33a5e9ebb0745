"""Images to the inputs of a vision tower of transformers, with the layout of its sequence."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from thresher.harvest.adapters.base import Inputs, Layout
from thresher.harvest.adapters.hooks import HookedModel
from thresher.harvest.adapters.layouts import label_patches
from thresher.harvest.adapters.pooling import find_dependence


class PixelReader:
    """An image processor with what is known of the tower behind it; may be called from several threads."""

    def __init__(self, processor: Any, tower: nn.Module, dtype: torch.dtype) -> None:
        self._processor = processor
        self._dtype = dtype
        self._settings: Any = getattr(tower, "config", None)
        self._n_cls = 0
        self._n_registers = 0
        self._has_patches = False
        self._summary: int | None = None

    def __call__(self, images: Sequence[Image.Image]) -> Inputs:
        """Pixels as the processor gives them, and where the patches of each image are."""
        found = self._processor(images=[image.convert("RGB") for image in images], return_tensors="pt")
        if hasattr(self._processor, "image_grid_pinpoints") and found["pixel_values"].ndim == 5:
            # Cut into crops (LLaVA-NeXT, LLaVA-OneVision): the first is the whole image.
            found = {"pixel_values": found["pixel_values"][:, 0]}
        tensors: dict[str, Tensor] = {name: _cast(value, self._dtype) for name, value in found.items()}
        return Inputs("image", tensors, self._label(tensors))

    def measure(self, model: HookedModel) -> None:
        """Find out from one image how many positions stand before the patches and which one is pooled.

        `model` must have its vision tower; one without blocks gives no positions, and every image one cell.
        """
        blocks = [name for name in model.hook_points if name.startswith("vision.") and name[7:].isdigit()]
        if not blocks:
            return
        inputs = self([Image.new("RGB", (64, 64))])
        dependence = find_dependence(model, inputs, blocks[-1])
        shapes = self._find_shapes(inputs.tensors)
        n_patches = max(rows * columns for rows, columns in shapes)
        n_prefix = max(0, dependence.shape[1] - n_patches) if "spatial_shapes" not in inputs.tensors else 0
        self._has_patches = dependence.shape[1] - n_prefix == n_patches or "spatial_shapes" in inputs.tensors
        self._n_registers = min(n_prefix, int(getattr(self._settings, "num_register_tokens", 0) or 0))
        self._n_cls = n_prefix - self._n_registers
        places = dependence[0].nonzero().flatten().tolist()
        self._summary = places[0] if len(places) == 1 else None

    def _label(self, tensors: dict[str, Tensor]) -> Layout:
        n_items = len(next(iter(tensors.values())))
        if not self._has_patches:
            return label_patches([(1, 1)] * n_items)
        n_positions = tensors["pixel_values"].shape[1] if "spatial_shapes" in tensors else None
        layout = label_patches(
            self._find_shapes(tensors), n_cls=self._n_cls, n_registers=self._n_registers, n_positions=n_positions
        )
        summary = torch.full((n_items,), self._summary) if self._summary is not None else layout.summary
        return layout._replace(summary=summary)

    def _find_shapes(self, tensors: Mapping[str, Tensor]) -> list[tuple[int, int]]:
        """Rows and columns of patches of each image; one cell where the tower names no patches."""
        if "spatial_shapes" in tensors:
            return [(int(rows), int(columns)) for rows, columns in tensors["spatial_shapes"].tolist()]
        pixels, side = tensors["pixel_values"], getattr(self._settings, "patch_size", None)
        high, wide = side if isinstance(side, (tuple, list)) else (side, side)
        shape = (pixels.shape[-2] // high, pixels.shape[-1] // wide) if high and wide else (1, 1)
        return [shape] * len(pixels)


def _cast(value: Tensor, dtype: torch.dtype) -> Tensor:
    return value.to(dtype) if value.is_floating_point() else value
