"""Laws of matching pursuit: the fast forms are the reference, forward and backward."""

import itertools
from typing import get_args

import pytest
import torch
from covering import cover
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from thresher.train.codes import Codes, count_active, densify, mark_fired, merge_repeats, pack
from thresher.train.kernels import Method, Sign, choose_method, pursue, sparse_decode, sparse_encode
from thresher.train.kernels.forms import argmax_first, compute_gram

SHAPES = [(1, 1, 1, 1), (0, 5, 9, 3), (7, 33, 130, 5), (130, 7, 33, 9), (300, 16, 600, 12), (5, 64, 257, 4), (33, 3, 2100, 6)]
"""rows, d_in, d_sae, k."""
SIGNS: tuple[Sign, ...] = get_args(Sign)
FAST: tuple[Method, ...] = ("residual", "gram", "auto")


def draw(rows: int, d_in: int, d_sae: int, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, d_in, generator=generator, dtype=torch.float64)
    atoms = torch.randn(d_sae, d_in, generator=generator, dtype=torch.float64)
    return x.to(dtype).requires_grad_(), functional.normalize(atoms, dim=1).to(dtype).requires_grad_()


@pytest.mark.parametrize(("shape", "sign", "method"), cover(SHAPES, SIGNS, FAST), ids=str)
def test_fast_forms_equal_the_reference_forward_and_backward(
    shape: tuple[int, int, int, int], sign: Sign, method: Method
) -> None:
    """Also for rows that stop early and for picks without repeats; any use of values and residual."""
    rows, d_in, d_sae, k = shape
    x, dictionary = draw(rows, d_in, d_sae)
    for residual_tol, reselect in itertools.product((None, 0.5), (True, False)):
        steps = k if reselect else min(k, d_sae)
        a, b = torch.randn(rows, steps, dtype=torch.float64), torch.randn(rows, d_in, dtype=torch.float64)
        found = []
        for form in ("reference", method):
            codes, residual = pursue(x, dictionary, steps, residual_tol=residual_tol, sign=sign, reselect=reselect, method=form)
            scalar = (codes.values.square() * a).sum() + (residual**3 * b).sum() + (codes.values.sum(0) ** 2).sum()
            found.append((codes.indices, codes.values, residual, *torch.autograd.grad(scalar, [x, dictionary])))
        for expected, got in zip(*found, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("method", ["residual", "gram"])
@pytest.mark.parametrize("sign", SIGNS)
def test_gradient_is_that_of_finite_differences_with_repeats_and_stops(sign: Sign, method: Method) -> None:
    """More steps than atoms force repeats; the tolerance stops some rows; atoms need not have unit norm."""
    x, dictionary = draw(4, 3, 5, seed=1)
    dictionary = (dictionary * 0.9).detach().requires_grad_()

    def function(x: Tensor, dictionary: Tensor) -> tuple[Tensor, Tensor]:
        codes, residual = pursue(x, dictionary, 7, residual_tol=0.4, sign=sign, method=method, check=False)
        return codes.values, residual

    codes, _ = pursue(x, dictionary, 7, residual_tol=0.4, sign=sign, method=method, check=False)
    assert (codes.values == 0).any()
    assert (count_active(codes) < (codes.values != 0).sum(1)).any()
    assert torch.autograd.gradcheck(function, (x, dictionary), eps=1e-7, atol=1e-5)


TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12}


