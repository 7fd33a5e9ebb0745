"""The Gram matrix of a dictionary on the CPU, in float32 or bfloat16."""

from typing import no_type_check

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from thresher.train.kernels.native.compiling import compiled
from thresher.train.kernels.native.threads import share_rows

GRAM_BLOCK = 512
"""Rows per matrix product. Smaller ones waste less below the diagonal, larger ones run faster."""
LINE = 64
"""Bytes of a cache line, the side of the squares that are transposed: measured twice as fast as other sizes."""


def compute_gram(
    dictionary: Float[Tensor, "d_sae d_in"], out: Float[Tensor, "d_sae d_sae"] | None = None
) -> Float[Tensor, "d_sae d_sae"]:
    """Inner products of all atoms, in the dictionary's type: half of them computed, the rest copied across the diagonal.

    Written into `out` if given, whose memory is there already.
    """
    n = dictionary.shape[0]
    kind = torch.int16 if dictionary.dtype == torch.bfloat16 else torch.int32
    # New memory from numpy comes in huge pages on Linux: 4 ms instead of 16 until 32 MB are there.
    memory = torch.from_numpy(np.empty((n, n * dictionary.element_size()), np.uint8)) if out is None else out
    gram = memory.view(dictionary.dtype)
    for start in range(0, n, GRAM_BLOCK):
        stop = min(start + GRAM_BLOCK, n)
        torch.mm(dictionary[start:stop], dictionary[start:].T, out=gram[start:stop, start:])
    share_rows(n, mirror, gram.view(kind).numpy())
    return gram


def largest_off_diagonal(gram: Float[Tensor, "d_sae d_sae"]) -> Float[Tensor, "d_sae"]:
    """The largest absolute value of each row of a bfloat16 matrix, without its diagonal."""
    bits = gram.view(torch.int16).numpy()
    largest = gram.new_empty(len(bits), dtype=torch.int16)
    share_rows(len(bits), measure, bits, largest.numpy())
    return largest.view(torch.bfloat16).float()


@compiled
@no_type_check
def mirror(first, last, matrix):
    """Copy the upper triangle over rows `first` to `last` of the lower one, in squares that are read and written in order."""
    side = LINE // matrix.itemsize
    square = np.empty((side, side), matrix.dtype)
    for top in range(first, last, side):
        height = min(side, last - top)
        for left in range(0, top + height, side):
            for i in range(min(side, matrix.shape[0] - left)):
                source = matrix[left + i, top : top + height]
                for j in range(height):
                    square[j, i] = source[j]
            for j in range(height):
                width = max(min(side, top + j - left), 0)
                target = matrix[top + j, left : left + width]
                for i in range(width):
                    target[i] = square[j, i]


@compiled
@no_type_check
def measure(first, last, bits, largest):
    """As `largest_off_diagonal`. Without their sign, bfloat16 bits are ordered as the numbers are."""
    for row in range(first, last):
        numbers = bits[row]
        best = np.int16(0)
        for i in range(numbers.size):
            best = max(best, np.int16(numbers[i] & 0x7FFF) if i != row else np.int16(0))
        largest[row] = best
