"""Every method is greedy along its own path, in every type; gradients are exact for any use of what it returns."""

import pytest
import torch
from covering import cover
from torch import Tensor
from torch.nn import functional

from thresher.testing.pursuit import audit_pursuit
from thresher.train.codes import Codes
from thresher.train.kernels import Method, Sign, has_numba, orthogonal_pursue, pursue, sparse_decode

SHAPES = [(1, 1, 1, 1), (0, 5, 9, 3), (7, 33, 130, 5), (130, 7, 33, 9), (300, 16, 600, 12), (5, 64, 257, 4), (33, 3, 2100, 6)]
"""rows, d_in, d_sae, k."""
SIGNS: tuple[Sign, ...] = ("relu", "signed", "abs")
METHODS: tuple[Method, ...] = ("reference", "residual", "gram") + (("numba_gram", "numba_certified") if has_numba() else ())


def draw(rows: int, d_in: int, d_sae: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rows, the first of zeros, and atoms; the second half repeats the first with a little noise: near ties."""
    generator = torch.Generator().manual_seed(rows + d_sae)
    x = torch.randn(rows, d_in, generator=generator, dtype=torch.float64)
    x[:1] = 0
    atoms = torch.randn(d_sae, d_in, generator=generator, dtype=torch.float64)
    half = d_sae // 2
    atoms[half : 2 * half] = atoms[:half] + 1e-4 * torch.randn(half, d_in, generator=generator, dtype=torch.float64)
    return x.to(dtype), functional.normalize(atoms, dim=1).to(dtype)


@pytest.mark.parametrize(
    ("method", "sign", "dtype"),
    [
        *cover(METHODS, SIGNS, [torch.float32, torch.float16, torch.bfloat16]),
        *cover(METHODS[:3], SIGNS, [torch.float64]),
    ],
)
def test_every_step_picks_the_best_atom(method: Method, sign: Sign, dtype: torch.dtype) -> None:
    """To 1e-6 of the residual's norm, audited in float64; with and without repeats and stops."""
    for rows, d_in, d_sae, k in SHAPES:
        x, dictionary = draw(rows, d_in, d_sae, dtype)
        # Atoms that were rounded to half precision are of unit norm only so far, and then no row ever is explained.
        for reselect, residual_tol in ((True, None), (True, 0.3), (False, None)):
            rule = {"sign": sign, "reselect": reselect, "residual_tol": residual_tol}
            steps = k if reselect else min(k, d_sae)
            codes, residual = pursue(x, dictionary, steps, method=method, **rule)
            found = audit_pursuit(x, dictionary, codes, residual, **rule)
            assert found.gap <= 1e-6, found
            assert max(found.value_error, found.residual_error, found.stop_gap) <= 1e-6, found
            assert found.n_late == found.n_misplaced == 0, found


def test_the_audit_finds_what_is_not_greedy() -> None:
    x, dictionary = draw(50, 8, 40, torch.float64)
    codes, residual = pursue(x, dictionary, 4)
    worse = codes.indices.clone()
    worse[7, 0] = (worse[7, 0] + 1) % 40
    assert audit_pursuit(x, dictionary, Codes(worse, codes.values), residual).gap > 0.1
    assert audit_pursuit(x, dictionary, Codes(codes.indices, codes.values * 1.01), residual).value_error > 1e-3
    assert audit_pursuit(x, dictionary, codes, residual * 1.01).residual_error > 1e-3
    values = codes.values.clone()
    values[:, 2] = 0
    stopped = audit_pursuit(x, dictionary, Codes(codes.indices, values), residual)
    assert stopped.stop_gap > 0.1
    assert stopped.n_misplaced > 0
    assert audit_pursuit(x, dictionary, codes, residual, residual_tol=0.9).n_late > 0


@pytest.mark.parametrize("form", ["residual", "gram", "orthogonal"])
def test_gradients_are_exact_through_reconstruction_codes_residual_and_bias(form: str) -> None:
    """Central differences in float64; more steps than dimensions, so plain pursuit repeats atoms."""
    generator = torch.Generator().manual_seed(3)
    x, bias = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((3, 3), (3,)))
    dictionary = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    given = [x.requires_grad_(), functional.normalize(dictionary, dim=1).requires_grad_(), bias.requires_grad_()]

    def function(x: Tensor, dictionary: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        named = {"sign": "abs", "residual_tol": 0.05, "check": False}
        if form == "orthogonal":
            codes, residual = orthogonal_pursue(x - bias, dictionary, 2, **named)
        else:
            codes, residual = pursue(x - bias, dictionary, 5, method=form, **named)
        return codes.values, residual, sparse_decode(codes, dictionary) + bias

    assert torch.autograd.gradcheck(function, given, eps=1e-7, atol=1e-5)
