"""Where these kernels run."""

import torch
import triton
from torch import Tensor


@torch.compiler.assume_constant_result
def is_interpreted() -> bool:
    """Whether Triton interprets its kernels on the CPU (environment variable TRITON_INTERPRET=1)."""
    return bool(triton.knobs.runtime.interpret)


def require_device(x: Tensor, what: str) -> None:
    """Raise ValueError unless the kernels can run on `x`: fp32 on a CUDA device, or anywhere in Triton's interpreter."""
    if x.dtype != torch.float32:
        raise ValueError(f"{what} computes in float32, found {x.dtype}; convert it, or choose a method that takes {x.dtype}")
    if x.device.type != "cuda" and not is_interpreted():
        raise ValueError(f"{what} needs tensors on a CUDA device, found {x.device}; move them, or choose another method")
