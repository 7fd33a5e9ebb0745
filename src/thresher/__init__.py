"""thresher: activations of vision-language and language models, harvested, sparsely coded, compared across modalities."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from thresher.train.exchange.hub import load_sae

__version__ = "0.1.0"

__all__ = ["__version__", "load_sae"]


def __getattr__(name: str) -> Any:
    """Import `load_sae` when it is first asked for: torch is not loaded for the version."""
    if name == "load_sae":
        return importlib.import_module("thresher.train.exchange.hub").load_sae
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
