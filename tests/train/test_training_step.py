"""Laws of a training step: nothing waits for the device; gradients, dropout, revival and what is kept of a dictionary."""

import copy
import pickle
from typing import cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from thresher.testing.coder import CoderSuite
from thresher.train.arch import (
    Architecture,
    BatchTopK,
    JumpRelu,
    MatchingPursuit,
    Matryoshka,
    OrthogonalPursuit,
    Relu,
    TopK,
    build,
)
from thresher.train.arch.base import remove_radial_gradient
from thresher.train.arch.batch import WholeBatch, pick_directions
from thresher.train.arch.mp import MatchingPursuitSAE
from thresher.train.arch.reuse import LastPrepared
from thresher.train.arch.selection import find_topk, repair, screen_topk
from thresher.train.arch.topk import TopKSAE
from thresher.train.codes import densify, mark_fired
from thresher.train.kernels import Codes, Method, prepare, pursue
from thresher.train.loop import fit
from thresher.train.optimizer import OptimizerConfig, make_adam
from thresher.train.protocol import SAE

D_SAE = 40


def plant(n_rows: int, *, d_in: int = 16, seed: int = 0) -> Tensor:
    return torch.randn(n_rows, d_in, generator=torch.Generator().manual_seed(1000 + seed))


def make_pursuit(**fields: object) -> MatchingPursuitSAE:
    sae = build(MatchingPursuit(d_sae=D_SAE, k=3, **fields), 16, 0)
    assert isinstance(sae, MatchingPursuitSAE)
    return sae


class TestMatchingPursuitWithDropout(CoderSuite):
    fvu_at_most = 0.3

    def build(self, d_in: int, seed: int) -> SAE:
        return build(MatchingPursuit(d_sae=D_SAE, k=4, dropout=0.3), d_in, seed)

    def test_decoded_codes_are_the_reconstruction_of_the_loss(self) -> None:
        """Where all atoms take part: outside training."""
        _Evaluated().test_decoded_codes_are_the_reconstruction_of_the_loss()

    def test_fired_marks_the_atoms_of_the_codes(self) -> None:
        """Where all atoms take part: outside training."""
        _Evaluated().test_fired_marks_the_atoms_of_the_codes()


class _Evaluated(TestMatchingPursuitWithDropout):
    __test__ = False
    test_decoded_codes_are_the_reconstruction_of_the_loss = CoderSuite.test_decoded_codes_are_the_reconstruction_of_the_loss
    test_fired_marks_the_atoms_of_the_codes = CoderSuite.test_fired_marks_the_atoms_of_the_codes

    def build(self, d_in: int, seed: int) -> SAE:
        return cast(SAE, cast(nn.Module, super().build(d_in, seed)).eval())


class TestMatchingPursuitThatRedraws(CoderSuite):
    fvu_at_most = 0.15

    def build(self, d_in: int, seed: int) -> SAE:
        config = MatchingPursuit(d_sae=D_SAE, k=4, dead_after=500, redraw=5, revive=0.01, revive_when="batch")
        return build(config, d_in, seed)


class TestTopKSelectedInBfloat16(CoderSuite):
    def build(self, d_in: int, seed: int) -> SAE:
        return build(TopK(d_sae=D_SAE, k=4, selection="bf16", dead_after=300), d_in, seed)


