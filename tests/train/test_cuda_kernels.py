"""The Triton kernels against their definitions: on a GPU, or in Triton's interpreter (see `test_cuda_interpreter.py`)."""

import functools
import inspect
import itertools
import os
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from thresher.testing.pursuit import audit_pursuit
from thresher.train.kernels import Codes, Method, backward, pursue, sparse_decode
from thresher.train.kernels.forms import Picked
from thresher.train.kernels.prepared import Prepared
from thresher.train.kernels.reference import pursue_plainly
from thresher.train.kernels.rule import Rule, Sign

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if IS_INTERPRETED else "cuda"
pytestmark = [
    pytest.mark.skipif(not IS_INTERPRETED and not torch.cuda.is_available(), reason="needs a GPU or TRITON_INTERPRET=1")
]
pytest.importorskip("triton")
if IS_INTERPRETED or torch.cuda.is_available():
    from thresher.train.kernels.cuda import backward as cuda_backward
    from thresher.train.kernels.cuda import certified, engine, gram, ops, plan, products, segments

ERROR_AT_MOST = 1e-6
"""Of what `audit_pursuit` finds: the shortfall of a pick against the best atom in float64 and the other errors."""
METHODS = ("bf16", "tf32", "gram fp16", "gram fp32", "gram fp16 in memory", "gram fp16 anew")
SHAPES = ((1, 1, 1, 1), (1, 130, 3, 9), (7, 48, 300, 2), (9, 5, 130, 1), (2, 130, 130, 3), (33, 1, 3, 2))
"""row, d_in, d_sae, k."""
RULES: tuple[tuple[Sign, bool, float | None], ...] = (
    ("relu", False, None),
    ("signed", True, 0.5),
    ("signed", False, None),
    ("abs", True, None),
    ("abs", False, 0.5),
)


@pytest.fixture(autouse=True, scope="module")
def remembered_names() -> Iterator[None]:
    """Triton's interpreter looks through its whole language at each call, which takes longer than what is computed there."""
    if not IS_INTERPRETED:
        yield
        return
    from triton.language import core
    from triton.runtime import interpreter

    @functools.cache
    def find_names(package: Any) -> list[str]:
        return [name for name, member in inspect.getmembers(package) if core.is_builtin(member)]

    def patch(package: Any, builder: Any, scope: Any) -> None:
        for name in find_names(package):
            if core.is_builtin(member := getattr(package, name)):
                interpreter._patch_attr(package, name, member, builder, scope)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(interpreter, "_patch_builtin", patch)
        yield


def cover(*factors: Sequence[Any]) -> list[tuple[Any, ...]]:
    """All combinations on a GPU; in the interpreter, which takes long, every second one, so that all values are there."""
    places = itertools.product(*(range(len(factor)) for factor in factors))
    kept = [at for at in places if not IS_INTERPRETED or sum(at) % 2 == 0]
    return [tuple(factor[place] for factor, place in zip(factors, at, strict=True)) for at in kept]


