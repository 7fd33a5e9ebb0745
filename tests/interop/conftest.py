"""Rows, a unit-norm dictionary, and skips where a peer is not installed."""

import importlib.util
import sys
import types
from collections.abc import Callable

import peers
import pytest
import torch
from torch import Tensor
from torch.nn import functional


@pytest.fixture
def need() -> Callable[[str], None]:
    """A function that skips the test, with the reason, where a peer is not installed."""

    def skip_without(peer: str) -> None:
        if not peers.is_installed(peer):
            pytest.skip(f"{peer} is not installed: pip install 'thresher[interop]'")

    return skip_without


@pytest.fixture
def dictionary_learning() -> Callable[[str], types.ModuleType]:
    """A function that imports a module of dictionary_learning without what its `__init__` imports (nnsight, for harvests)."""

    def import_module(module: str) -> types.ModuleType:
        name = "dictionary_learning"
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            pytest.skip("dictionary_learning is not installed: pip install --no-deps dictionary-learning")
        if name not in sys.modules:
            sys.modules[name] = importlib.util.module_from_spec(spec)
        return peers.import_peer(f"{name}.{module}")

    return import_module


@pytest.fixture
def draw() -> Callable[..., tuple[Tensor, Tensor]]:
    """A function that draws rows of unit norm and a unit-norm dictionary, both in float64."""

    def make(rows: int = 65, d_in: int = 24, d_sae: int = 130, seed: int = 0) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(rows, d_in, generator=generator, dtype=torch.float64)
        atoms = torch.randn(d_sae, d_in, generator=generator, dtype=torch.float64)
        return functional.normalize(x, dim=1), functional.normalize(atoms, dim=1)

    return make