@pytest.mark.parametrize(
    "config",
    [
        MatchingPursuit(d_sae=64, k=4, method="gram"),
        MatchingPursuit(d_sae=64, k=4, method="gram", dropout=0.3, gradient="raw", revive=0.1, redraw=4),
        MatchingPursuit(d_sae=64, k=4, method="residual", residual_tol=0.1, sign="abs", revive=0.1, revive_when="batch"),
        OrthogonalPursuit(d_sae=64, k=4, sign="abs", residual_tol=0.1),
        Relu(d_sae=64, l0=4.0),
        TopK(d_sae=64, k=4),
        TopK(d_sae=64, k=4, selection="bf16"),
        BatchTopK(d_sae=64, k=4.0),
        JumpRelu(d_sae=64, l0=4.0),
        Matryoshka(d_sae=64, k=4.0),
    ],
    ids=lambda config: f"{config.kind}-{getattr(config, 'method', getattr(config, 'selection', ''))}",
)
def test_training_never_waits_for_a_device(config: Architecture) -> None:
    """On the meta device numbers do not exist: whoever asks for one (`item`, `nonzero`, `if tensor`, `.cpu()`) fails."""
    sae = build(config, 16, 0)
    module = cast(nn.Module, sae).to("meta")
    batches = [torch.empty(32, 16, device="meta") for _ in range(3)]
    records = list(fit(sae, batches, make_adam(module, OptimizerConfig()), learning_rate=lambda _: 1e-3, clip=1.0))
    assert len(records) == 3
    for record in records:
        assert all(part.device.type == "meta" and part.shape == () for part in record.parts.values())
    with pytest.raises(RuntimeError, match="meta"):
        records[0].parts["l0"].item()


@pytest.mark.parametrize("shape", [(1, 1), (7, 33), (130, 2000), (3, 2**17 + 1)])
def test_the_radial_part_of_a_gradient_is_removed_block_by_block(shape: tuple[int, int]) -> None:
    atoms = functional.normalize(plant(shape[0], d_in=shape[1]), dim=1).requires_grad_()
    gradient = plant(shape[0], d_in=shape[1], seed=1)
    (remove_radial_gradient(atoms) * gradient).sum().backward()
    d = atoms.detach()
    assert atoms.grad is not None
    torch.testing.assert_close(atoms.grad, gradient - (gradient * d).sum(1, keepdim=True) * d, rtol=1e-5, atol=1e-5)


def test_the_raw_gradient_is_that_of_plain_autograd_and_the_tangent_one_its_tangent_part() -> None:
    x, found = plant(64), {}
    for gradient in ("raw", "tangent"):
        sae = make_pursuit(gradient=gradient, revive=0.3, revive_when="batch")
        sae.loss(x)[0].backward()
        assert sae.dictionary.grad is not None
        found[gradient] = sae.dictionary.grad
    plain = make_pursuit(method="reference")
    codes, residual = pursue(x - plain.bias, plain.dictionary, 3, method="reference")
    (residual.square().mean() - 0.3 * dense_pull(codes, residual, plain.dictionary)).backward()
    assert plain.dictionary.grad is not None
    torch.testing.assert_close(found["raw"], plain.dictionary.grad, rtol=1e-4, atol=1e-6)
    d = plain.dictionary.detach()
    assert (found["raw"] * d).sum(1).abs().max() > 1e-4
    tangent = found["raw"] - (found["raw"] * d).sum(1, keepdim=True) * d
    torch.testing.assert_close(found["tangent"], tangent, rtol=1e-4, atol=1e-6)


def dense_pull(codes: Codes, residual: Tensor, dictionary: Tensor) -> Tensor:
    """The recipe as published, with [row, d_sae] tensors: mean of residual @ D^T over rows and weakly active atoms."""
    dense = torch.zeros(residual.shape[0], dictionary.shape[0]).scatter_add(1, codes.indices, codes.values)
    dead = dense.amax(0) < 1e-2
    return (residual @ dictionary[dead].T).mean() if int(dead.sum()) > 10 else residual.new_zeros(())


def test_the_pull_of_a_batch_is_the_published_recipe_and_leaves_few_dead_atoms_alone() -> None:
    sae = make_pursuit(revive=1.0, revive_when="batch")
    seen = set()
    for n_rows in (1, 4, 7, 64):
        x = plant(n_rows)
        codes, residual = pursue(x, sae.dictionary, 3)
        pull = sae.loss(x)[1].parts["pull"]
        torch.testing.assert_close(pull, dense_pull(codes, residual, sae.dictionary).detach(), rtol=1e-4, atol=1e-6)
        seen.add(bool(pull != 0))
    assert seen == {True, False}


