"""Pickles read as data: tensors and plain values stay what they are, every other object becomes a record of its attributes.

No class and no function that a pickle names is looked up, except for the few below, so nothing in it can run.
"""

import pickle
import re
import types
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch._utils import _rebuild_tensor_v2  # pyright: ignore[reportPrivateUsage, reportUnknownVariableType]

from thresher.errors import CheckpointError


class Record(dict[Any, Any]):
    """An object whose class was not loaded. Its attributes are `vars(record)`, the class is named by `name_class`."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "Record":
        return dict.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def __hash__(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return id(self)

    def __setstate__(self, state: Any) -> None:
        for part in state if isinstance(state, tuple) else (state,):
            if isinstance(part, dict):
                vars(self).update({str(name): value for name, value in cast(dict[Any, Any], part).items()})

    def __call__(self, *args: Any, **kwargs: Any) -> "Record":
        """What calling it would have given is not known either."""
        return Record()

    def append(self, value: Any) -> None:
        """Take an item of a list, which is of no use here."""

    def extend(self, values: Any) -> None:
        """Take items of a list, which are of no use here."""


def name_class(record: Record) -> str:
    """The class that a record stands for, with its module."""
    return f"{type(record).__module__}.{type(record).__name__}"


def read_attributes(value: Any) -> dict[str, Any]:
    """Attributes of a record, or the items of a dict, by name; empty for anything else."""
    if isinstance(value, Record):
        return {str(name): each for name, each in {**value, **vars(value)}.items()}
    return {str(name): each for name, each in cast(Mapping[Any, Any], value).items()} if isinstance(value, Mapping) else {}


def read_pickle(path: Path) -> Any:
    """What `torch.save` wrote: dicts, lists, numbers, texts, tensors on the CPU, and records. Raises CheckpointError."""
    if not _is_archive(path):
        raise CheckpointError(
            f"{path}: not a file of torch.save as it is since torch 1.6; load it with the library that wrote it and save its "
            "state_dict() again"
        )
    module: Any = types.SimpleNamespace(
        __name__="inert", Unpickler=_Unpickler, load=_load, UnpicklingError=pickle.UnpicklingError
    )
    try:
        return torch.load(path, map_location="cpu", weights_only=False, pickle_module=module)
    except Exception as error:  # Damaged pickles raise whatever the instruction that they stop at does.
        raise CheckpointError(f"{path}: cannot be read ({type(error).__name__}: {error}); copy the file again") from error


def collect_state(module: Record) -> dict[str, Tensor]:
    """The state dict of a pickled `nn.Module`."""
    found: dict[str, Tensor] = {}
    for kind in ("_parameters", "_buffers"):
        for name, value in read_attributes(vars(module).get(kind)).items():
            found |= {name: value.detach()} if isinstance(value, Tensor) else {}
    for name, value in read_attributes(vars(module).get("_modules")).items():
        if isinstance(value, Record):
            found |= {f"{name}.{inner}": each for inner, each in collect_state(value).items()}
    return found


def _is_archive(path: Path) -> bool:
    if not path.is_file() or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        # With constants it is a program of TorchScript, which torch.load would hand to its interpreter.
        return not any(name.endswith("/constants.pkl") for name in archive.namelist())


def _rebuild_parameter(data: Tensor, *_: Any) -> Tensor:
    return data


def _encode(text: str, codec: str) -> bytes:
    if codec != "latin1":
        raise pickle.UnpicklingError(f"bytes in {codec!r}")
    return text.encode("latin1")


class _Dtype(Record):
    """The name of a type of numpy's."""

    def __init__(self, name: str, *_: Any) -> None:
        super().__init__()
        self.name, self.order = name, "<"

    def __setstate__(self, state: Any) -> None:
        self.order = str(state[1])


def _scalar(dtype: _Dtype, data: bytes) -> float | int:
    if not re.fullmatch(r"[fiub][1248]", dtype.name):
        raise pickle.UnpicklingError(f"a number of type {dtype.name!r}")
    return np.frombuffer(data, dtype.order.replace("|", "=") + dtype.name)[0].item()


KNOWN: Mapping[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("_codecs", "encode"): _encode,
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
    **{(home, kind.__name__): kind for home in ("builtins", "__builtin__") for kind in (set, frozenset, dict, list, complex)},
}
"""All that a pickle may name; none of it does more than hold values."""


class _Unpickler(pickle.Unpickler):
    """Finds inert stand-ins for whatever a pickle names."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if (known := KNOWN.get((module_name, global_name))) is not None:
            return known
        if module_name == "torch" and isinstance(found := getattr(torch, global_name, None), torch.dtype):
            return found
        return type(global_name, (Record,), {"__module__": module_name})


def _load(file: Any, **options: Any) -> Any:
    loader: Callable[[], Any] = _Unpickler(file, **options).load
    return loader()
