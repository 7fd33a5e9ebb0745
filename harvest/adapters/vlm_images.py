"""Images for vision encoders that take no plain batch of pixels: one row of patches for all images, or crops with a mask."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor

from thresher.harvest.adapters.base import Inputs, Layout, Packing, TokenKind


class PatchRowReader:
    """Qwen's image processors: the patches of all images in one row, as many as each image needs by its size.

    Positions of an image count in the order in which the encoder's blocks hold its patches: blocks of `merge` x `merge`
    patches that are one image token later, and in Qwen2.5-VL windows of blocks before that (`get_vision_window_index`).
    """

    def __init__(self, processor: Any, encoder: Any, dtype: torch.dtype) -> None:
        self._processor = processor
        self._dtype = dtype
        settings = encoder.config
        self._merge = int(settings.spatial_merge_size)
        window = getattr(settings, "window_size", None)
        self.window: int | None = None if window is None else int(window) // self._merge // int(settings.patch_size)
        """Side of a window in blocks of patches; None where the encoder has no windows."""

    def __call__(self, images: Sequence[Image.Image]) -> Inputs:
        """Patches [patch, values] with rows and columns of each image, and where each image stands among them."""
        found = self._processor(images=[image.convert("RGB") for image in images], return_tensors="pt")
        cells = [self._find_cells(int(rows), int(columns)) for _, rows, columns in found["image_grid_thw"].tolist()]
        counts = torch.tensor([len(places) for places in cells])
        kind = torch.full((len(cells), int(counts.max())), TokenKind.PADDING, dtype=torch.int8)
        grid = torch.full((*kind.shape, 2), -1, dtype=torch.int16)
        for item, places in enumerate(cells):
            kind[item, : len(places)] = TokenKind.PATCH
            grid[item, : len(places)] = places
        tensors = {"hidden_states": found["pixel_values"].to(self._dtype), "grid_thw": found["image_grid_thw"]}
        packing = Packing(torch.zeros_like(counts), counts.cumsum(0) - counts, (1, int(counts.sum())))
        return Inputs("image", tensors, _label(kind, grid), packing)

    def _find_cells(self, rows: int, columns: int) -> Int[Tensor, "patch 2"]:
        """Row and column of each patch of an image in the order of the blocks."""
        side, window = self._merge, self.window
        blocks = [(i, j) for i in range(rows // side) for j in range(columns // side)]
        if window is not None:
            blocks.sort(key=lambda block: (block[0] // window, block[1] // window, *block))
        inside = [(i, j) for i in range(side) for j in range(side)]
        cells = [(side * row + i, side * column + j) for row, column in blocks for i, j in inside]
        return torch.tensor(cells, dtype=torch.int16).reshape(-1, 2)


class CropReader:
    """The image processors of Idefics 3 and SmolVLM: crops of an image, then the whole of it, which is the one read here."""

    def __init__(self, processor: Any, encoder: Any, dtype: torch.dtype) -> None:
        self._processor = processor
        self._dtype = dtype
        self._side = int(encoder.config.patch_size)

    def __call__(self, images: Sequence[Image.Image]) -> Inputs:
        """Pixels of the whole images [item, channel, y, x] and the mask of their patches."""
        found = self._processor(images=[[image.convert("RGB")] for image in images], return_tensors="pt")
        seen = found["pixel_attention_mask"].bool()
        whole = seen.flatten(2).any(dim=2).sum(dim=1) - 1
        item = torch.arange(len(whole))
        patches = seen[item, whole].unfold(1, self._side, self._side).unfold(2, self._side, self._side).flatten(3).any(dim=3)
        _, rows, columns = patches.shape
        mask = patches.flatten(1)
        kind = torch.where(mask, TokenKind.PATCH, TokenKind.PADDING).to(torch.int8)
        cells = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).to(torch.int16)
        grid = torch.where(mask[:, :, None], cells, torch.tensor(-1, dtype=torch.int16))
        pixels = found["pixel_values"][item, whole].to(self._dtype)
        return Inputs("image", {"pixel_values": pixels, "patch_attention_mask": patches}, _label(kind, grid))


def _label(kind: Tensor, grid: Tensor) -> Layout:
    padding = kind == TokenKind.PADDING
    return Layout(kind, None, None, (False,) * len(kind), grid, padding if padding.any() else None)
