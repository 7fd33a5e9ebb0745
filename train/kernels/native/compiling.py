"""How loops are compiled, and the two operations that LLVM must be told about to vectorise them."""

from collections.abc import Callable
from typing import Any, no_type_check

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic


def compiled(function: Callable[..., Any]) -> Any:
    """Compile when first called, to run without the interpreter's lock; keep the result on disk where that can be written.

    A cached function notices changes to its own file only: what calls each other stands in one file.
    """
    # Infinities are used, so no "ninf"; "nnan" lets maxima and "reassoc" lets sums be vectorised.
    options: Any = {"nogil": True, "error_model": "numpy", "fastmath": {"nnan", "nsz", "contract", "reassoc"}}
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # Neither the package nor the user's cache folder can be written.
        return njit(**options)(function)


@intrinsic
@no_type_check
def widen(_typing, number):
    """A float32 from bfloat16 bits in an int16, in a form that LLVM vectorises; a float32 as it is."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        if number != types.int16:
            return arguments[0]
        bits = builder.shl(builder.zext(arguments[0], ir.IntType(32)), ir.Constant(ir.IntType(32), 16))
        return builder.bitcast(bits, ir.FloatType())

    return types.float32(number), generate


@intrinsic
@no_type_check
def larger(_typing, _left, _right):
    """The larger of two float32. Unlike `max` LLVM vectorises a reduction by it: the whole pursuit takes half the time."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(ir.FloatType(), [ir.FloatType(), ir.FloatType()])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.maxnum.f32")
        return builder.call(function, arguments, fastmath=("nnan", "nsz"))

    return types.float32(types.float32, types.float32), generate
