"""Laws of orthogonal matching pursuit and of the dictionary that is trained by it."""

import pytest
import torch
from covering import cover
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import orthogonal_mp_gram
from torch import Tensor
from torch.nn import functional

from thresher.errors import ConfigError
from thresher.testing.coder import CoderSuite
from thresher.train.arch import OrthogonalPursuit, build
from thresher.train.codes import count_active, densify
from thresher.train.kernels import Codes, Sign, orthogonal_pursue, pursue, sparse_decode
from thresher.train.protocol import SAE

SHAPES = [(1, 1, 1, 1), (0, 5, 9, 3), (7, 33, 130, 5), (130, 7, 33, 9), (300, 16, 600, 12), (5, 64, 257, 4), (33, 3, 210, 6)]
"""rows, d_in, d_sae, k; twice k is more than d_in."""
SIGNS: tuple[Sign, ...] = ("relu", "signed", "abs")


class TestOrthogonalPursuit(CoderSuite):
    fvu_at_most = 0.15

    def build(self, d_in: int, seed: int) -> SAE:
        return build(OrthogonalPursuit(d_sae=40, k=4), d_in, seed)


class TestOrthogonalPursuitThatStopsEarly(CoderSuite):
    fvu_at_most = 0.2

    def build(self, d_in: int, seed: int) -> SAE:
        return build(OrthogonalPursuit(d_sae=40, k=6, sign="abs", residual_tol=0.3, bias=False), d_in, seed)


def draw(rows: int, d_in: int, d_sae: int, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, d_in, generator=generator, dtype=torch.float64)
    atoms = torch.randn(d_sae, d_in, generator=generator, dtype=torch.float64)
    return x.to(dtype).requires_grad_(), functional.normalize(atoms, dim=1).to(dtype).requires_grad_()


@pytest.mark.parametrize(("shape", "sign", "residual_tol"), cover(SHAPES, SIGNS, [None, 0.4]), ids=str)
def test_the_fast_form_is_the_reference_forward_and_backward(
    shape: tuple[int, int, int, int], sign: Sign, residual_tol: float | None
) -> None:
    """Also for rows of zeros, rows that stop, and more steps than dimensions; any use of values and residual."""
    rows, d_in, d_sae, k = shape
    x, dictionary = draw(rows, d_in, d_sae)
    with torch.no_grad():
        x[:1] = 0
    a, b = torch.randn(rows, k, dtype=torch.float64), torch.randn(rows, d_in, dtype=torch.float64)
    found = []
    for method in ("reference", "residual"):
        codes, residual = orthogonal_pursue(x, dictionary, k, residual_tol=residual_tol, sign=sign, method=method)
        scalar = (codes.values.square() * a).sum() + (residual**3 * b).sum()
        found.append((codes.indices, codes.values, residual, *torch.autograd.grad(scalar, [x, dictionary])))
    for expected, got in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-7, atol=1e-8)


def test_gradient_is_that_of_finite_differences_with_stops() -> None:
    """More steps than dimensions stop every row, the tolerance stops some before; atoms need not have unit norm."""
    x, dictionary = draw(4, 3, 7, seed=1)
    dictionary = (dictionary * 0.9).detach().requires_grad_()

    def function(x: Tensor, dictionary: Tensor) -> tuple[Tensor, Tensor]:
        codes, residual = orthogonal_pursue(x, dictionary, 5, residual_tol=0.3, sign="abs", check=False)
        return codes.values, residual

    assert len({int((row != 0).sum()) for row in function(x, dictionary)[0]}) > 1
    assert torch.autograd.gradcheck(function, (x, dictionary), eps=1e-7, atol=1e-5)


@pytest.mark.parametrize(("d_in", "d_sae", "k"), [(16, 60, 5), (33, 130, 12), (64, 70, 30)])
def test_codes_are_those_of_scikit_learn(d_in: int, d_sae: int, k: int) -> None:
    """It picks by absolute value, the first among equals, as `abs` does here."""
    x, dictionary = (part.detach() for part in draw(40, d_in, d_sae))
    expected = orthogonal_mp_gram((dictionary @ dictionary.T).numpy(), (dictionary @ x.T).numpy(), n_nonzero_coefs=k)
    codes, _ = orthogonal_pursue(x, dictionary, k, sign="abs")
    torch.testing.assert_close(densify(codes, d_sae), torch.from_numpy(expected).T, rtol=1e-9, atol=1e-9)


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(1, 9),
    d_in=st.integers(1, 12),
    d_sae=st.integers(1, 40),
    sign=st.sampled_from(SIGNS),
    method=st.sampled_from(("reference", "residual")),
    dtype=st.sampled_from((torch.float32, torch.float64)),
)
def test_the_residual_is_orthogonal_to_all_picks_and_never_grows(
    seed: int, rows: int, d_in: int, d_sae: int, sign: Sign, method: str, dtype: torch.dtype
) -> None:
    x, dictionary = (part.detach() for part in draw(rows, d_in, d_sae, seed=seed, dtype=dtype))
    allowed = {torch.float32: 2e-5, torch.float64: 1e-10}[dtype] * x.norm(dim=1)
    before = x.norm(dim=1)
    for k in range(1, min(7, d_sae) + 1):
        codes, residual = orthogonal_pursue(x, dictionary, k, sign=sign, method=method)
        products = (dictionary[codes.indices] * residual[:, None]).sum(2) * (codes.values != 0)
        assert (products.abs().amax(1) <= allowed).all()
        assert ((residual.norm(dim=1) - before) <= allowed).all()
        assert torch.equal(count_active(codes), (codes.values != 0).sum(1))
        before = residual.norm(dim=1)
        # A value of an ill-conditioned fit may be large, and its products with it.
        torch.testing.assert_close(sparse_decode(codes, dictionary) + residual, x, rtol=0, atol=1e3 * float(allowed.max()))