def draw(rows: int, d_in: int, d_sae: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    dictionary = functional.normalize(torch.randn(d_sae, d_in, generator=generator), dim=1)
    return torch.randn(rows, d_in, generator=generator).to(DEVICE), dictionary.to(DEVICE)


def run(method: str, x: Tensor, dictionary: Tensor, rule: Rule) -> Picked:
    """Codes and residual by one of METHODS."""
    if not method.startswith("gram"):
        return engine.pursue_certified(x, engine.prepare_certified(dictionary, precision=method), rule)
    prepared: Prepared = engine.prepare_gram(dictionary, stored="fp32" if "fp32" in method else "fp16")
    parts = (prepared.gram, prepared.gram_error, prepared.low, prepared.low_error)
    if "in memory" in method:
        return gram.pursue_by_gram(x, dictionary, *parts, rule, plan=plan.GramPlan(32, 4, in_registers=False), refresh_at=2)
    if "anew" in method:
        return gram.pursue_by_gram(x, dictionary, *parts, rule, refresh_at=0)
    return engine.pursue_gram(x, prepared, rule)


def check(picked: Picked, x: Tensor, dictionary: Tensor, rule: Rule) -> None:
    """Hold picks, values, residual, padding and stops to float64 along the path taken."""
    indices, values, residual = picked
    terms = {"sign": rule.sign, "reselect": rule.reselect, "residual_tol": rule.residual_tol}
    found = audit_pursuit(x, dictionary, Codes(indices, values), residual, **terms)
    assert max(found.gap, found.value_error, found.residual_error, found.stop_gap) <= ERROR_AT_MOST, found
    assert found.n_late == found.n_misplaced == 0, found


@pytest.mark.parametrize(("method", "shape"), cover(METHODS, SHAPES), ids=str)
def test_picks_are_the_best_atoms_in_float64(method: str, shape: tuple[int, int, int, int]) -> None:
    rows, d_in, d_sae, k = shape
    x, dictionary = draw(rows, d_in, d_sae)
    rule = Rule(k, None, "relu", True)
    check(run(method, x, dictionary, rule), x, dictionary, rule)


@pytest.mark.parametrize(("method", "terms"), cover(METHODS, RULES), ids=str)
def test_every_rule_picks_the_best_atoms(method: str, terms: tuple[Sign, bool, float | None]) -> None:
    sign, reselect, residual_tol = terms
    x, dictionary = draw(4, 12, 40)
    rule = Rule(4, residual_tol, sign, reselect)
    picked = run(method, x, dictionary, rule)
    check(picked, x, dictionary, rule)
    if not reselect:
        used = torch.where(picked[1] != 0, picked[0], -1 - torch.arange(rule.k, device=DEVICE))
        assert all(len(set(row)) == rule.k for row in used.tolist())


@pytest.mark.parametrize("method", METHODS)
def test_atoms_that_low_precision_cannot_tell_apart_are_told_apart(method: str) -> None:
    x, dictionary = draw(4, 24, 12, seed=1)
    near = functional.normalize(dictionary.repeat(6, 1) + 2e-4 * draw(1, 24, 72, seed=2)[1], dim=1)
    rule = Rule(3, None, "relu", True)
    picked = run(method, x, near, rule)
    check(picked, x, near, rule)
    expected, _ = pursue_plainly(x.double(), near.double(), rule)
    assert torch.equal(picked[0], expected.indices)
    rounded, _ = pursue_plainly(x.bfloat16().double(), near.bfloat16().double(), rule)
    assert not torch.equal(rounded.indices, expected.indices)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("reselect", [True, False])
def test_ties_go_to_the_lowest_index(method: str, reselect: bool) -> None:
    x, dictionary = draw(3, 16, 9)
    rule = Rule(3, None, "relu", reselect)
    indices, values, _ = run(method, x, dictionary.repeat(8, 1), rule)
    first, _, _ = run(method, x, dictionary, rule._replace(reselect=True))
    assert torch.equal(indices[:, 0], first[:, 0])
    if not reselect:
        # The twins of what was taken have nothing left to offer but rounding.
        used = torch.where(values != 0, indices, -1 - torch.arange(rule.k, device=DEVICE))
        assert all(len(set(row)) == rule.k for row in used.tolist())


@pytest.mark.parametrize("method", METHODS)
def test_zero_rows_give_nothing_and_norms_never_grow(method: str) -> None:
    x, dictionary = draw(6, 4, 20)
    x[2] = 0
    x[3] *= 1e-12
    x[4] *= 1e12
    rule = Rule(7, None, "signed", True)
    indices, values, residual = run(method, x, dictionary, rule)
    assert (indices[2] == 0).all()
    assert (values[2] == 0).all()
    assert (residual.norm(dim=1) <= x.norm(dim=1)).all()
    rest = [0, 1, 3, 5]
    assert (residual[rest].norm(dim=1) < 0.5 * x[rest].norm(dim=1)).all()


def test_nan_stops_a_row_and_spares_the_others() -> None:
    x, dictionary = draw(5, 8, 40)
    x[1, 3] = torch.nan
    rule = Rule(3, None, "relu", True)
    for method in ("bf16", "gram fp16"):
        indices, values, _ = run(method, x, dictionary, rule)
        clean, kept, _ = run(method, x[[0, 2, 3, 4]], dictionary, rule)
        assert torch.equal(indices[[0, 2, 3, 4]], clean)
        assert torch.equal(values[[0, 2, 3, 4]], kept)
        assert ((indices >= 0) & (indices < 40)).all()


@pytest.mark.parametrize(
    ("shape", "sides", "at_once"),
    cover([(0, 3, 4, 2), (1, 1, 1, 1), (7, 48, 300, 6), (17, 13, 5, 5)], ["values", "residual", "both"], [2**26, 500]),
    ids=str,
)
def test_gradients_are_those_of_the_plain_backward(shape: tuple[int, int, int, int], sides: str, at_once: int) -> None:
    rows, d_in, d_sae, k = shape
    x, dictionary = draw(rows, d_in, d_sae)
    codes, residual = pursue_plainly(x, dictionary, Rule(k, 0.3, "relu", True))
    for_values = None if sides == "residual" else torch.randn(rows, k, device=DEVICE)
    for_residual = None if sides == "values" else torch.randn(rows, d_in, device=DEVICE)
    given = (codes.indices, codes.values, residual, dictionary, for_values, for_residual)
    exact = [part.double() if part is not None and part.is_floating_point() else part for part in given]
    expected = backward.step_back(*exact, needs_dictionary=True)
    for_x, for_dictionary = cuda_backward.step_back(*given, needs_dictionary=True, pairs_at_once=at_once)
    torch.testing.assert_close(for_x.double(), expected[0], rtol=0, atol=3e-6)
    torch.testing.assert_close(for_dictionary.double(), expected[1], rtol=0, atol=1e-4 if d_sae < 10 else 1e-5)
    only_x, none = engine.step_back(*given, needs_dictionary=False)
    assert none is None
    torch.testing.assert_close(only_x, for_x)


def test_gradients_of_hot_atoms_are_the_same_bits_every_time() -> None:
    rows, k, d_in = 150, 3, 6
    hot = torch.zeros(rows, k, dtype=torch.int64, device=DEVICE)
    hot[:, 1] = torch.arange(rows) // 70
    hot[::7, 2] = 3
    values = torch.randn(rows, k, device=DEVICE)
    values[::5] = 0
    x, _ = draw(rows, d_in, 1)
    found = products.scatter_rows(values, hot, x, 5)
    expected = torch.zeros(5, d_in, dtype=torch.float64, device=DEVICE)
    expected.index_add_(0, hot.flatten(), (values[:, :, None] * x[:, None]).double().flatten(0, 1))
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-5)
    assert torch.equal(found, products.scatter_rows(values, hot, x, 5))
    assert (found[4] == 0).all()