def test_atoms_that_sit_out_have_no_part_in_the_batch() -> None:
    """Loss, codes and gradient are those of the dictionary without them."""
    sae, x = make_pursuit(dropout=0.5), plant(64)
    assert sae.dropout is not None
    taking_part = sae.dropout.draw(torch.device("cpu"))
    loss, stats = sae.loss(x)
    loss.backward()
    smaller = sae.dictionary.detach()[taking_part].requires_grad_()
    codes, residual = pursue(x, smaller, 3)
    residual.square().mean().backward()
    assert 5 < len(taking_part) < 35
    assert sae.dictionary.grad is not None
    assert smaller.grad is not None
    torch.testing.assert_close(loss, residual.square().mean())
    expected = torch.zeros(D_SAE, 16).index_copy(0, taking_part, smaller.grad)
    radial = (expected * sae.dictionary.detach()).sum(1, keepdim=True)
    torch.testing.assert_close(sae.dictionary.grad, expected - radial * sae.dictionary.detach(), rtol=1e-4, atol=1e-6)
    assert torch.equal(stats.fired, mark_fired(Codes(taking_part[codes.indices], codes.values), D_SAE))


def test_who_sits_out_changes_with_each_batch_and_is_the_wanted_share() -> None:
    sae, x = make_pursuit(dropout=0.3), plant(8)
    assert sae.dropout is not None
    draws = []
    for _ in range(300):
        draws.append(sae.dropout.draw(torch.device("cpu")))
        sae.observe(sae.loss(x)[1])
    assert len({tuple(draw.tolist()) for draw in draws}) > 290
    share = torch.cat(draws).bincount(minlength=D_SAE) / len(draws)
    assert share.mean() == pytest.approx(0.7, abs=0.02)
    assert share.min() > 0.55
    assert share.max() < 0.85


def test_dropout_rests_in_evaluation_and_goes_on_in_training() -> None:
    sae, full, x = make_pursuit(dropout=0.5), make_pursuit(), plant(64)
    assert not sae.loss(x)[0].equal(full.loss(x)[0])
    sae.eval()
    assert sae.loss(x)[0].equal(full.loss(x)[0])
    sae.train()
    assert not sae.loss(x)[0].equal(full.loss(x)[0])
    assert all(torch.equal(a, b) for a, b in zip(sae.encode(x), full.encode(x), strict=True))


def test_all_atoms_but_one_may_sit_out() -> None:
    sae = make_pursuit(dropout=0.999)
    loss, stats = sae.loss(plant(8))
    loss.backward()
    assert int(stats.fired.sum()) == 1
    assert bool(loss.isfinite())


def test_only_dead_atoms_are_redrawn_and_become_directions_of_large_residuals() -> None:
    sae, x = make_pursuit(dead_after=100, redraw=6), plant(64)
    sae.idle[[5, 17, 23]] = torch.tensor([99, 36, 400])
    before = sae.dictionary.detach().clone()
    loss, stats = sae.loss(x)
    sae.observe(stats._replace(fired=stats.fired.index_fill(0, torch.tensor([5, 17, 23]), False)))
    assert torch.equal((sae.dictionary != before).any(1).nonzero()[:, 0], torch.tensor([5, 17, 23]))
    residual = (x - full_decode(before, x)).detach()
    cosines = functional.normalize(residual, dim=1) @ sae.dictionary.detach()[[5, 17, 23]].T
    best = cosines.max(0)
    torch.testing.assert_close(best.values, torch.ones(3), rtol=0, atol=1e-5)
    norms = residual.norm(dim=1)
    assert all(int((norms > norms[row]).sum()) < 48 for row in best.indices)
    assert (sae.idle[[5, 17, 23]] == 0).all()
    assert bool(loss.isfinite())


def full_decode(dictionary: Tensor, x: Tensor) -> Tensor:
    return x - pursue(x, dictionary, 3)[1]


