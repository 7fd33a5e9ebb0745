"""Laws of what a pursuit refuses, of what is prepared for it, and of empty batches."""

import math
import re
import subprocess
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from thresher.train.kernels import Method, has_numba, orthogonal_pursue, prepare, pursue, pursue_nested, sparse_decode
from thresher.train.kernels.check import check_rule, check_shapes
from thresher.train.kernels.rule import Rule

METHODS: tuple[Method, ...] = ("auto", "reference", "residual", "gram") + (
    ("numba_gram", "numba_certified") if has_numba() else ()
)
NOTHING = nullcontext()
PREPARED = tuple(method for method in METHODS if method != "auto")


def draw(rows: int = 30, d_in: int = 8, d_sae: int = 40) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    atoms = functional.normalize(torch.randn(d_sae, d_in, generator=generator), dim=1)
    return torch.randn(rows, d_in, generator=generator), atoms


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_rows_that_are_not_finite_are_refused_by_name(number: float) -> None:
    x, dictionary = draw()
    x[3, 2] = x[17, 0] = number
    for function in (pursue, orthogonal_pursue, pursue_nested):
        with pytest.raises(ValueError, match=r"x: rows 3, 17 \(2 of 30\)"):
            function(x, dictionary, 2)
    x[:] = number
    with pytest.raises(ValueError, match=r"rows 0, 1, 2, 3, 4, \.\.\. \(30 of 30\)"):
        pursue(x, dictionary, 2)


