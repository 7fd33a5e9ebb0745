"""Arrays of embeddings in the files that people keep them in: .npy, .npz, HDF5, .safetensors and .pt."""

# pyright: reportUnknownMemberType=none, reportUnknownVariableType=none, reportUnknownArgumentType=none
# h5py is not typed

import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from thresher.errors import StoreError

NPY, NPZ, HDF5, SAFETENSORS, TORCH = (".npy",), (".npz",), (".h5", ".hdf5", ".hdf"), (".safetensors",), (".pt", ".pth")
SUFFIXES = (*NPY, *NPZ, *HDF5, *SAFETENSORS, *TORCH)


def read_arrays(path: Path) -> Mapping[str, Any]:
    """The floating-point arrays of two or three dimensions in a file, by name, to be sliced along the first axis.

    bfloat16 becomes float32. A `.npy`, and a tensor that was saved alone, is called like the file. No pickled code runs.
    Raises StoreError: another kind of file, one that cannot be read, no such array in it.
    """
    try:
        found = _read(path)
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise StoreError(f"{path}: no tensors that torch.save wrote, alone or in a dict; save them so, or as .npy") from error
    except (OSError, ValueError, EOFError, SafetensorError) as error:
        raise StoreError(f"{path}: cannot be read ({error}); expected an array [item, width]") from error
    arrays = {name: array for name, array in sorted(found.items()) if array.ndim in (2, 3) and array.dtype.kind == "f"}
    if not arrays:
        listed = (
            "; ".join(f"{name}: {array.dtype} {list(array.shape)}" for name, array in list(found.items())[:8]) or "no arrays"
        )
        raise StoreError(f"{path}: {listed}; expected floating point [item, width]")
    return arrays


def read_array(path: Path) -> Any:
    """The only array in a file, or the one behind a colon: `embeddings.h5:images`. Raises as `read_arrays`."""
    file, _, name = (str(path), "", "") if path.exists() else str(path).rpartition(":")
    arrays = read_arrays(Path(file or str(path)))
    if name in arrays:
        return arrays[name]
    if name or len(arrays) > 1:
        what = f"no array {name!r}" if name else "several arrays"
        raise StoreError(
            f"{file}: {what}; it has {', '.join(arrays)}: name one behind a colon, as {Path(file).name}:{next(iter(arrays))}"
        )
    return next(iter(arrays.values()))


def take_rows(array: Any, numbers: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """Rows of these numbers, in this order; HDF5 gives them in increasing order only."""
    order = np.argsort(numbers, kind="stable")
    rows = np.asarray(array[numbers[order]])
    return rows[np.argsort(order)]


def _read(path: Path) -> dict[str, Any]:
    if path.suffix in NPY:
        return {path.stem: np.load(path, mmap_mode="r", allow_pickle=False)}
    if path.suffix in NPZ:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    if path.suffix in HDF5:
        return dict(_walk(h5py.File(path, "r"), ""))
    if path.suffix in SAFETENSORS:
        return {name: _to_numpy(tensor) for name, tensor in load_file(path).items()}
    if path.suffix in TORCH:
        content = torch.load(path, map_location="cpu", weights_only=True)
        named = content if isinstance(content, dict) else {path.stem: content}
        return {str(name): _to_numpy(value) for name, value in named.items() if isinstance(value, Tensor)}
    if not path.exists():
        raise StoreError(f"{path}: no such file")
    raise StoreError(f"{path}: no array by its ending; expected {', '.join(SUFFIXES)}")


def _walk(group: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, node in group.items():
        if isinstance(node, h5py.Group):
            yield from _walk(node, f"{prefix}{name}/")
        elif isinstance(node, h5py.Dataset):
            yield f"{prefix}{name}", node


def _to_numpy(tensor: Tensor) -> npt.NDArray[Any]:
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor.detach()).numpy()