@pytest.mark.parametrize(("n_rows", "n"), [(64, 6), (64, 64), (5, 7), (1, 1), (7, 3)])
def test_directions_have_unit_norm_and_are_the_largest_of_their_groups(n_rows: int, n: int) -> None:
    residual = plant(n_rows)
    found = pick_directions(residual, n, WholeBatch())
    assert found.shape == (min(n_rows, n), 16)
    size = n_rows // len(found)
    for group, direction in enumerate(found):
        rows = residual[group * size : (group + 1) * size]
        torch.testing.assert_close(direction, functional.normalize(rows[rows.norm(dim=1).argmax()], dim=0))


def test_a_row_without_residual_redraws_nothing() -> None:
    sae = make_pursuit(dead_after=1, redraw=6)
    before = sae.dictionary.detach().clone()
    sae.observe(sae.loss(torch.zeros(8, 16))[1])
    assert torch.equal(sae.dictionary, before)


@pytest.mark.parametrize(("redraw", "n_used"), [(0, 4), (8, 40)])
def test_redrawing_brings_atoms_back_that_no_row_can_reach(redraw: int, n_used: int) -> None:
    """All rows lie in one half of the space; all atoms but four start in the other half."""
    config = MatchingPursuit(d_sae=D_SAE, k=3, dead_after=300, redraw=redraw, bias=False)
    sae = build(config, 16, 0)
    assert isinstance(sae, MatchingPursuitSAE)
    with torch.no_grad():
        sae.dictionary[4:, :8] = 0
        sae.dictionary[:4, 8:] = 0
    sae.constrain()
    rows = [torch.cat([plant(100, d_in=8, seed=seed), torch.zeros(100, 8)], 1) for seed in range(40)]
    for _ in fit(sae, rows, make_adam(sae, OptimizerConfig()), learning_rate=lambda _: 1e-3):
        pass
    assert int(mark_fired(sae.encode(torch.cat(rows)), D_SAE).sum()) == n_used


CHANGES = {
    "in place": lambda sae, other: sae.dictionary.detach().copy_(other),
    "through data": lambda sae, other: sae.dictionary.data.copy_(other),
    "one number through data": lambda sae, other: sae.dictionary.data[3].copy_(other[3]),
    "loaded": lambda sae, other: sae.load_state_dict({**sae.state_dict(), "dictionary": other}),
    "another parameter": lambda sae, other: setattr(sae, "dictionary", nn.Parameter(other.clone())),
    "constrained": lambda sae, other: (sae.dictionary.data.copy_(2 * other), sae.constrain()),
}


