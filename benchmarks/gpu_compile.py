"""Compile the kernels of `thresher.train.kernels.cuda` without a GPU: registers, spills, shared memory, tensor instructions.

    python benchmarks/gpu_compile.py [--capability 90] [d_in,d_sae,k,batch ...]

The launches are those that the library makes for these shapes: it runs on tensors without data while the launches are
noted instead of made, and each is then compiled with its own types, constants and options.
"""

import argparse
import re
import subprocess
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from thresher.train.kernels.cuda import backward, certified, correlate, gram, products
from thresher.train.kernels.rule import Rule

SHAPES = ("768,16384,32,8192", "4096,65536,64,4096")
TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.int32: "i32", torch.int64: "i64"}
VARYING = ("step", "first_pick")
"""Numbers that a kernel is not specialised on."""
OPTIONS = ("num_warps", "num_stages", "maxnreg", "enable_fp_fusion")


class Launch(NamedTuple):
    """A kernel with the arguments of one launch."""

    kernel: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Compiled(NamedTuple):
    """What the assembler made of a launch."""

    name: str
    warps: int
    registers: int
    spilled: int
    """Bytes of stack per thread."""
    shared: int
    """Bytes per program."""
    tensor_instructions: int


@contextmanager
def note_launches() -> Generator[list[Launch], None, None]:
    """Every launch inside is noted instead of made."""
    launches: list[Launch] = []

    def note(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        launches.append(Launch(kernel, args, kwargs))

    with mock.patch.object(JITFunction, "run", note):
        yield launches


def draw_without_data(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor that has a shape and a type only."""
    return torch.empty(shape, dtype=dtype, device="meta")


def list_launches(d_in: int, d_sae: int, k: int, batch: int) -> list[Launch]:
    """The launches of preparation, both pursuits, the backward pass and the sparse products."""
    x, dictionary, low = draw_without_data(batch, d_in), draw_without_data(d_sae, d_in), draw_without_data(d_sae, d_in)
    low, error = low.bfloat16(), draw_without_data(d_sae)
    indices, values = draw_without_data(batch, k, dtype=torch.int64), draw_without_data(batch, k)
    with note_launches() as launches:
        matrix, matrix_error = correlate.correlate_with_itself(low, torch.float16)
        gram.pursue_by_gram(x, dictionary, matrix, matrix_error, low, error, Rule(k, None, "relu", reselect=True))
        certified.pursue_with_certificate(x, dictionary, low, error, Rule(2, None, "relu", reselect=True))
        backward.step_back(indices, values, x, dictionary, None, x, needs_dictionary=True)
        products.sum_atoms(values, indices, dictionary)
        products.dot_atoms(x, dictionary, indices)
        products.scatter_rows(values, indices, x, d_sae)
    return launches


def describe_argument(value: Any) -> tuple[str, bool]:
    """Triton's type of an argument, `constexpr` where it is compiled in, and whether it is known to be divisible by 16."""
    match value:
        case Tensor():
            return "*" + TYPES[value.dtype], True
        case float():
            return "fp32", False
        case None | bool() | 1:
            return "constexpr", False
        case _:
            return ("i32" if abs(value) < 2**31 else "i64"), value % 16 == 0


def compile_launch(launch: Launch, capability: int) -> Compiled:
    """Down to machine code for `sm_<capability>`."""
    names = launch.kernel.arg_names
    given = dict(zip(names, launch.args, strict=False)) | {n: v for n, v in launch.kwargs.items() if n in names}
    constants = {parameter.name for parameter in launch.kernel.params if parameter.is_constexpr}
    kinds = {n: ("constexpr", False) if n in constants else describe_argument(given[n]) for n in names}
    kinds |= {parameter.name: ("i32", False) for parameter in launch.kernel.params if parameter.name in VARYING}
    source = ASTSource(
        fn=launch.kernel,
        signature={n: kind for n, (kind, _) in kinds.items()},
        constexprs={(i,): given[n] for i, n in enumerate(names) if kinds[n][0] == "constexpr"},
        attrs={(i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if kinds[n][1]},
    )
    options = {name: launch.kwargs[name] for name in OPTIONS if name in launch.kwargs}
    found = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder) / "kernel.cubin"
        binary.write_bytes(found.asm["cubin"])
        tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        usage = subprocess.run([tool, "--dump-resource-usage", binary], capture_output=True, text=True, check=True).stdout
    numbers = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    tensor = sum(found.asm["ptx"].count(name) for name in ("wgmma.mma_async", "mma.sync"))
    return Compiled(
        launch.kernel.fn.__name__, launch.kwargs["num_warps"], numbers["REG"], numbers["STACK"] + numbers["LOCAL"],
        found.metadata.shared, tensor,
    )  # fmt: skip


def compile_all(shape: tuple[int, int, int, int], capability: int) -> Iterator[Compiled]:
    """Each different launch once."""
    seen: set[str] = set()
    for launch in list_launches(*shape):
        whole = [value for name, value in zip(launch.kernel.arg_names, launch.args, strict=False) if name not in VARYING]
        key = str((launch.kernel.fn.__name__, [describe_argument(value) for value in whole], launch.kwargs))
        if key not in seen:
            seen.add(key)
            yield compile_launch(launch, capability)


def main() -> None:
    """Print a row per kernel."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*", default=SHAPES)
    parser.add_argument("--capability", type=int, default=90)
    arguments = parser.parse_args()
    print(f"triton {triton.__version__}, sm_{arguments.capability}")
    for shape in arguments.shapes:
        print(f"\n(d_in, d_sae, k, batch) = ({shape})")
        print(f"{'':24}{'warps':>7}{'registers':>11}{'spilled B':>11}{'shared B':>10}{'mma':>6}")
        d_in, d_sae, k, batch = (int(part) for part in shape.split(","))
        for found in compile_all((d_in, d_sae, k, batch), arguments.capability):
            print(f"{found.name:24}{found.warps:7}{found.registers:11}{found.spilled:11}{found.shared:10}"
                  f"{found.tensor_instructions:6}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
