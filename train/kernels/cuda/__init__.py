"""Matching pursuit on CUDA in Triton: low-precision selection with the picks of exact fp32, and a backward without atomics.

Nothing waits for the device, shapes depend on shapes only (a step can be captured in a CUDA graph), and every call with
equal inputs gives equal bits. The kernels also run in Triton's interpreter (TRITON_INTERPRET=1) on a CPU.
"""

from thresher.train.kernels.cuda.engine import prepare_certified, prepare_gram, pursue_certified, pursue_gram, step_back
from thresher.train.kernels.cuda.ops import dot_atoms, scatter_rows, sum_atoms

__all__ = [
    "dot_atoms",
    "prepare_certified",
    "prepare_gram",
    "pursue_certified",
    "pursue_gram",
    "scatter_rows",
    "step_back",
    "sum_atoms",
]