def test_the_order_of_picks_is_by_chunk_then_atom_then_position() -> None:
    indices = torch.tensor([[2, 0], [1, 2], [0, 0], [1, 1]], device=DEVICE)
    used = torch.tensor([[True, True], [True, True], [True, False], [True, True]], device=DEVICE)
    order, atoms = segments.sort_by_atom(indices, used, 3, 2)
    assert order.tolist() == [1, 2, 0, 3, 4, 6, 7, 5]
    assert atoms.tolist() == [0, 1, 2, 2, 0, 1, 1, 3]


@pytest.mark.parametrize("shape", [(0, 3, 4, 2), (1, 1, 1, 1), (9, 33, 7, 5), (33, 130, 40, 3)], ids=str)
def test_sparse_products_are_those_of_torch(shape: tuple[int, int, int, int]) -> None:
    rows, d_in, d_sae, k = shape
    x, dictionary = draw(rows, d_in, d_sae)
    indices = torch.randint(0, d_sae, (rows, k), device=DEVICE)
    values = torch.randn(rows, k, device=DEVICE)
    dense = torch.zeros(rows, d_sae, dtype=torch.float64, device=DEVICE).scatter_add(1, indices, values.double())
    close = {"rtol": 0, "atol": 1e-5}
    torch.testing.assert_close(ops.sum_atoms(values, indices, dictionary).double(), dense @ dictionary.double(), **close)
    torch.testing.assert_close(ops.dot_atoms(x, dictionary, indices), (x @ dictionary.T).gather(1, indices), **close)
    torch.testing.assert_close(ops.scatter_rows(values, indices, x, d_sae).double(), dense.T @ x.double(), **close)


def test_the_bound_on_rounding_covers_every_entry_of_the_gram_matrix() -> None:
    _, dictionary = draw(1, 20, 50)
    prepared = engine.prepare_gram(dictionary)
    low = prepared.low.double()
    rounding = (prepared.gram.double() - low @ low.T).abs().fill_diagonal_(0)
    assert (rounding.amax(1) <= prepared.gram_error + 1e-6).all()
    assert torch.equal(prepared.gram, prepared.gram.T)
    assert (prepared.gram_error > 0).all()
    exact = (dictionary - prepared.low.float()).norm(dim=1)
    torch.testing.assert_close(prepared.low_error, exact)