@pytest.mark.parametrize("method", ["gram", "residual"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_codes_are_those_of_the_present_dictionary_however_it_was_changed(change, method: Method) -> None:
    sae, x = make_pursuit(method=method), plant(64)
    sae.encode(x)
    other = functional.normalize(plant(D_SAE, seed=5), dim=1)
    change(sae, other)
    fresh = make_pursuit(method=method)
    fresh.load_state_dict(sae.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(sae.encode(x), fresh.encode(x), strict=True))


def test_codes_are_right_after_training_steps_on_the_same_memory() -> None:
    sae, x = make_pursuit(method="gram"), plant(64)
    optimizer = make_adam(sae, OptimizerConfig())
    sae.encode(x)
    for _ in fit(sae, [plant(64, seed=i) for i in range(3)], optimizer, learning_rate=lambda _: 0.1):
        fresh = make_pursuit(method="gram")
        fresh.load_state_dict(sae.state_dict())
        assert all(torch.equal(a, b) for a, b in zip(sae.encode(x), fresh.encode(x), strict=True))


def test_a_dictionary_is_prepared_once_for_many_batches_and_leaves_no_trace() -> None:
    sae, x = make_pursuit(method="gram"), plant(64)
    before = list(sae.state_dict())
    first = sae._prepared.find(sae.dictionary, "gram")
    sae.encode(x)
    with torch.inference_mode():
        sae.encode(x)
    assert sae._prepared.find(sae.dictionary, "gram") is first
    assert list(sae.state_dict()) == before
    assert len(pickle.dumps(sae)) < len(pickle.dumps(sae.state_dict())) + 4 * D_SAE**2
    twin = copy.deepcopy(sae)
    assert all(torch.equal(a, b) for a, b in zip(sae.encode(x), twin.encode(x), strict=True))
    assert twin._prepared.find(twin.dictionary, "gram") is not first


@pytest.mark.parametrize("method", ["gram", "numba_certified"])
def test_what_was_found_is_never_written_over_and_what_is_renewed_is(method: Method) -> None:
    """Another thread may still encode with what was found; a training step is over before the next."""
    if method.startswith("numba"):
        pytest.importorskip("numba")
    first, second = (functional.normalize(plant(D_SAE, seed=seed), dim=1) for seed in (1, 2))
    kept, fresh = LastPrepared(), prepare(first, method)
    found = kept.find(first, method)
    kept.renew(second, method)
    kept.find(second, method)
    for got, expected in zip(found, fresh, strict=True):
        assert got is expected or torch.equal(got, expected)
    memory = kept.renew(first, method).gram
    again = kept.renew(second, method).gram
    assert memory is not None
    assert again is not None
    assert memory.data_ptr() == again.data_ptr()
    assert torch.equal(again, prepare(second, method).gram)


def test_two_losses_may_wait_for_one_backward() -> None:
    """The second writes over the Gram matrix of the first, which no gradient needs."""
    x = [plant(64, seed=seed) for seed in (1, 2)]
    apart, together = make_pursuit(method="gram"), make_pursuit(method="gram")
    for rows in x:
        apart.loss(rows)[0].backward()
    (together.loss(x[0])[0] + together.loss(x[1])[0]).backward()
    torch.testing.assert_close(together.dictionary.grad, apart.dictionary.grad)
    torch.testing.assert_close(together.bias.grad, apart.bias.grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("config", [MatchingPursuit(d_sae=40, k=3), OrthogonalPursuit(d_sae=40, k=3)], ids=lambda c: c.kind)
def test_a_dictionary_of_any_type_encodes_and_decodes(config: Architecture, dtype: torch.dtype) -> None:
    """Codes of half precision are float32, and so is their reconstruction."""
    sae, x = cast(nn.Module, build(config, 16, 0)).to(dtype), plant(64).to(dtype)
    assert isinstance(sae, SAE)
    sae.constrain()
    codes = sae.encode(x)
    decoded = sae.decode(codes)
    assert codes.values.dtype == decoded.dtype == torch.promote_types(dtype, torch.float32)
    dense = densify(codes, 40) @ sae.dictionary.to(decoded.dtype) + sae.bias
    torch.testing.assert_close(decoded, dense)
    decoded.square().sum().backward()
    assert sae.dictionary.grad is not None
    assert sae.dictionary.grad.dtype == dtype


def test_a_step_on_cuda_moves_nothing_to_or_from_the_host() -> None:
    """On tensors that have a device and no numbers: each operation sees the GPU alone. Backward needs a real one."""
    pytest.importorskip("triton")
    modes = FakeTensorMode(allow_non_fake_inputs=True), DevicesSeen()
    for method in ("triton_certified", "triton_gram", "gram", "residual"):
        config = MatchingPursuit(d_sae=40, k=3, method=method, redraw=4, revive=0.1, residual_tol=0.1, sign="abs")
        for sae in (build(config, 16, 0), build(OrthogonalPursuit(d_sae=40, k=3), 16, 0)):
            module = cast(nn.Module, sae)
            with modes[0]:
                for name, value in (*module.named_parameters(), *module.named_buffers()):
                    empty = torch.empty(value.shape, dtype=value.dtype, device="cuda")
                    is_parameter = isinstance(value, nn.Parameter)
                    setattr(module, name, nn.Parameter(empty) if is_parameter else empty)
                with modes[1]:
                    loss, stats = sae.loss(torch.empty(32, 16, device="cuda"))
                    sae.constrain()
                    sae.observe(stats)
            assert loss.device.type == "cuda"
    assert modes[1].found == {"cuda"}


class DevicesSeen(TorchDispatchMode):
    """Notes the devices of what operations are given and give."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.found |= {leaf.device.type for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)}
        return result


def test_what_inference_prepared_serves_gradients() -> None:
    sae, x = make_pursuit(method="gram"), plant(64)
    with torch.inference_mode():
        sae.encode(x)
    sae.encode(x).values.sum().backward()
    plain = make_pursuit(method="reference")
    plain.encode(x).values.sum().backward()
    torch.testing.assert_close(sae.dictionary.grad, plain.dictionary.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", [MatchingPursuit(d_sae=40, k=3), OrthogonalPursuit(d_sae=40, k=3), TopK(d_sae=40, k=3)])
def test_no_atom_per_row_is_refused_and_not_taken_for_the_default(config: Architecture) -> None:
    with pytest.raises(ValueError, match="k=0"):
        build(config, 16, 0).encode(plant(4), 0)


def test_rows_that_are_not_finite_and_atoms_without_unit_norm_are_refused() -> None:
    sae, x = make_pursuit(), plant(4)
    with pytest.raises(ValueError, match="x: rows 2"):
        sae.encode(x.index_fill(0, torch.tensor([2]), torch.nan))
    sae.dictionary.data[7] *= 3
    with pytest.raises(ValueError, match=r"dictionary: rows 7 .* must have norm 1, found 3"):
        sae.encode(x)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**20),
    kind=st.sampled_from(["plain", "tied", "near", "scaled"]),
    k=st.integers(1, 9),
    n_rows=st.sampled_from([0, 1, 7, 33]),
)
def test_screening_is_never_certain_and_wrong_and_repair_mends_the_rest(seed: int, kind: str, k: int, n_rows: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, weight = torch.randn(n_rows, 24, generator=generator), torch.randn(130, 24, generator=generator)
    bias = torch.randn(130, generator=generator)
    if kind == "tied":
        weight, bias = weight[torch.arange(130) % 3], bias[torch.arange(130) % 3]
    elif kind == "near":
        weight, bias = weight[:1] + 1e-4 * weight, 1e-4 * bias
    elif kind == "scaled":
        weight, bias = weight * 10.0 ** torch.arange(-3, 10)[:, None].repeat_interleave(10, 0) * 1e-3, 100 * bias
    screened = screen_topk(x, weight, bias, k)
    exact = functional.linear(x, weight, bias)
    wanted = exact.topk(k, dim=1).values.relu()
    slack = 1e-6 * torch.cat([exact.abs().flatten(), torch.ones(1)]).amax()
    found = exact.gather(1, screened.indices).relu()
    assert ((found - wanted).abs() <= slack)[screened.is_certain].all()
    mended = exact.gather(1, repair(screened, x, weight, bias)).relu()
    assert ((mended - wanted).abs() <= slack).all()
    assert all(len(set(row)) == k for row in screened.indices.tolist())


def test_screening_is_certain_of_almost_all_usual_rows_and_in_doubt_about_ties() -> None:
    weight = functional.normalize(plant(4096, d_in=512, seed=1), dim=1)
    bias, x = torch.zeros(4096), plant(200, d_in=512)
    screened = screen_topk(x, weight, bias, 16)
    assert screened.is_certain.float().mean() > 0.95
    assert torch.equal(screened.indices, find_topk(x, weight, bias, 16))
    assert not screen_topk(x, weight[:1] + 1e-5 * weight, bias, 16).is_certain[(x @ weight[0]) > 0.1].any()


def test_topk_in_bfloat16_trains_like_topk_in_full() -> None:
    states = []
    for selection in ("full", "bf16"):
        sae = build(TopK(d_sae=256, k=8, selection=selection), 64, 0)
        assert isinstance(sae, TopKSAE)
        rows = [plant(128, d_in=64, seed=seed) for seed in range(20)]
        for record in fit(sae, rows, make_adam(sae, OptimizerConfig()), learning_rate=lambda _: 1e-3):
            assert ("unsure" in record.parts) == (selection == "bf16")
        states.append(sae.state_dict())
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-4, atol=1e-5)