def test_atoms_that_are_not_finite_or_not_of_unit_norm_are_refused_with_their_norms() -> None:
    x, dictionary = draw()
    for scale, found in ((2.0, "2"), (0.0, "0"), (1.001, "1.001")):
        scaled = dictionary.clone()
        scaled[[5, 9]] *= scale
        for function in (pursue, orthogonal_pursue):
            with pytest.raises(ValueError, match=rf"rows 5, 9 \(2 of 40\) must have norm 1, found {found}, {found};"):
                function(x, scaled, 2)
        pursue(x, scaled, 2, check=False)
    dictionary[4, 0] = torch.nan
    with pytest.raises(ValueError, match=r"dictionary: rows 4 \(1 of 40\) hold NaN"):
        pursue(x, dictionary, 2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_atoms_scaled_in_any_type_have_unit_norm_enough(dtype: torch.dtype) -> None:
    x, dictionary = draw(5, 300, 200)
    pursue(x.to(dtype), functional.normalize(dictionary.to(dtype), dim=1), 2)


def test_what_does_not_fit_together_is_refused() -> None:
    x, dictionary = draw()
    for function in (pursue, orthogonal_pursue, pursue_nested):
        for k in (0, -3):
            with pytest.raises(ValueError, match=f"k={k}"):
                function(x, dictionary, k)
        with pytest.raises(ValueError, match="meta"):
            function(x, dictionary.to("meta"), 2)
        with pytest.raises(ValueError, match="at least one atom"):
            function(x, dictionary[:0], 2)
    # jaxtyping is on in tests and refuses these before the functions do.
    with pytest.raises(ValueError, match="x has width 7, the dictionary 8"):
        check_shapes(x[:, :7], dictionary)
    with pytest.raises(ValueError, match=r"x holds torch\.int64"):
        check_shapes(x.long(), dictionary)
    for shape in ((8,), (2, 15, 8)):
        with pytest.raises(ValueError, match=rf"x has shape {re.escape(str(list(shape)))}: give a matrix"):
            check_shapes(x.flatten()[: math.prod(shape)].view(shape), dictionary)


def test_a_rule_that_cannot_be_followed_is_refused_and_not_read_as_another() -> None:
    x, dictionary = draw()
    for function in (pursue, orthogonal_pursue, pursue_nested):
        for tol in (-0.1, float("nan")):
            with pytest.raises(ValueError, match=f"residual_tol={tol}"):
                function(x, dictionary, 2, residual_tol=tol)
    with pytest.raises(ValueError, match="k=41: without repeats, pick at most 40"):
        pursue(x, dictionary, 41, reselect=False)
    # jaxtyping is on in tests and refuses these before the functions do.
    for sign in ("positive", "", None):
        with pytest.raises(ValueError, match=f"sign={sign!r}: choose one of relu, signed, abs"):
            check_rule(Rule(2, None, sign, True), 40)


def pursue_every_way(
    method: Method, x: Tensor, dictionary: Tensor, context: AbstractContextManager[object] = NOTHING
) -> list[Tensor]:
    """Codes, residuals and gradients of what has this method; backward outside of the context, as torch wants it."""
    x, dictionary = x.clone().requires_grad_(), dictionary.clone().requires_grad_()
    found: list[Tensor] = []
    for function in (pursue, orthogonal_pursue) if method in ("auto", "reference", "residual") else (pursue,):
        with context:
            codes, residual = function(x, dictionary, 5, method=method, residual_tol=0.2)
            decoded = sparse_decode(codes, dictionary)
        gradients = torch.autograd.grad(residual.square().sum() + decoded.sum() + codes.values.sum(), [x, dictionary])
        found += [*codes, residual, decoded.detach(), *gradients]
    return found


@pytest.mark.parametrize("method", METHODS)
def test_autocast_and_defaults_of_torch_change_nothing(method: Method) -> None:
    """With products in bfloat16 the picks would be others, and the residual not float32.

    To rounding: sums of the plain reference depend in their last bit on where torch puts the memory.
    """
    x, dictionary = draw(50, 16, 600)
    expected = pursue_every_way(method, x, dictionary)
    found = [pursue_every_way(method, x, dictionary, torch.autocast("cpu", torch.bfloat16))]
    try:
        torch.set_default_dtype(torch.float64)
        found.append(pursue_every_way(method, x, dictionary))
        torch.set_default_dtype(torch.float32)
        torch.set_default_device("meta")
        found.append(pursue_every_way(method, x, dictionary))
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    for each in found:
        for got, wanted in zip(each, expected, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_rows_and_atoms_may_lie_anyhow_in_memory(method: Method) -> None:
    """Transposed, every second row, one row for all."""
    x, dictionary = draw(60, 16, 300)
    kept, steps = x.T.contiguous().T[::2], dictionary.T.contiguous().T
    assert not kept.is_contiguous()
    assert not steps.is_contiguous()
    for given, plain in ((kept, x[::2]), (x[:1].expand(7, 16), x[:1].repeat(7, 1))):
        found = []
        for rows, atoms in ((given, steps), (plain, dictionary)):
            leaves = rows.detach().requires_grad_(), atoms.detach().requires_grad_()
            codes, residual = pursue(*leaves, 5, method=method)
            found.append((*codes, residual, *torch.autograd.grad(residual.sum() + codes.values.sum(), leaves)))
        for got, expected in zip(*found, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not has_numba(), reason="numba is not installed: pip install 'thresher[native]'")
def test_a_method_that_cannot_compute_what_is_asked_is_refused_and_not_replaced() -> None:
    x, dictionary = draw()
    for method in ("numba_gram", "numba_certified"):
        with pytest.raises(ValueError, match=rf"{method}.*float32.*float64"):
            pursue(x.double(), dictionary, 2, method=method)
        with pytest.raises(ValueError, match=rf"{method}.*float64"):
            prepare(dictionary.double(), method)


@pytest.mark.parametrize("package", ["numba", "triton"])
def test_a_missing_package_is_named_with_what_to_install(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    x, dictionary = draw()
    methods = [method for method in get_args(Method) if method.startswith(package)]
    assert len(methods) == 2
    for method in methods:
        with pytest.raises(ImportError, match=rf"{method}.*pip install"):
            pursue(x, dictionary, 2, method=method)
    assert pursue(x, dictionary, 2)[1].isfinite().all()


@pytest.mark.parametrize("method", METHODS)
def test_an_empty_batch_gives_empty_codes_and_a_gradient_of_zeros(method: Method) -> None:
    _, dictionary = draw()
    dictionary.requires_grad_()
    x = torch.empty(0, 8, requires_grad=True)
    codes, residual = pursue(x, dictionary, 3, method=method)
    assert codes.indices.shape == codes.values.shape == (0, 3)
    assert residual.shape == (0, 8)
    (codes.values.sum() + residual.sum()).backward()
    assert x.grad is not None
    assert x.grad.shape == (0, 8)
    assert dictionary.grad is not None
    assert not dictionary.grad.any()


@pytest.mark.parametrize("method", PREPARED)
def test_what_is_prepared_changes_neither_codes_nor_gradients(method: Method) -> None:
    """Also when it was written over an older one. The gradient still goes to the dictionary that is given."""
    x, dictionary = draw(d_sae=1100)
    dictionary.requires_grad_()
    old = prepare(functional.normalize(torch.randn(1100, 8), dim=1), method)
    for prepared in (prepare(dictionary, method), prepare(dictionary, method, reuse=old)):
        found = []
        for given in (None, prepared):
            codes, residual = pursue(x, dictionary, 5, method=method, prepared=given)
            gradient = torch.autograd.grad(residual.square().sum() + codes.values.sum(), dictionary)[0]
            found.append((codes.indices, codes.values, residual, gradient))
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
        assert prepared.method == method
        assert not prepared.dictionary.requires_grad
    assert prepared.gram is None or old.gram is None or prepared.gram.data_ptr() == old.gram.data_ptr()


def test_what_was_prepared_for_something_else_is_refused() -> None:
    x, dictionary = draw()
    prepared = prepare(dictionary, "gram")
    with pytest.raises(ValueError, match="'gram'"):
        pursue(x, dictionary, 2, method="residual", prepared=prepared)
    with pytest.raises(ValueError, match="prepare again"):
        pursue(x, dictionary[:-1], 2, prepared=prepared)
    with pytest.raises(ValueError, match="prepare again"):
        pursue(x.double(), dictionary, 2, prepared=prepared)
    other = dictionary.clone()
    other[[3, 7]] = other[[7, 3]]
    with pytest.raises(ValueError, match=r"dictionary: rows 3, 7 \(2 of 40\) are not what was prepared; prepare again"):
        pursue(x, other, 2, prepared=prepared)
    with pytest.raises(ValueError, match="auto"):
        prepare(dictionary, "auto")


COMPILED = """
import torch
from thresher.train.kernels import pursue

x, dictionary = torch.randn(200, 8), torch.nn.functional.normalize(torch.randn(64, 8), dim=1).requires_grad_()
for method in ("auto", "gram", "residual"):
    def compute_loss(x, dictionary):
        return pursue(x, dictionary, 3, method=method, check=False)[1].square().mean()
    found = []
    for function in (compute_loss, torch.compile(compute_loss, backend="aot_eager")):
        loss = function(x, dictionary)
        found.append((loss.detach(), torch.autograd.grad(loss, dictionary)[0]))
    for expected, got in zip(*found, strict=True):
        torch.testing.assert_close(got, expected)
"""


def test_a_compiled_training_step_is_the_same(python: Path) -> None:
    """`auto` keeps away from loops that cannot be traced. In a process of its own: no type checks at run time there."""
    ended = subprocess.run([python, "-c", COMPILED], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