def test_rounding_to_tf32_keeps_ten_bits_of_mantissa() -> None:
    x = torch.randn(1000)
    rounded = certified.round_to_tf32(x)
    assert (rounded.view(torch.int32) & 0x1FFF == 0).all()
    assert ((rounded - x).abs() <= x.abs() * 2.0**-11).all()


def test_operators_declare_what_they_return() -> None:
    x, dictionary = draw(3, 8, 20)
    prepared = engine.prepare_gram(dictionary)
    low, low_error = prepared.low, prepared.low_error
    rule = (2, None, "relu", True)
    indices, values, residual = ops.pursue_certified(x, dictionary, low, low_error, *rule)
    checked = ("test_schema", "test_faketensor")
    for op, given in (
        (ops.correlate_atoms, (low, "fp16")),
        (ops.pursue_certified, (x, dictionary, low, low_error, *rule)),
        (ops.pursue_gram, (x, dictionary, prepared.gram, prepared.gram_error, low, low_error, *rule)),
        (ops.step_back, (indices, values, residual, dictionary, values, residual, True)),
        (ops.step_back, (indices, values, residual, dictionary, None, residual, False)),
        (ops.sum_atoms, (values, indices, dictionary)),
        (ops.dot_atoms, (x, dictionary, indices)),
        (ops.scatter_rows, (values, indices, x, 20)),
    ):
        torch.library.opcheck(op, given, test_utils=checked)


@pytest.mark.parametrize("method", ["triton_certified", "triton_gram"])
def test_a_compiled_training_step_is_the_same_step(method: Method) -> None:
    if hasattr(pursue, "__wrapped__"):
        pytest.skip("jaxtyping's hook is on, which torch.compile cannot trace")
    x, dictionary = (part.requires_grad_() for part in draw(2, 8, 20))

    def compute_loss(x: Tensor, dictionary: Tensor) -> Tensor:
        codes, residual = pursue(x, dictionary, 3, method=method, check=False)
        return residual.square().mean() + codes.values.sum()

    compiled = torch.compile(compute_loss, fullgraph=True, backend="aot_eager")
    found = torch.autograd.grad(compiled(x, dictionary), [x, dictionary])
    for got, expected in zip(found, torch.autograd.grad(compute_loss(x, dictionary), [x, dictionary]), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("method", ["triton_certified", "triton_gram"])
def test_a_pursuit_and_its_gradients_are_those_of_the_reference(method: Method) -> None:
    x, dictionary = (part.requires_grad_() for part in draw(3, 12, 30))
    weight = torch.linspace(-1, 1, 12, device=DEVICE)
    found: list[tuple[Tensor, ...]] = []
    for name, cast in ((method, torch.float32), ("reference", torch.float64)):
        codes, residual = pursue(x.to(cast), dictionary.to(cast), 3, residual_tol=0.1, method=name)
        scalar = (
            (residual**3 * weight.to(cast)).sum()
            + codes.values.square().sum()
            + sparse_decode(codes, dictionary.to(cast)).sum()
        )
        found.append((codes.indices, codes.values, residual, *torch.autograd.grad(scalar, [x, dictionary])))
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got.double(), expected.double(), rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("method", ["triton_certified", "triton_gram"])
def test_a_step_is_captured_in_a_graph_and_waits_for_nothing(method: Method) -> None:
    x, dictionary = (part.requires_grad_() for part in draw(64, 48, 300))

    def step() -> list[Tensor]:
        codes, residual = pursue(x, dictionary, 5, method=method, check=False)
        scalar = residual.square().sum() + codes.values.sum()
        return [codes.values, residual, *torch.autograd.grad(scalar, [x, dictionary])]

    step()
    torch.cuda.set_sync_debug_mode("error")
    step()
    torch.cuda.set_sync_debug_mode("default")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        x.copy_(x.flip(0))
    graph.replay()
    for got, expected in zip(captured, step(), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("method", ["bf16", "gram fp16"])
def test_wrong_types_and_missing_parts_are_refused(method: str) -> None:
    x, dictionary = draw(2, 3, 4)
    with pytest.raises(ValueError, match="float64"):
        run(method, x.double(), dictionary, Rule(1, None, "relu", True))
    with pytest.raises(ValueError, match="needs what prepare"):
        pursue = engine.pursue_gram if method == "gram fp16" else engine.pursue_certified
        pursue(x, Prepared("triton_gram", dictionary), Rule(1, None, "relu", True))
