"""Where these kernels run."""

from typing import Any

import torch
from torch import Tensor
from triton import knobs


@torch.compiler.assume_constant_result
def is_interpreted() -> bool:
    """Whether Triton interprets its kernels on the CPU (environment variable TRITON_INTERPRET=1)."""
    return bool(knobs.runtime.interpret)


def require_device(x: Tensor, what: str) -> None:
    """Raise ValueError unless the kernels can run on `x`: fp32 on a CUDA device, or anywhere in Triton's interpreter."""
    if x.dtype != torch.float32:
        raise ValueError(f"{what} computes in float32, found {x.dtype}; convert it, or choose a method that takes {x.dtype}")
    if x.device.type != "cuda" and not is_interpreted():
        raise ValueError(f"{what} needs tensors on a CUDA device, found {x.device}; move them, or choose another method")


def launch(kernel: Any, n_programs: int, *arguments: Any, **options: Any) -> None:
    """Start a kernel with `n_programs` programs; multiply-adds are fused, which newer versions of Triton want said."""
    if n_programs > 0:
        kernel[(n_programs,)](*arguments, **options, enable_fp_fusion=True)
