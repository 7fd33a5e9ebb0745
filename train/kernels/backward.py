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
    lam = torch.zeros_like(residual) if for_residual is None else for_residual.clone()
    for_dictionary = torch.zeros_like(dictionary) if needs_dictionary else None
    for step in reversed(range(indices.shape[1])):
        picks, value = indices[:, step], values[:, step, None]
        atoms = dictionary.index_select(0, picks)
        gamma = -(atoms * lam).sum(1, keepdim=True)
        if for_values is not None:
            gamma += for_values[:, step, None]
        gamma = torch.where(value != 0, gamma, 0)
        if for_dictionary is not None:
            residual.addcmul_(atoms, value)
            for_dictionary.index_add_(0, picks, (gamma * residual).addcmul_(value, lam, value=-1))
        lam.addcmul_(gamma, atoms)
    return lam, for_dictionary
