"""Planted sparse data, in memory and as a small store of image and text rows."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from thresher.data.store import Batch, HookPointSpec, Item, Rows, StoreWriter

IMAGE, TEXT = "vision.embed", "text.embed"
D_IN = 16


def plant(n_rows: int, *, n_atoms: int = 32, d_in: int = D_IN, active: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rows that are sums of `active` atoms with coefficients from 1 to 2, and the unit-norm atoms."""
    generator = torch.Generator().manual_seed(seed)
    atoms = functional.normalize(torch.randn(n_atoms, d_in, generator=torch.Generator().manual_seed(99)), dim=1)
    chosen = torch.rand(n_rows, n_atoms, generator=generator).topk(active, dim=1).indices
    values = 1 + torch.rand(n_rows, active, generator=generator)
    return (atoms[chosen] * values[:, :, None]).sum(1), atoms


@pytest.fixture
def planted_atoms() -> Tensor:
    """The atoms that the rows of `make_store` are sums of."""
    return plant(0)[1]


@pytest.fixture
def make_store(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a store of `n_records` image rows and as many text rows, the texts shifted by `gap`."""

    def make(n_records: int = 600, *, gap: float = 1.0, name: str = "store", text_width: int = D_IN, nan_row: int = -1) -> Path:
        images, texts = plant(n_records, seed=1)[0], plant(n_records, d_in=text_width, seed=2)[0] + gap
        if nan_row >= 0:
            images[nan_row] = torch.nan
        specs = [
            HookPointSpec(IMAGE, "image", "image.items", D_IN, "float32"),
            HookPointSpec(TEXT, "text", "text.items", text_width, "float32"),
        ]
        path, size = tmp_path / name, 200
        with StoreWriter(path, {"model": "planted", "gap": gap}, specs, []) as writer:
            for index, start in enumerate(range(0, n_records, size)):
                writer.write(_batch(index, start, images[start : start + size], texts[start : start + size]))
            writer.finish()
        return path

    return make


def _batch(index: int, start: int, images: Tensor, texts: Tensor) -> Batch:
    n = len(images)
    item, position = torch.arange(n), torch.full((n,), -1, dtype=torch.int32)
    return Batch(
        index=index,
        items={
            "image": [Item(f"{start + i}", start + i, "ok", None, None, ()) for i in range(n)],
            "text": [Item(f"{start + i}#0", start + i, "ok", "a text", None, ()) for i in range(n)],
        },
        pairs=[(i, i) for i in range(n)],
        rows={
            "image.items": Rows(item, position, None, {IMAGE: images}),
            "text.items": Rows(item, position, None, {TEXT: texts}),
        },
    )
