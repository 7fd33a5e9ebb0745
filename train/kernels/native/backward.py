"""The gradient of matching pursuit on the CPU in compiled loops."""

from typing import no_type_check

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from thresher.train.kernels.native.compiling import compiled
from thresher.train.kernels.native.threads import share_rows

LANES = 64
"""Columns that a thread takes at once are whole multiples of this, so that every split runs the same vector code."""


def step_back(
    indices: Int[Tensor, "row k"],
    values: Float[Tensor, "row k"],
    residual: Float[Tensor, "row d_in"],
    dictionary: Float[Tensor, "d_sae d_in"],
    for_values: Float[Tensor, "row k"] | None,
    for_residual: Float[Tensor, "row d_in"] | None,
    *,
    needs_dictionary: bool,
) -> tuple[Float[Tensor, "row d_in"], Float[Tensor, "d_sae d_in"] | None]:
    """As `kernels.backward.step_back`: gradients for the rows and, if needed, for the dictionary.

    Rows are independent. For the dictionary each thread takes a range of columns and goes through all rows, so that each
    element has one writer and one order: no atomics, the same bits with any number of threads, and no memory per pick.
    """
    for_x = torch.zeros_like(residual) if for_residual is None else for_residual.clone(memory_format=torch.contiguous_format)
    gammas = torch.zeros_like(values) if for_values is None else for_values.clone(memory_format=torch.contiguous_format)
    codes = indices.contiguous().numpy(), values.contiguous().numpy(), dictionary.contiguous().numpy()
    share_rows(len(for_x), step_rows_back, *codes, for_x.numpy(), gammas.numpy())
    if not needs_dictionary:
        return for_x, None
    for_dictionary = torch.from_numpy(np.zeros(dictionary.shape, np.float32))
    lam = torch.zeros_like(residual) if for_residual is None else for_residual.contiguous()
    arrays = (residual.contiguous().numpy(), lam.numpy(), gammas.numpy(), for_dictionary.numpy())
    share_rows(-(-dictionary.shape[1] // LANES), step_columns_back, *codes, *arrays)
    return for_x, for_dictionary


@compiled
@no_type_check
def step_rows_back(first, last, indices, values, dictionary, lam, gammas):
    """From dL/dvalue in `gammas` and dL/dresidual in `lam` to total derivatives for the values and the gradient for x."""
    for row in range(first, last):
        slope = lam[row]
        for step in range(indices.shape[1] - 1, -1, -1):
            if values[row, step] == 0:
                gammas[row, step] = 0
                continue
            atom = dictionary[indices[row, step]]
            product = np.float32(0)
            for i in range(atom.size):
                product += atom[i] * slope[i]
            gamma = gammas[row, step] - product
            gammas[row, step] = gamma
            for i in range(atom.size):
                slope[i] += gamma * atom[i]


@compiled
@no_type_check
def step_columns_back(first, last, indices, values, dictionary, residual, lam, gammas, for_dictionary):
    """Add up the dictionary's gradient in column blocks `first` to `last`: d += gamma r - value lam, the steps backwards."""
    columns = slice(first * LANES, min(last * LANES, dictionary.shape[1]))
    width = columns.stop - columns.start
    rest, slope = np.empty(width, np.float32), np.empty(width, np.float32)
    for row in range(indices.shape[0]):
        rest[:], slope[:] = residual[row, columns], lam[row, columns]
        for step in range(indices.shape[1] - 1, -1, -1):
            value, gamma, pick = values[row, step], gammas[row, step], indices[row, step]
            if value == 0:
                continue
            atom, total = dictionary[pick, columns], for_dictionary[pick, columns]
            for i in range(width):
                before = rest[i] + value * atom[i]
                total[i] += gamma * before - value * slope[i]
                slope[i] += gamma * atom[i]
                rest[i] = before
