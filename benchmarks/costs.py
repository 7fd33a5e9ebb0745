"""What each of our methods has to compute and to move, and how long this machine must take for it.

A product counts 2 flops per multiply-add, at the rate of the machine's own matrix product in that precision; bytes count
once, at the rate of its reads from memory, and not where a chunk of rows stays in the second-level cache. Products and
bytes add up: one thread does one after the other. So the limit is a floor of the method, not of the problem.
"""

from typing import NamedTuple

from rows import Shape
from timing import Limits

BYTES_PER_PARAMETER = 44
"""Adam reads parameter, gradient and two averages and writes three (28); the gradient is zeroed and its norm read (8); the
projection to unit norm reads and writes the parameter (8)."""


class Cost(NamedTuple):
    """Flops in float32 and in bfloat16, and bytes."""

    fp32: float = 0.0
    bf16: float = 0.0
    memory: float = 0.0

    def plus(self, other: "Cost") -> "Cost":
        """Both, one after the other."""
        return Cost(self.fp32 + other.fp32, self.bf16 + other.bf16, self.memory + other.memory)

    def limit(self, limits: Limits) -> float:
        """Milliseconds on a machine with these limits."""
        return self.fp32 / limits.fp32 + self.bf16 / limits.bf16 + self.memory / limits.memory


def count_encode(method: str, shape: Shape) -> Cost | None:
    """Codes at a fixed dictionary, the Gram matrix given. None where the cost is not known."""
    d_in, d_sae, k, batch = shape
    product, scores = 2.0 * batch * d_sae * d_in, float(batch * d_sae)
    atoms = 4.0 * batch * k * d_in
    match method:
        case "residual":
            return Cost(fp32=k * product, memory=atoms)
        case "gram" | "numba_gram":
            return Cost(fp32=product, memory=4 * (k - 1) * scores + atoms)
        case "numba_certified":
            return Cost(bf16=product, memory=2 * (k - 1) * scores + atoms)
        case "topk":
            return Cost(fp32=product, memory=8 * scores)
        case "topk_low":
            return Cost(bf16=product, memory=4 * scores + atoms)
        case _:
            return None


def count_gram(method: str, shape: Shape) -> Cost:
    """Building the Gram matrix from its upper triangle, where the method has one."""
    flops, entries = float(shape.d_sae**2 * shape.d_in), float(shape.d_sae**2)
    match method:
        case "gram" | "numba_gram":
            return Cost(fp32=flops, memory=4 * entries)
        case "numba_certified":
            return Cost(bf16=flops, memory=2 * entries)
        case _:
            return Cost()


def count_step(method: str, shape: Shape) -> Cost | None:
    """A training step with a new dictionary: encode, sparse backward, Adam, unit norm."""
    d_in, d_sae, k, batch = shape
    encode = count_encode(method, shape)
    if encode is None:
        return None
    n_matrices = 2 if method.startswith("topk") else 1
    # Each pick reads its atom, and reads and writes a row of the gradient, for each of the matrices.
    backward = Cost(memory=12.0 * n_matrices * batch * k * d_in)
    update = Cost(memory=float(BYTES_PER_PARAMETER * n_matrices * d_sae * d_in))
    return encode.plus(count_gram(method, shape)).plus(backward).plus(update)