@pytest.mark.parametrize(("shape", "method", "dtype"), cover(SHAPES, ["reference", *FAST], [*TOLERANCE]), ids=str)
def test_code_and_residual_add_up_to_the_row(shape: tuple[int, int, int, int], method: Method, dtype: torch.dtype) -> None:
    rows, d_in, d_sae, k = shape
    x, dictionary = draw(rows, d_in, d_sae, dtype=dtype)
    codes, residual = pursue(x, dictionary, k, method=method)
    torch.testing.assert_close(sparse_decode(codes, dictionary) + residual, x, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rows_are_pursued_in_float32(dtype: torch.dtype) -> None:
    x, dictionary = draw(20, 16, 40, dtype=dtype)
    codes, residual = pursue(x, dictionary, 4)
    expected, left = pursue(x.float(), dictionary.float(), 4, check=False)
    assert codes.values.dtype == residual.dtype == torch.float32
    assert torch.equal(codes.indices, expected.indices)
    assert torch.equal(residual, left)
    residual.square().sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == dtype


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(1, 9),
    d_in=st.integers(1, 12),
    d_sae=st.integers(1, 40),
    sign=st.sampled_from(SIGNS),
    method=st.sampled_from(("reference", "residual", "gram")),
)
def test_residual_norm_never_grows_and_the_residual_is_orthogonal_to_the_last_pick(
    seed: int, rows: int, d_in: int, d_sae: int, sign: Sign, method: Method
) -> None:
    x, dictionary = draw(rows, d_in, d_sae, seed=seed)
    before = x.norm(dim=1)
    for k in range(1, 7):
        codes, residual = pursue(x, dictionary, k, sign=sign, method=method)
        assert (residual.norm(dim=1) <= before + 1e-12).all()
        last = dictionary[codes.indices[:, -1]]
        is_going = codes.values[:, -1] != 0
        assert ((last * residual).sum(1)[is_going].abs() < 1e-12).all()
        before = residual.norm(dim=1)


def test_relu_codes_are_positive_and_abs_codes_take_the_largest_inner_product() -> None:
    x, dictionary = draw(200, 8, 6)
    assert (pursue(x, dictionary, 5)[0].values >= 0).all()
    codes, _ = pursue(x, dictionary, 1, sign="abs")
    assert torch.equal(codes.indices[:, 0], (x @ dictionary.T).abs().argmax(1))
    assert (codes.values < 0).any()


def test_a_row_that_no_atom_points_to_has_an_empty_code() -> None:
    dictionary = functional.normalize(torch.rand(5, 4), dim=1)
    x = -torch.rand(3, 4)
    codes, residual = pursue(x, dictionary, 3)
    assert torch.equal(residual, x)
    assert not codes.values.any()
    assert not codes.indices.any()
    zero, _ = pursue(torch.zeros(2, 4), dictionary, 3, sign="abs", residual_tol=0.1)
    assert not zero.values.any()


@pytest.mark.parametrize("sign", SIGNS)
@pytest.mark.parametrize("method", ["reference", "residual", "gram"])
def test_ties_go_to_the_lowest_index(method: Method, sign: Sign) -> None:
    """Atoms with four entries of one half and rows of small integers: inner products are exact and many are equal.

    Of any other numbers a matrix product may round equal atoms differently, by where in the matrix they stand.
    """
    generator = torch.Generator().manual_seed(0)
    for n in (4, 300, 1024):
        places = torch.rand(n, 8, generator=generator).topk(4, dim=1).indices
        halves = torch.randint(2, (n, 4), generator=generator).double() - 0.5
        dictionary = torch.zeros(n, 8, dtype=torch.float64).scatter_(1, places, halves).repeat(2, 1)
        x = torch.randint(-3, 4, (50, 8), generator=generator).double()
        codes, _ = pursue(x, dictionary, 3, method=method, sign=sign)
        residual = x
        for picks, value in zip(codes.indices.T, codes.values.T, strict=True):
            scores = residual @ dictionary.T
            best = (scores.abs() if sign == "abs" else scores).argmax(1)
            assert torch.equal(picks, torch.where(value != 0, best, 0))
            assert (best < n).all()
            residual = residual - value[:, None] * dictionary[picks]


@pytest.mark.parametrize("n", [1, 63, 64, 255, 256, 257, 300, 1024])
def test_argmax_first_is_argmax(n: int) -> None:
    scores = torch.randint(0, 5, (40, n)).float()
    assert torch.equal(argmax_first(scores), scores.argmax(1))


def test_no_repeats_when_atoms_may_not_be_picked_again() -> None:
    x, dictionary = draw(50, 4, 12)
    for method in ("reference", "residual", "gram"):
        codes, _ = pursue(x, dictionary, 12, sign="abs", reselect=False, method=method)
        assert torch.equal(count_active(codes), (codes.values != 0).sum(1))