@pytest.mark.parametrize("method", ["reference", "residual"])
def test_a_copy_of_an_atom_is_never_picked_beside_it(method: str) -> None:
    """Every atom twice, more steps than dimensions: at most d_in picks, never both of a pair, and the row is explained."""
    x, atoms = (part.detach() for part in draw(60, 5, 20))
    codes, residual = orthogonal_pursue(x, torch.cat([atoms, atoms]), 12, sign="abs", method=method)
    assert (count_active(codes) <= 5).all()
    assert torch.equal(count_active(Codes(codes.indices % 20, codes.values)), count_active(codes))
    assert residual.norm() < 1e-12 * x.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", ["reference", "residual"])
def test_what_is_padding_is_exactly_zero(method: str, dtype: torch.dtype) -> None:
    """More steps than dimensions, copies of atoms, a row of zeros: never more picks than are independent."""
    x, dictionary = (tensor.detach() for tensor in draw(40, 16, 60, dtype=dtype))
    x[2] = 0
    for atoms, k, rank in ((dictionary, 60, 16), (dictionary[:5].repeat(2, 1), 10, 5)):
        codes, _ = orthogonal_pursue(x, atoms, k, sign="abs", method=method)
        assert int((codes.values != 0).sum(1).max()) <= rank
        assert not codes.indices[codes.values == 0].any()
        assert not codes.values[2].any()


def test_relu_rules_the_choice_and_not_the_fit() -> None:
    x, dictionary = (part.detach() for part in draw(200, 8, 12))
    codes, _ = orthogonal_pursue(x, dictionary, 6)
    assert torch.equal(codes.indices[:, 0], (x @ dictionary.T).argmax(1))
    assert (codes.values < 0).any()
    away = -torch.rand(3, 4)
    codes, residual = orthogonal_pursue(away, functional.normalize(torch.rand(5, 4), dim=1), 3)
    assert torch.equal(residual, away)
    assert not codes.values.any()
    assert not codes.indices.any()


def test_orthogonal_pursuit_explains_at_least_as_much_as_plain_pursuit() -> None:
    x, dictionary = (part.detach() for part in draw(100, 16, 60))
    plain, fitted = pursue(x, dictionary, 8, sign="abs")[1], orthogonal_pursue(x, dictionary, 8, sign="abs")[1]
    assert fitted.norm() < plain.norm()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rows_are_fitted_in_float32(dtype: torch.dtype) -> None:
    x, dictionary = draw(20, 16, 40, dtype=dtype)
    codes, residual = orthogonal_pursue(x, dictionary, 4)
    expected, left = orthogonal_pursue(x.float(), dictionary.float(), 4, check=False)
    assert codes.values.dtype == residual.dtype == torch.float32
    assert torch.equal(codes.indices, expected.indices)
    assert torch.equal(residual, left)


def test_only_codes_residual_and_dictionary_are_saved_for_orthogonal_backward() -> None:
    rows, d_in, d_sae, k = 64, 8, 512, 6
    x, dictionary = draw(rows, d_in, d_sae, dtype=torch.float32)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        codes, residual = orthogonal_pursue(x, dictionary, k)
        (codes.values.sum() + residual.square().sum()).backward()
    assert sum(tensor.numel() for tensor in saved) <= d_sae * d_in + 3 * rows * d_in + 2 * rows * k


def test_more_steps_than_atoms_and_other_methods_are_refused() -> None:
    x, dictionary = draw(2, 3, 4)
    with pytest.raises(ValueError, match="k=5"):
        orthogonal_pursue(x, dictionary, 5)
    with pytest.raises(ValueError, match="gram"):
        orthogonal_pursue(x, dictionary, 2, method="gram")
    with pytest.raises(ValueError, match="norm 1, found 2"):
        orthogonal_pursue(x, 2 * dictionary, 2)


@pytest.mark.parametrize(
    "fields",
    [{"d_sae": 8, "k": 9}, {"k": 0}, {"residual_tol": 1.0}, {"residual_tol": -0.1}],
)
def test_nonsense_of_an_orthogonal_pursuit_is_refused_with_its_value(fields: dict) -> None:
    with pytest.raises(ConfigError, match=r"=.*: "):
        OrthogonalPursuit(**fields)


def test_an_orthogonal_pursuit_is_set_to_a_wanted_l0() -> None:
    assert OrthogonalPursuit().with_l0(7.6) == OrthogonalPursuit(k=8)


def test_orthogonal_codes_of_more_steps_pick_those_of_fewer_first() -> None:
    sae, x = build(OrthogonalPursuit(d_sae=40, k=3), 16, 0), torch.randn(50, 16)
    few, many = sae.encode(x), sae.encode(x, 9)
    assert torch.equal(few.indices, many.indices[:, :3])
    assert not torch.equal(few.values, many.values[:, :3])
