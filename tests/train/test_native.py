"""Laws of the compiled CPU kernels: they are the reference, whatever the precision, the threads and the candidates."""

import itertools
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from covering import cover
from torch import Tensor
from torch.nn import functional

from thresher.testing.pursuit import audit_pursuit
from thresher.train.codes import Codes
from thresher.train.kernels import Sign, backward, prepare, pursue
from thresher.train.kernels.rule import Rule

pytest.importorskip("numba")
from thresher.train.kernels import native
from thresher.train.kernels.native import loops
from thresher.train.kernels.native.compiling import compiled
from thresher.train.kernels.native.forward import tabulate
from thresher.train.kernels.native.gram import compute_gram
from thresher.train.kernels.native.tables import State

SHAPES = [(1, 1, 1, 1), (0, 5, 9, 3), (7, 33, 130, 5), (130, 7, 33, 9), (3, 64, 257, 4), (33, 130, 1100, 6)]
"""rows, d_in, d_sae, k."""
SIGNS: tuple[Sign, ...] = get_args(Sign)
METHODS = ("numba_gram", "numba_certified")
DATA = ("gauss", "sparse", "coherent", "duplicated")


@pytest.fixture(autouse=True)
def keep_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def draw(kind: str, rows: int, d_in: int, d_sae: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rows and unit atoms: independent; rows of few atoms; those of clustered atoms, as after training; every atom twice."""
    generator = torch.Generator().manual_seed(seed)
    atoms = torch.randn(d_sae, d_in, generator=generator)
    if kind == "coherent":
        atoms = atoms[: -(-d_sae // 8)].repeat_interleave(8, 0)[:d_sae] + 0.5 * atoms
    if kind == "duplicated":
        atoms = atoms[: -(-d_sae // 2)].repeat(2, 1)[:d_sae]
    dictionary = functional.normalize(atoms, dim=1)
    if kind == "gauss":
        return torch.randn(rows, d_in, generator=generator), dictionary
    share = 1 / torch.arange(1, d_sae + 1)
    chosen = torch.multinomial(share.expand(rows, d_sae), min(8, d_sae), generator=generator)
    noise = torch.randn(rows, d_in, generator=generator) / d_in**0.5
    return (dictionary[chosen] * torch.rand(rows, chosen.shape[1], 1, generator=generator)).sum(1) + 0.1 * noise, dictionary


@pytest.mark.parametrize(("shape", "sign", "method"), cover(SHAPES, SIGNS, METHODS), ids=str)
def test_compiled_pursuit_is_the_reference_forward_and_backward(
    shape: tuple[int, int, int, int], sign: Sign, method: str
) -> None:
    rows, d_in, d_sae, k = shape
    for residual_tol, reselect in itertools.product((None, 0.6), (True, False)):
        x, dictionary = (tensor.requires_grad_() for tensor in draw("gauss", rows, d_in, d_sae))
        a, b = torch.randn(rows, k), torch.randn(rows, d_in)
        found = []
        for form, dtype in (("reference", torch.float64), (method, torch.float32)):
            leaves = x.to(dtype), dictionary.to(dtype)
            rule = {"residual_tol": residual_tol, "sign": sign, "reselect": reselect}
            codes, residual = pursue(*leaves, k, **rule, method=form, check=False)
            scalar = (codes.values.square() * a).sum() + (residual**3 * b).sum() + (codes.values.sum(0) ** 2).sum()
            gradients = torch.autograd.grad(scalar, [x, dictionary])
            found.append((codes.indices, codes.values.float(), residual.float(), *gradients))
        assert torch.equal(found[0][0], found[1][0])
        for expected, got in zip(*found, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kind", "sign", "method"), cover(DATA, SIGNS, METHODS))
def test_every_pick_is_greedy_in_float64_along_the_path_taken(kind: str, sign: Sign, method: str) -> None:
    x, dictionary = draw(kind, 96, 96, 1500)
    x[5] = 0
    for residual_tol, reselect in ((None, True), (0.3, False)):
        codes, residual = pursue(x, dictionary, 24, residual_tol=residual_tol, sign=sign, reselect=reselect, method=method)
        audit = audit_pursuit(x, dictionary, codes, residual, residual_tol=residual_tol, sign=sign, reselect=reselect)
        assert audit.gap < 1e-6
        assert max(audit.value_error, audit.residual_error, audit.stop_gap) < 1e-6
        assert audit.n_late == audit.n_misplaced == 0
        assert not codes.values[5].any()
        if kind == "duplicated" and reselect:
            assert int(codes.indices.max()) < 750


@pytest.mark.parametrize("sign", SIGNS)
@pytest.mark.parametrize("kind", DATA)
def test_certified_picks_are_those_of_exact_products_with_all_atoms_bit_for_bit(kind: str, sign: Sign) -> None:
    """No candidate allowed means products with all atoms at every step: any bound that fails would show here. Rows of
    extreme norm, zero rows, and far more steps than the rank, where the residual is rounding noise."""
    for rows, d_in, d_sae, k in ((40, 64, 700, 16), (9, 7, 300, 40)):
        x, dictionary = draw(kind, rows, d_in, d_sae, seed=1)
        x[:4] *= torch.tensor([0, 1e-14, 1e-5, 1e17])[:, None]
        prepared = native.prepare_certified(dictionary)
        for reselect in (True, False):
            rule = Rule(k, None, sign, reselect)
            found, counts = native.run_certified(x, prepared, rule, candidates_at_most=d_sae)
            expected, all_counts = native.run_certified(x, prepared, rule, candidates_at_most=0)
            few, few_counts = native.run_certified(x, prepared, rule, candidates_at_most=2)
            assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
            assert all(torch.equal(one, other) for one, other in zip(found, few, strict=True))
            assert counts[:, 1].sum() == 0
            assert all_counts[:, 0].sum() == 0
            n_steps = (found[1] != 0).sum(1)
            assert (all_counts[:, 1] >= n_steps).all()
            assert (few_counts.sum(1) >= n_steps).all()
            assert few_counts[:, 1].sum() > 0


@pytest.mark.parametrize(("rows", "d_in", "d_sae"), [(8, 96, 700), (40, 2, 700)])
@pytest.mark.parametrize("kind", DATA)
def test_the_error_bound_holds_for_every_score_at_every_step(kind: str, rows: int, d_in: int, d_sae: int) -> None:
    """Against float64, before and after a refresh, for rows of any scale, whatever is subtracted. In two dimensions the
    roundings of rows, atoms, scores and Gram matrix point the same way for some atom, so that no part of the bound is idle.
    """
    x, dictionary = draw(kind, rows, d_in, d_sae, seed=2)
    x *= torch.tensor([1, 1e-6, 1e6, 1]).repeat(rows // 4)[:, None]
    low = x.bfloat16()
    prepared = native.prepare_certified(dictionary)
    tables = tabulate(prepared, 1)
    assert prepared.low is not None
    low_scores = (low @ prepared.low.T).view(torch.int16).numpy()
    arrays = torch.empty(d_sae), torch.empty(-(-d_sae // loops.BLOCK)), torch.empty(d_in), torch.empty(d_in)
    state = State(*(array.numpy() for array in arrays), candidates=torch.empty(1, dtype=torch.int64).numpy())
    for row in range(rows):
        left, size = x[row].clone(), x[row].norm()
        drift = loops.open_row(tables, state, low.view(torch.int16).numpy()[row], low_scores[row], False)
        for step in range(12):
            if step == 4:
                drift = loops.refresh(tables, state, left.numpy(), False)
            exact = dictionary.double() @ left.double()
            error = (torch.from_numpy(state.scores).double() - exact).abs().max()
            bound = loops.bound_error(tables, state, drift, left.numpy())
            assert error <= bound <= 0.05 * size
            assert torch.from_numpy(state.peaks).max() == torch.from_numpy(state.scores).max()
            pick = int(exact.argmax()) if step % 3 == 1 else (60 * step + 11 * row) % d_sae
            value = (dictionary[pick] * left).sum() if step % 3 == 1 else size / 2
            drift += loops.advance(tables, state, left.numpy(), pick, np.float32(value), False)
            left -= value * dictionary[pick]


@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize(("d_in", "d_sae"), [(1, 1), (33, 130), (200, 700)])
def test_prepared_errors_bound_what_low_precision_loses(kind: str, d_in: int, d_sae: int) -> None:
    _, dictionary = draw(kind, 1, d_in, d_sae)
    prepared = native.prepare_certified(dictionary)
    assert prepared.gram is not None
    assert prepared.low is not None
    assert prepared.low_error is not None
    assert prepared.gram_error is not None
    low, gram = prepared.low.double(), prepared.gram.double()
    torch.testing.assert_close(prepared.low_error.double(), (dictionary - low).norm(dim=1), rtol=1e-5, atol=1e-9)
    assert torch.equal(gram, gram.T)
    lost = (gram - low @ low.T).abs().fill_diagonal_(0).amax(1)
    assert (lost <= prepared.gram_error + d_in * 2.0**-24).all()
    tables = tabulate(prepared, 1)
    assert max(dictionary.norm(dim=1).max(), low.norm(dim=1).max()) <= tables.norm < 1.02


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("d_sae", [1, 31, 33, 512, 1100])
def test_gram_matrix_is_symmetric_and_written_into_memory_given(d_sae: int, dtype: torch.dtype) -> None:
    dictionary = draw("gauss", 1, 40, d_sae)[1].to(dtype)
    gram = compute_gram(dictionary)
    assert torch.equal(gram, gram.T)
    exact = dictionary.double() @ dictionary.double().T
    torch.testing.assert_close(gram.double(), exact, rtol=2 * torch.finfo(dtype).eps, atol=1e-5)
    older = torch.zeros_like(gram)
    assert compute_gram(dictionary, older).data_ptr() == older.data_ptr()
    assert torch.equal(older, gram)


@pytest.mark.parametrize("method", METHODS)
def test_memory_of_an_older_preparation_holds_the_new_one(method: str) -> None:
    older = prepare(draw("gauss", 1, 40, 700)[1], method)
    dictionary = draw("coherent", 1, 40, 700, seed=3)[1]
    expected = prepare(dictionary, method)
    found = prepare(dictionary, method, reuse=older)
    assert found.gram is not None
    assert older.gram is not None
    assert found.gram.data_ptr() == older.gram.data_ptr()
    for one, other in zip(found[1:], expected[1:], strict=True):
        assert one is other is None or torch.equal(one, other)


@pytest.mark.parametrize(("rows", "d_in", "d_sae", "k"), SHAPES)
def test_step_back_is_that_of_torch(rows: int, d_in: int, d_sae: int, k: int) -> None:
    """Padded steps, repeats, any subset of the gradients; strided gradients too."""
    x, dictionary = draw("sparse", rows, d_in, d_sae)
    codes, residual = pursue(x, dictionary, k, residual_tol=0.5, method="gram")
    for_values, for_residual = torch.randn(k, rows).T, torch.randn(d_in, rows).T
    for gradients in ((for_values, for_residual), (None, for_residual), (for_values, None)):
        for needs_dictionary in (True, False):
            arguments = (codes.indices, codes.values, residual, dictionary, *gradients)
            expected = backward.step_back(*arguments, needs_dictionary=needs_dictionary)
            found = native.step_back(*arguments, needs_dictionary=needs_dictionary)
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("method", METHODS)
def test_the_number_of_threads_changes_no_bit(method: str) -> None:
    results: list[tuple[Tensor, ...]] = []
    for n_threads in (1, 2, 3, 5):
        torch.set_num_threads(n_threads)
        x, dictionary = (tensor.requires_grad_() for tensor in draw("coherent", 71, 200, 700))
        codes, residual = pursue(x, dictionary, 12, method=method)
        gradients = torch.autograd.grad(codes.values.sum() + residual.square().sum(), [x, dictionary])
        results.append((*codes, residual, *gradients))
    assert all(torch.equal(one, other) for found in results[1:] for one, other in zip(found, results[0], strict=True))


def test_no_thread_outlives_a_call_and_calls_may_overlap() -> None:
    """Nothing is left behind that a forked process would miss."""
    torch.set_num_threads(3)
    x, dictionary = draw("sparse", 90, 40, 300)
    expected = pursue(x, dictionary, 6, method="numba_certified")
    before = threading.active_count()
    found: list[tuple[Codes, Tensor]] = []
    callers = [
        threading.Thread(target=lambda: found.append(pursue(x, dictionary, 6, method="numba_certified"))) for _ in range(4)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert threading.active_count() == before
    assert len(found) == 4
    assert all(torch.equal(residual, expected[1]) for _, residual in found)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sign", SIGNS)
def test_unchecked_nan_gives_nan_or_nothing_but_picks_that_exist(sign: Sign, method: str) -> None:
    x, dictionary = draw("gauss", 20, 30, 300)
    clean = pursue(x, dictionary, 5, sign=sign, method=method)
    x[3], x[4, 7], x[5, 1] = torch.nan, torch.inf, -torch.inf
    codes, residual = pursue(x, dictionary, 5, sign=sign, method=method, check=False)
    assert ((codes.indices >= 0) & (codes.indices < 300)).all()
    assert torch.equal(residual[6:], clean[1][6:])


def test_a_method_that_lacks_numba_says_what_to_install(python: Path) -> None:
    code = """
import sys
sys.modules["numba"] = None
import torch
from thresher.train.kernels import pursue
x, dictionary = torch.ones(2, 3), torch.eye(3)
assert pursue(x, dictionary, 2)[0].values.shape == (2, 2)
pursue(x, dictionary, 2, method="numba_certified")
"""
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    assert "ImportError: method='numba_certified' needs numba: pip install 'thresher[native]'" in done.stderr


def test_loops_compile_where_no_cache_can_be_written() -> None:
    """A function without a file cannot be cached, just as one whose folders are all read-only."""
    names: dict[str, object] = {}
    exec("def double(x):\n    return 2 * x", names)
    assert compiled(names["double"])(21) == 42
