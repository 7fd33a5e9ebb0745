"""Which code runs which method. What needs more than torch is imported when it is asked for, not before."""

import importlib.util
from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from thresher.train.kernels import backward, forms
from thresher.train.kernels.forms import Picked
from thresher.train.kernels.prepared import Prepared
from thresher.train.kernels.rule import Method, Rule


class StepBack(Protocol):
    """`backward.step_back`, or the same function faster."""

    def __call__(
        self,
        indices: Int[Tensor, "row k"],
        values: Float[Tensor, "row k"],
        residual: Float[Tensor, "row d_in"],
        dictionary: Float[Tensor, "d_sae d_in"],
        for_values: Float[Tensor, "row k"] | None,
        for_residual: Float[Tensor, "row d_in"] | None,
        *,
        needs_dictionary: bool,
    ) -> tuple[Float[Tensor, "row d_in"], Float[Tensor, "d_sae d_in"] | None]:
        """Gradients for the rows and, if needed, for the dictionary."""
        ...


class Engine(NamedTuple):
    """The code of one method."""

    prepare: Callable[[Tensor, Prepared | None], Prepared]
    """From a detached dictionary of a type that the method supports; may write into the memory of an older one."""
    pursue: Callable[[Tensor, Prepared, Rule], Picked]
    """From rows of the same type on the same device; no gradient."""
    step_back: StepBack


def find_engine(method: Method) -> Engine:
    """The code that runs `method`. Raises ImportError when a package is missing that it needs."""
    match method:
        case "residual":
            return Engine(forms.prepare_residual, forms.pursue_by_residual, backward.step_back)
        case "gram":
            return Engine(forms.prepare_gram, forms.pursue_by_gram, backward.step_back)
        case "numba_gram" | "numba_certified":
            return _find_native(method)
        case "triton_gram" | "triton_certified":
            return _find_cuda(method)
        case _:
            raise ValueError(f"method={method!r} has no engine: resolve `auto` first, and call the reference itself")


def _find_native(method: Method) -> Engine:
    if torch.compiler.is_compiling():
        raise ValueError(f"method={method!r}: torch.compile cannot trace loops of numba; use method='auto' or 'gram' inside it")
    if not has_numba():
        raise ImportError(f"method={method!r} needs numba: pip install 'thresher[native]'")
    from thresher.train.kernels import native  # Only here: numba takes a second to import.

    if method == "numba_gram":
        return Engine(native.prepare_gram, native.pursue_gram, native.step_back)
    return Engine(native.prepare_certified, native.pursue_certified, native.step_back)


def _find_cuda(method: Method) -> Engine:
    if not has_triton():
        raise ImportError(f"method={method!r} needs triton, which comes with torch for CUDA: pip install triton")
    from thresher.train.kernels import cuda

    if method == "triton_gram":
        return Engine(_make_afresh(cuda.prepare_gram), cuda.pursue_gram, cuda.step_back)
    return Engine(_make_afresh(cuda.prepare_certified), cuda.pursue_certified, cuda.step_back)


def _make_afresh(make: Callable[[Tensor], Prepared]) -> Callable[[Tensor, Prepared | None], Prepared]:
    """`make`, which reuses nothing: torch keeps memory of a GPU at hand by itself."""

    def prepare(dictionary: Tensor, reuse: Prepared | None) -> Prepared:
        return make(dictionary)

    return prepare


@runtime_checkable
class Products(Protocol):
    """Sums and inner products of atoms that sparse codes name; see `thresher.train.kernels.sparse`."""

    def sum_atoms(self, values: Tensor, indices: Tensor, atoms: Tensor) -> Tensor:
        """[row, d_in]: sum over k of values times atoms."""
        ...

    def dot_atoms(self, x: Tensor, atoms: Tensor, indices: Tensor) -> Tensor:
        """[row, k]: inner products of each row with its atoms."""
        ...

    def scatter_rows(self, values: Tensor, indices: Tensor, x: Tensor, n_atoms: int) -> Tensor:
        """[n_atoms, d_in]: for each atom, the weighted sum of the rows that name it."""
        ...


def find_products() -> Products:
    """Those that are compiled for CUDA: contiguous float32 tensors on a GPU. Needs triton."""
    from thresher.train.kernels import cuda

    return cuda


def check_support(method: Method, tensor: Tensor) -> None:
    """Raise ValueError when `method` cannot compute in the type or on the device of `tensor`, ImportError as `find_engine`."""
    if method == "reference":
        return
    find_engine(method)
    if method.startswith("triton"):
        from thresher.train.kernels.cuda.device import require_device

        require_device(tensor, f"method={method!r}")
    elif method.startswith("numba") and tensor.device.type != "cpu":
        raise ValueError(f"method={method!r} runs on the CPU, found {tensor.device}; move the tensors, or use method='auto'")
    elif method.startswith("numba") and tensor.dtype != torch.float32:
        raise ValueError(f"method={method!r} computes in float32, found {tensor.dtype}; convert, or use method='auto'")


def has_numba() -> bool:
    """Whether numba is installed and can be used: not while torch.compile traces, which cannot look into its loops."""
    return not torch.compiler.is_compiling() and importlib.util.find_spec("numba") is not None


def has_bf16() -> bool:
    """Whether the CPU multiplies matrices in bfloat16 faster than in float32: by AVX512-BF16 or AMX."""
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def has_triton() -> bool:
    """Whether triton is installed."""
    return importlib.util.find_spec("triton") is not None


def prepare(dictionary: Float[Tensor, "d_sae d_in"], method: Method, *, reuse: Prepared | None = None) -> Prepared:
    """What `method` derives from the dictionary, for many calls of `pursue` while the dictionary stays as it is.

    `reuse` gives up an older one, whose memory may be written to if it fits: fresh memory for a Gram matrix of 4096 atoms
    costs a tenth of a training step on a CPU. Half precision is computed in float32. Raises ValueError for `auto` and for a
    type or device that `method` does not support, ImportError when a package is missing.
    """
    if method == "auto":
        raise ValueError("method='auto' depends on the rows: ask choose_method, and prepare for the method it names")
    dictionary = dictionary.detach().to(torch.promote_types(dictionary.dtype, torch.float32)).contiguous()
    if method == "reference":
        return Prepared("reference", dictionary)
    check_support(method, dictionary)
    fits = reuse is not None and reuse.method == method and _kind(reuse.dictionary) == _kind(dictionary)
    return find_engine(method).prepare(dictionary, reuse if fits else None)


def _kind(tensor: Tensor) -> tuple[torch.Size, torch.dtype, torch.device]:
    return tensor.shape, tensor.dtype, tensor.device
