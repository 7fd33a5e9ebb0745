"""Rows gathered into a batch of float32 in one pass, by a loop that numba compiles, and written past the processor's cache.

A batch is larger than the cache, and a processor that writes to a line in the ordinary way reads it first: non-temporal stores
do not. The rows to come are asked for while one is written, since no processor guesses where a random row begins.
"""

# pyright: reportUntypedFunctionDecorator=none, reportUnknownVariableType=none, reportUnknownMemberType=none
# pyright: reportUnknownArgumentType=none
# numba and llvmlite are not typed

from typing import Any, no_type_check

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from thresher.data.gather import LINE_BYTES, LINE_VALUES

ROWS_AHEAD, BYTES_AHEAD = 2, 512
"""How many rows early a row is asked for, and how much of it: from there on the processor sees the order by itself."""
KINDS = {"bfloat16": "uint16", "float16": "int16", "float32": "uint32"}
"""Dtype of rows -> the integers by which the loop knows it: numba has no floats of 16 bits on a processor."""


@intrinsic
@no_type_check
def _stream_line(_: Any, rows: Any, source: Any, target: Any) -> Any:
    """Write the values at the address `source`, of the kind that `rows` holds, to the line at `target`, as float32."""

    def generate(context: Any, builder: Any, __: Any, arguments: Any) -> Any:
        if rows.dtype == types.int16:
            values = builder.fpext(load(builder, arguments[1], ir.HalfType(), 2), ir.VectorType(ir.FloatType(), LINE_VALUES))
        elif rows.dtype == types.uint16:
            wide = ir.VectorType(ir.IntType(32), LINE_VALUES)
            values = builder.zext(load(builder, arguments[1], ir.IntType(16), 2), wide)
            values = builder.shl(values, ir.Constant(wide, [16] * LINE_VALUES))
        else:
            values = load(builder, arguments[1], ir.IntType(32), 4)
        store = builder.store(values, builder.inttoptr(arguments[2], values.type.as_pointer()), align=LINE_BYTES)
        store.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))
        return context.get_dummy_value()

    def load(builder: Any, address: Any, element: Any, n_bytes: int) -> Any:
        return builder.load(builder.inttoptr(address, ir.VectorType(element, LINE_VALUES).as_pointer()), align=n_bytes)

    return types.void(rows, source, target), generate


@intrinsic
@no_type_check
def _prefetch(_: Any, address: Any) -> Any:
    """Ask for the line at an address, of data that is only read, for every level of the cache."""

    def generate(context: Any, builder: Any, __: Any, arguments: Any) -> Any:
        pointer, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        signature = ir.FunctionType(ir.VoidType(), [pointer, number, number, number])
        prefetch = builder.module.declare_intrinsic("llvm.prefetch", [pointer], signature)
        builder.call(prefetch, [builder.inttoptr(arguments[0], pointer), number(0), number(3), number(1)])
        return context.get_dummy_value()

    return types.void(address), generate


@intrinsic
@no_type_check
def _fence(_: Any) -> Any:
    """Let all that was written be seen before what is written next: stores past the cache keep no order otherwise."""

    def generate(context: Any, builder: Any, __: Any, ___: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


@no_type_check
def stream_rows(rows: Any, places: Any, out: Any) -> None:
    """Write the rows of `rows` [place, width] at `places` [row] to `out` [row, width], as the bits of float32.

    `out` begins with a line and has rows of whole lines.
    """
    n_rows, width = out.shape
    start, target, row_bytes = rows.ctypes.data, out.ctypes.data, rows.itemsize * width
    for row in range(n_rows):
        if row + ROWS_AHEAD < n_rows:
            ahead = start + places[row + ROWS_AHEAD] * row_bytes
            for byte in range(0, min(row_bytes, BYTES_AHEAD), LINE_BYTES):
                _prefetch(ahead + byte)
        source = start + places[row] * row_bytes
        for column in range(0, width, LINE_VALUES):
            _stream_line(rows, source + column * rows.itemsize, target + (row * width + column) * 4)
    _fence()


@no_type_check
def compile_streaming(kind: str) -> Any:
    """`stream_rows` for one of `KINDS`, compiled to run without the interpreter's lock; kept on disk where one can write."""
    signature = f"void({kind}[:, ::1], int64[::1], uint32[:, ::1])"
    try:
        return njit(signature, cache=True, nogil=True)(stream_rows)
    except RuntimeError:  # Neither the package nor the user's cache folder can be written.
        return njit(signature, nogil=True)(stream_rows)
