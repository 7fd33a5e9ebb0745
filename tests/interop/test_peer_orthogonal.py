"""scikit-learn's orthogonal matching pursuit finds the same codes on one unit-norm dictionary.

It picks the largest inner product in absolute value (our `abs`), never an atom twice, and of equal ones the first.
"""

from collections.abc import Callable

import pytest
import torch
from sklearn.linear_model import orthogonal_mp_gram
from torch import Tensor

from thresher.train.kernels import densify, orthogonal_pursue

pytestmark = pytest.mark.interop


@pytest.mark.parametrize(("rows", "d_in", "d_sae", "k"), [(1, 8, 8, 1), (33, 24, 130, 9), (7, 24, 12, 12)])
def test_scikit_learn_finds_the_same_orthogonal_codes(
    rows: int, d_in: int, d_sae: int, k: int, draw: Callable[..., tuple[Tensor, Tensor]]
) -> None:
    """`abs`, no atom twice. scikit-learn works from the Gram matrix and solves for the coefficients of the support."""
    x, dictionary = draw(rows, d_in, d_sae)
    expected = orthogonal_mp_gram((dictionary @ dictionary.T).numpy(), (dictionary @ x.T).numpy(), n_nonzero_coefs=k)
    codes, residual = orthogonal_pursue(x, dictionary, k, sign="abs")
    dense = densify(codes, d_sae)
    torch.testing.assert_close(dense, torch.from_numpy(expected.reshape(d_sae, rows)).T.contiguous(), rtol=0, atol=1e-9)
    torch.testing.assert_close(residual, x - dense @ dictionary, rtol=0, atol=1e-9)