def test_rows_that_reach_the_tolerance_stop_there() -> None:
    x, dictionary = draw(100, 6, 40)
    full, _ = pursue(x, dictionary, 20, sign="abs")
    codes, residual = pursue(x, dictionary, 20, sign="abs", residual_tol=0.3)
    assert (residual.norm(dim=1) <= 0.3 * x.norm(dim=1)).all()
    n_steps = (codes.values != 0).sum(1)
    assert (n_steps < 20).all()
    is_kept = torch.arange(20) < n_steps[:, None]
    assert torch.equal(codes.indices, torch.where(is_kept, full.indices, 0))
    # One step fewer would not have been enough.
    short = sparse_decode(
        Codes(codes.indices, torch.where(torch.arange(20) < n_steps[:, None] - 1, codes.values, 0)), dictionary
    )
    assert ((x - short).norm(dim=1) > 0.3 * x.norm(dim=1)).all()


@pytest.mark.parametrize("method", ["residual", "gram"])
def test_only_codes_residual_and_dictionary_are_saved_for_backward(method: Method) -> None:
    rows, d_in, d_sae, k = 64, 8, 512, 6
    x, dictionary = draw(rows, d_in, d_sae, dtype=torch.float32)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        codes, residual = pursue(x, dictionary, k, method=method)
        (codes.values.sum() + residual.square().sum()).backward()
    sizes = {tuple(tensor.shape) for tensor in saved}
    assert (d_sae, d_in) in sizes
    assert sum(tensor.numel() for tensor in saved) <= d_sae * d_in + 3 * rows * d_in + 2 * rows * k


@pytest.mark.parametrize("k", [0, -1])
def test_k_below_one_is_refused(k: int) -> None:
    x, dictionary = draw(2, 3, 4)
    with pytest.raises(ValueError, match=f"k={k}"):
        pursue(x, dictionary, k)


def test_more_picks_than_atoms_need_repeats() -> None:
    x, dictionary = draw(2, 3, 4)
    assert pursue(x, dictionary, 5)[0].indices.shape == (2, 5)
    with pytest.raises(ValueError, match="k=5"):
        pursue(x, dictionary, 5, reselect=False)


def choose(rows: int, d_in: int, d_sae: int, k: int, device: str = "cpu", **found: bool) -> Method:
    found = {"has_numba": False, "has_triton": False, "has_bf16": False} | found
    return choose_method(rows, d_in, d_sae, k, torch.float32, device, **found)


def test_the_automatic_choice_takes_a_gram_matrix_when_enough_rows_share_it() -> None:
    assert choose(1024, 512, 4096, 16) == "gram"
    assert choose(16, 512, 4096, 16) == "residual"
    assert choose(1024, 512, 4096, 1) == "residual"
    assert choose(10**6, 4096, 10**5, 64) == "residual"
    for device, more in itertools.product(("cpu", "cuda"), ({}, {"has_numba": True, "has_triton": True, "has_bf16": True})):
        chosen = [choose(2**i, 512, 4096, 16, device, **more) for i in range(20)]
        assert len(set(chosen)) == 2
        assert chosen == sorted(chosen, key=lambda method: method.endswith("residual") or method == "triton_certified")[::-1]


def test_the_automatic_choice_takes_compiled_methods_only_where_they_run() -> None:
    everything = {"has_numba": True, "has_triton": True, "has_bf16": True}
    assert choose(1024, 512, 4096, 16, **everything) == "numba_certified"
    assert choose(1024, 512, 4096, 16, has_numba=True) == "numba_gram"
    assert choose(8192, 512, 4096, 16, "cuda", **everything).startswith("triton")
    assert choose(8192, 512, 4096, 16, "cuda", has_numba=True) == "gram"
    for device in ("cpu", "cuda", "mps"):
        assert choose_method(1024, 512, 4096, 16, torch.float64, device, **everything) in ("gram", "residual")


