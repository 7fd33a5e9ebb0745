"""Identity of a model's weights, and the torch types of the words that configurations use."""

import hashlib
import json
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from thresher.errors import ModelError
from thresher.harvest.adapters.base import Precision
from thresher.hub import MIRROR, find_copy
from thresher.runs import canonical_json

LOAD_ERRORS = (OSError, ValueError, KeyError, TypeError, ImportError, RuntimeError, EOFError, SafetensorError, UnpicklingError)
"""What libraries raise for models that are not there, damaged, or of another kind."""
NO_HUB = f"without a hub, give a folder or set {MIRROR} to one with copies"
"""What to do when a model cannot be downloaded."""


def find_model(name: str) -> str:
    """Where a model is: a folder, or its hub id. Raises ModelError for a path where nothing is."""
    try:
        return find_copy(name)
    except FileNotFoundError as error:
        raise ModelError(str(error)) from error


def shorten_reason(error: BaseException) -> str:
    """What a library says of a model it cannot load, without its list of all the classes that it knows."""
    return str(error).partition("\nModel type should be one of")[0].strip()[:600] or type(error).__name__


@contextmanager
def plain_log() -> Generator[None, None, None]:
    """Keep the progress bars of transformers off a standard error that is no terminal."""
    from transformers.utils import logging

    if sys.stderr.isatty() or not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()


def torch_dtype(precision: Precision) -> torch.dtype:
    """The torch type of a precision's name."""
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[precision]


def fingerprint_weights(model: nn.Module) -> str:
    """SHA-256 (hex) of all parameters and persistent buffers: names, types, shapes and bytes, in the order of names.

    Reads every weight once, about 1 GB/s; copies one tensor at a time when the model is on a GPU.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        flat = (_read_offloaded(model, name) if tensor.is_meta else tensor).detach().cpu().contiguous().reshape(-1)
        digest.update(memoryview(flat.view(torch.uint8).numpy()))
    return digest.hexdigest()


def _read_offloaded(model: nn.Module, name: str) -> Any:
    """A weight of a spread model that waits in memory or on disk until its module runs."""
    from accelerate.utils import align_module_device

    path, _, own = name.rpartition(".")
    module = model.get_submodule(path)
    with align_module_device(module, torch.device("cpu")):
        return getattr(module, own).detach().clone()


def to_plain(values: dict[str, Any]) -> dict[str, Any]:
    """Settings of a library as JSON would give them back: lists for tuples, numbers for enumerations."""
    return json.loads(canonical_json(values))
