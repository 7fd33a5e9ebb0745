"""The gradient of matching pursuit, by running its steps backwards."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


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
    """Gradients for the rows and, if needed, for the dictionary, from those for the values and the final residual.

    With value c and atom d of step t, residuals r_{t-1} = r_t + c d, and lam = dL/dr: the total derivative for c is
    gamma = dL/dc - <d, lam>; then dL/dd += gamma r_{t-1} - c lam and lam += gamma d. A value of 0 marks a stopped row,
    whose gamma is 0. Repeated picks need no care: each is its own step. O(row k d_in) time.
    """
    residual = residual.clone()
    lam = torch.zeros_like(residual) if for_residual is None else for_residual.clone(memory_format=torch.contiguous_format)
    for_dictionary = torch.zeros_like(dictionary) if needs_dictionary else None
    atoms, change = torch.empty_like(residual), torch.empty_like(residual)
    for step in reversed(range(indices.shape[1])):
        picks, value = indices[:, step], values[:, step, None]
        torch.index_select(dictionary, 0, picks, out=atoms)
        gamma = torch.mul(atoms, lam, out=change).sum(1, keepdim=True).neg_()
        if for_values is not None:
            gamma += for_values[:, step, None]
        gamma = torch.where(value != 0, gamma, 0)
        if for_dictionary is not None:
            residual.addcmul_(atoms, value)
            torch.mul(residual, gamma, out=change).addcmul_(value, lam, value=-1)
            add_rows(for_dictionary, picks, change)
        lam.addcmul_(gamma, atoms)
    return lam, for_dictionary


def add_rows(total: Float[Tensor, "d_sae d_in"], indices: Int[Tensor, "n"], rows: Float[Tensor, "n d_in"]) -> None:
    """Add each of `rows` to the row of `total` that `indices` names; equal inputs give equal bits on every device.

    A CPU adds in order. A GPU would add by atomics in whatever order: there the rows are sorted by index and each index
    adds up its own.
    """
    if total.device.type == "cpu":
        total.index_add_(0, indices, rows)
        return
    # With `accumulate`, index_put_ sorts the indices on CUDA and adds each run of equal ones in order.
    total.index_put_((indices,), rows, accumulate=True)
