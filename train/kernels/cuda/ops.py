"""The kernels as operators of torch, so that `torch.compile` and CUDA graphs take a pursuit as one opaque call.

Each is registered under `thresher::` with the shapes it returns; nothing here carries a gradient (`pursue` has its own).
"""

import torch
from torch import Tensor

from thresher.train.kernels.cuda import backward, certified, correlate, gram, products
from thresher.train.kernels.rule import Rule, Sign

STORED: dict[str, torch.dtype] = {"fp16": torch.float16, "fp32": torch.float32}
"""How a Gram matrix may be kept. bf16 would double the band: its rounding is 8 times that of fp16."""


def _rule(k: int, residual_tol: float | None, sign: str, reselect: bool) -> Rule:
    names: dict[str, Sign] = {"relu": "relu", "signed": "signed", "abs": "abs"}
    return Rule(k, residual_tol, names[sign], reselect)


def _shape_picked(x: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    n_rows = x.shape[0]
    return x.new_empty(n_rows, k, dtype=torch.int64), x.new_empty(n_rows, k), torch.empty_like(x)


@torch.library.custom_op("thresher::correlate_atoms", mutates_args=())
def correlate_atoms(low: Tensor, stored: str) -> tuple[Tensor, Tensor]:
    """Gram matrix of `low` in the type `stored`, and the largest rounding error of each row off the diagonal."""
    return correlate.correlate_with_itself(low, STORED[stored])


@correlate_atoms.register_fake
def _(low: Tensor, stored: str) -> tuple[Tensor, Tensor]:
    n_atoms = low.shape[0]
    return low.new_empty(n_atoms, n_atoms, dtype=STORED[stored]), low.new_empty(n_atoms, dtype=torch.float32)


@torch.library.custom_op("thresher::pursue_certified", mutates_args=())
def pursue_certified(
    x: Tensor, dictionary: Tensor, low: Tensor, low_error: Tensor, k: int, residual_tol: float | None, sign: str, reselect: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Indices, values and residual by products in low precision."""
    return certified.pursue_with_certificate(x, dictionary, low, low_error, _rule(k, residual_tol, sign, reselect))


@pursue_certified.register_fake
def _(
    x: Tensor, dictionary: Tensor, low: Tensor, low_error: Tensor, k: int, residual_tol: float | None, sign: str, reselect: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return _shape_picked(x, k)


@torch.library.custom_op("thresher::pursue_gram", mutates_args=())
def pursue_gram(
    x: Tensor, dictionary: Tensor, gram_matrix: Tensor, gram_error: Tensor, low: Tensor, low_error: Tensor, k: int,
    residual_tol: float | None, sign: str, reselect: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Indices, values and residual by rows of the Gram matrix."""
    rule = _rule(k, residual_tol, sign, reselect)
    return gram.pursue_by_gram(x, dictionary, gram_matrix, gram_error, low, low_error, rule)


@pursue_gram.register_fake
def _(
    x: Tensor, dictionary: Tensor, gram_matrix: Tensor, gram_error: Tensor, low: Tensor, low_error: Tensor, k: int,
    residual_tol: float | None, sign: str, reselect: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return _shape_picked(x, k)


@torch.library.custom_op("thresher::step_back", mutates_args=())
def step_back(
    indices: Tensor, values: Tensor, residual: Tensor, dictionary: Tensor, for_values: Tensor | None,
    for_residual: Tensor | None, needs_dictionary: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradients for the rows and for the dictionary; the latter is empty when it is not needed."""
    for_x, total = backward.step_back(
        indices, values, residual, dictionary, for_values, for_residual, needs_dictionary=needs_dictionary
    )
    return for_x, dictionary.new_empty(0) if total is None else total


@step_back.register_fake
def _(
    indices: Tensor, values: Tensor, residual: Tensor, dictionary: Tensor, for_values: Tensor | None,
    for_residual: Tensor | None, needs_dictionary: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return torch.empty_like(residual), torch.empty_like(dictionary) if needs_dictionary else dictionary.new_empty(0)


@torch.library.custom_op("thresher::sum_atoms", mutates_args=())
def sum_atoms(values: Tensor, indices: Tensor, atoms: Tensor) -> Tensor:
    """[row, d_in]: sum over k of values times atoms."""
    return products.sum_atoms(values, indices, atoms)


@sum_atoms.register_fake
def _(values: Tensor, indices: Tensor, atoms: Tensor) -> Tensor:
    return atoms.new_empty(indices.shape[0], atoms.shape[1])


@torch.library.custom_op("thresher::dot_atoms", mutates_args=())
def dot_atoms(x: Tensor, atoms: Tensor, indices: Tensor) -> Tensor:
    """[row, k]: inner products of each row with its atoms."""
    return products.dot_atoms(x, atoms, indices)


@dot_atoms.register_fake
def _(x: Tensor, atoms: Tensor, indices: Tensor) -> Tensor:
    return x.new_empty(indices.shape)


@torch.library.custom_op("thresher::scatter_rows", mutates_args=())
def scatter_rows(values: Tensor, indices: Tensor, x: Tensor, n_atoms: int) -> Tensor:
    """[d_sae, d_in]: sum over rows and k of values times the row, at the atom."""
    return products.scatter_rows(values, indices, x, n_atoms)


@scatter_rows.register_fake
def _(values: Tensor, indices: Tensor, x: Tensor, n_atoms: int) -> Tensor:
    return x.new_empty(n_atoms, x.shape[1])