def test_gram_of_a_large_dictionary_is_that_of_a_product() -> None:
    dictionary = functional.normalize(torch.randn(2500, 5, dtype=torch.float64), dim=1)
    torch.testing.assert_close(compute_gram(dictionary), dictionary @ dictionary.T, rtol=0, atol=1e-14)


@pytest.mark.parametrize(("rows", "d_in", "d_sae", "k"), [(0, 3, 4, 2), (1, 1, 1, 1), (9, 33, 7, 5), (700, 130, 40, 20)])
def test_sparse_products_and_their_gradients_are_those_of_dense_ones(rows: int, d_in: int, d_sae: int, k: int) -> None:
    x, dictionary = draw(rows, d_in, d_sae)
    indices = torch.randint(0, d_sae, (rows, k))
    values = torch.randn(rows, k, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(rows, d_in, dtype=torch.float64)
    dense = (densify(Codes(indices, values), d_sae) @ dictionary, (x @ dictionary.T).gather(1, indices))
    sparse = (sparse_decode(Codes(indices, values), dictionary), sparse_encode(x, dictionary, indices))
    for expected, got in zip(dense, sparse, strict=True):
        torch.testing.assert_close(got, expected)
    for sides, inputs in ((0, [values, dictionary]), (1, [x, dictionary])):
        scale = weight if sides == 0 else torch.randn(rows, k, dtype=torch.float64)
        expected = torch.autograd.grad((dense[sides] * scale).sum(), inputs)
        got = torch.autograd.grad((sparse[sides] * scale).sum(), inputs)
        for a, b in zip(expected, got, strict=True):
            torch.testing.assert_close(b, a)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("rows", "d_in", "d_sae", "k"), [(0, 3, 4, 2), (1, 1, 1, 1), (9, 33, 7, 5), (700, 130, 40, 20)])
def test_sparse_products_on_a_gpu_are_those_on_the_cpu_and_repeat_bit_for_bit(rows: int, d_in: int, d_sae: int, k: int) -> None:
    x, dictionary = draw(rows, d_in, d_sae, dtype=torch.float32)
    indices, values = torch.randint(0, d_sae, (rows, k)), torch.randn(rows, k, requires_grad=True)
    found = []
    for device in ("cpu", "cuda", "cuda"):
        given = [part.detach().to(device).requires_grad_() for part in (x, values, dictionary)]
        decoded = sparse_decode(Codes(indices.to(device), given[1]), given[2])
        encoded = sparse_encode(given[0], given[2], indices.to(device))
        gradients = torch.autograd.grad(decoded.square().sum() + encoded.square().sum(), given)
        found.append([part.cpu() for part in (decoded, encoded, *gradients)])
    for on_cpu, on_gpu, again in zip(*found, strict=True):
        torch.testing.assert_close(on_gpu, on_cpu, rtol=1e-4, atol=1e-3)
        assert torch.equal(on_gpu, again)


def test_codes_merge_count_and_mark_by_atom() -> None:
    codes = Codes(
        torch.tensor([[3, 1, 3, 0], [2, 2, 0, 0], [0, 4, 0, 0]]), torch.tensor([[1.0, 2, 3, 0], [1, -1, 0, 0], [5, 1, 0, 0]])
    )
    merged = merge_repeats(codes)
    assert torch.equal(densify(merged, 5), densify(codes, 5))
    assert torch.equal(densify(codes, 5), torch.tensor([[0.0, 2, 0, 4, 0], [0, 0, 0, 0, 0], [5, 0, 0, 0, 1]]))
    assert count_active(codes).tolist() == [2, 0, 2]
    assert mark_fired(codes, 5).tolist() == [True, True, True, True, True]
    assert (merged.indices[merged.values == 0] == 0).all()


def test_packing_keeps_the_positive_entries_largest_first() -> None:
    dense = torch.tensor([[0.0, 3, 0, 1], [0, 0, 0, 0], [2, 0, 0, 0]])
    assert [part.tolist() for part in pack(dense)] == [[[1, 3], [0, 0], [0, 0]], [[3, 1], [0, 0], [2, 0]]]
    assert pack(dense, 1).values.tolist() == [[3], [0], [2]]
    assert pack(dense[:0]).indices.shape == (0, 1)
