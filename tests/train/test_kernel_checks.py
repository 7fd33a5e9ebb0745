"""Laws of what a pursuit refuses, of what is prepared for it, and of empty batches."""

import subprocess
import sys
from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from thresher.train.kernels import Method, has_numba, orthogonal_pursue, prepare, pursue, pursue_nested
from thresher.train.kernels.check import check_shapes

METHODS: tuple[Method, ...] = ("auto", "reference", "residual", "gram") + (
    ("numba_gram", "numba_certified") if has_numba() else ()
)
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
        check_shapes(x[:, :7], dictionary, 2)
    with pytest.raises(ValueError, match=r"x holds torch\.int64"):
        check_shapes(x.long(), dictionary, 2)


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


def test_a_compiled_training_step_is_the_same() -> None:
    """`auto` keeps away from loops that cannot be traced. In a process of its own: no type checks at run time there."""
    ended = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
