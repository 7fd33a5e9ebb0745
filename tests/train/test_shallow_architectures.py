"""The gated, signed, annealed and nested relatives of the ReLU and TopK SAEs keep the laws of `SAE`, and their own."""

import itertools
from typing import cast

import pytest
import torch
from torch import nn
from torch.nn import functional

from thresher.errors import ConfigError
from thresher.testing.coder import CoderSuite
from thresher.train.arch import (
    AbsTopK,
    Architecture,
    DistanceWeighted,
    Gated,
    NestedTopK,
    PAnneal,
    Relu,
    TopK,
    build,
)
from thresher.train.arch.abs_topk import AbsTopKSAE
from thresher.train.arch.gated import GatedSAE
from thresher.train.arch.msae import NestedTopKSAE
from thresher.train.arch.p_anneal import PAnnealSAE, penalize
from thresher.train.arch.relu import ReluSAE
from thresher.train.codes import count_active, densify
from thresher.train.learner import Learner
from thresher.train.loop import fit
from thresher.train.optimizer import OptimizerConfig, make_adam
from thresher.train.protocol import SAE

D_SAE = 40
NEW = [
    Gated(d_sae=64, l0=4.0),
    AbsTopK(d_sae=64, k=4),
    PAnneal(d_sae=64, l0=4.0, anneal_from=1, anneal_until=3),
    NestedTopK(d_sae=64, k=4),
]


class TestGated(CoderSuite):
    def build(self, d_in: int, seed: int) -> SAE:
        return build(Gated(d_sae=D_SAE, l1=0.1), d_in, seed)


class TestGatedWithWantedL0(CoderSuite):
    fvu_at_most = 0.8

    def build(self, d_in: int, seed: int) -> SAE:
        return build(Gated(d_sae=D_SAE, l0=4.0), d_in, seed)


class TestAbsTopK(CoderSuite):
    def build(self, d_in: int, seed: int) -> SAE:
        return build(AbsTopK(d_sae=D_SAE, k=4), d_in, seed)


class TestAbsTopKWithDeadAtoms(CoderSuite):
    def build(self, d_in: int, seed: int) -> SAE:
        return build(AbsTopK(d_sae=D_SAE, k=4, dead_after=300, aux=0.1), d_in, seed)


class TestPAnneal(CoderSuite):
    def build(self, d_in: int, seed: int) -> SAE:
        return build(PAnneal(d_sae=D_SAE, l1=0.1, anneal_from=2, anneal_until=100, n_remembered=3), d_in, seed)


class TestNestedTopK(CoderSuite):
    def build(self, d_in: int, seed: int) -> SAE:
        return build(NestedTopK(d_sae=D_SAE, k=4), d_in, seed)


class TestNestedTopKWithReverseWeights(CoderSuite):
    def build(self, d_in: int, seed: int) -> SAE:
        return build(NestedTopK(d_sae=D_SAE, k=4, weights="reverse", error="absolute"), d_in, seed)


def plant(n_rows: int, *, d_in: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.randn(n_rows, d_in, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("config", NEW, ids=lambda config: config.kind)
def test_training_never_waits_for_a_device(config: Architecture) -> None:
    sae = build(config, 16, 0)
    module = cast(nn.Module, sae).to("meta")
    batches = [torch.empty(32, 16, device="meta") for _ in range(4)]
    records = list(fit(sae, batches, make_adam(module, OptimizerConfig()), learning_rate=lambda _: 1e-3, clip=1.0))
    assert all(part.device.type == "meta" and part.shape == () for record in records for part in record.parts.values())


@pytest.mark.parametrize("config", NEW, ids=lambda config: config.kind)
def test_with_l0_aims_at_the_wanted_number_of_atoms(config: Architecture) -> None:
    aimed = config.with_l0(7.6)
    assert type(aimed) is type(config)
    assert abs((getattr(aimed, "l0", None) or getattr(aimed, "k", None)) - 7.6) < 0.5


@pytest.mark.parametrize(
    "config",
    [
        Gated(d_sae=64, l0=4.0),
        PAnneal(d_sae=64, l0=4.0, anneal_from=125, anneal_until=375),
        DistanceWeighted(d_sae=64, l0=4.0, unrolled=6),
    ],
    ids=lambda config: config.kind,
)
def test_penalties_reach_the_wanted_l0_by_the_end_of_a_short_training(config: Architecture) -> None:
    """Also where training itself moves L0 all the time: by the powers of p_anneal, by the learned steps of kds."""
    learner = Learner(build(config, 16, 0), OptimizerConfig(lr=0.01), 500)
    for seed in range(500):
        learner.step(plant_sums(96, seed=seed))
    l0 = count_active(learner.sae.encode(plant_sums(2000, seed=9999))).float().mean()
    torch.testing.assert_close(l0, torch.tensor(4.0), rtol=0.05, atol=0)


def plant_sums(n_rows: int, *, seed: int) -> torch.Tensor:
    """Rows of mean square about 1 that are sums of three of 64 atoms, with a common mean taken away."""
    generator = torch.Generator().manual_seed(seed)
    atoms = functional.normalize(torch.randn(64, 16, generator=torch.Generator().manual_seed(99)), dim=1)
    values = torch.zeros(n_rows, 64)
    chosen = torch.rand(n_rows, 64, generator=generator).topk(3, dim=1).indices
    values.scatter_(1, chosen, 1 + torch.rand(n_rows, 3, generator=generator))
    return 1.5 * (values @ atoms - 4.5 * atoms.mean(0))


def test_the_gate_alone_decides_and_the_magnitude_alone_weighs() -> None:
    """Against arXiv 2404.16014, eq. 5 to 7, entry by entry."""
    sae, x = build(Gated(d_sae=D_SAE), 16, 0), plant(30)
    assert isinstance(sae, GatedSAE)
    with torch.no_grad():
        for seed, parameter in enumerate((sae.encoder_bias, sae.log_gain, sae.magnitude_bias, sae.bias)):
            parameter.copy_(0.3 * plant(1, d_in=len(parameter), seed=seed)[0])
    dense = densify(sae.encode(x), D_SAE)
    directions = ((x - sae.bias) @ sae.encoder.T).detach()
    for row, atom in itertools.product(range(30), range(D_SAE)):
        is_open = directions[row, atom] + sae.encoder_bias[atom] > 0
        size = (directions[row, atom] * sae.log_gain[atom].exp() + sae.magnitude_bias[atom]).relu().item()
        assert dense[row, atom].item() == pytest.approx(size if is_open else 0.0, abs=1e-5)


def test_the_auxiliary_loss_of_the_gate_leaves_the_decoder_alone() -> None:
    """The dictionary's gradient is that of the reconstruction only; the gate's bias gets one through the auxiliary loss."""
    sae, x = build(Gated(d_sae=D_SAE, l1=0.0), 16, 0), plant(30)
    assert isinstance(sae, GatedSAE)
    sae.loss(x)[0].backward()
    found, gate = sae.dictionary.grad, sae.encoder_bias.grad
    assert found is not None
    assert gate is not None
    assert gate.abs().sum() > 0
    sae.zero_grad()
    (x - sae.measure(sae.preactivate(x)) @ sae.atoms() - sae.bias).square().mean().backward()
    assert sae.dictionary.grad is not None
    torch.testing.assert_close(found, sae.dictionary.grad)


def test_absolute_selection_keeps_the_largest_outputs_of_either_sign() -> None:
    sae, x = build(AbsTopK(d_sae=D_SAE, k=5), 16, 0), plant(50)
    assert isinstance(sae, AbsTopKSAE)
    outputs = sae.preactivate(x)
    dense = densify(sae.encode(x), D_SAE)
    kept = dense != 0
    assert bool((kept.sum(1) == 5).all())
    assert bool((dense < 0).any())
    torch.testing.assert_close(dense[kept], outputs[kept])
    assert bool((outputs.abs().masked_fill(~kept, torch.inf).amin(1) >= outputs.abs().masked_fill(kept, 0).amax(1)).all())


def test_a_row_and_its_opposite_have_opposite_signed_codes() -> None:
    """Of arXiv 2510.00404, without biases; with TopK they share no atom."""
    x = plant(50)
    signed, positive = build(AbsTopK(d_sae=D_SAE, k=5), 16, 0), build(TopK(d_sae=D_SAE, k=5), 16, 0)
    torch.testing.assert_close(densify(signed.encode(-x), D_SAE), -densify(signed.encode(x), D_SAE))
    assert not (densify(positive.encode(-x), D_SAE) * densify(positive.encode(x), D_SAE)).any()


def test_the_power_falls_in_equal_steps_and_the_weight_keeps_the_penalty() -> None:
    settings = PAnneal(d_sae=D_SAE, l1=0.7, p_end=0.25, anneal_from=4, anneal_until=10, n_powers=4, n_remembered=2)
    assert [settings.find_level(i) for i in range(12)] == [0] * 6 + [1, 1, 2, 2, 3, 3]
    assert [settings.find_power(i) for i in range(5)] == [1, 0.75, 0.5, 0.25, 0.25]
    sae, weights, penalties = build(settings, 16, 0), [], []
    assert isinstance(sae, PAnnealSAE)
    for _ in range(12):
        stats = sae.loss(4 * plant(200))[1]
        weights.append(float(sae.l1))
        penalties.append(float(stats.parts["penalty"]))
        sae.observe(stats)
    assert len(set(weights)) == 4
    kept = [weight * penalty for weight, penalty in zip(weights, penalties, strict=True)]
    assert kept == pytest.approx([kept[0]] * 12, rel=1e-5)
    assert max(penalties) > 1.3 * min(penalties)


def test_before_annealing_the_penalty_is_that_of_the_relu_sae() -> None:
    x = plant(60)
    plain, annealed = build(Relu(d_sae=D_SAE), 16, 0), build(PAnneal(d_sae=D_SAE), 16, 0)
    assert isinstance(plain, ReluSAE)
    assert torch.equal(plain.loss(x)[0], annealed.loss(x)[0])


@pytest.mark.parametrize("power", [1.0, 0.5, 0.2])
def test_the_penalty_is_the_sum_of_powers_and_zeros_get_no_gradient(power: float) -> None:
    z = plant(20).double().relu().requires_grad_()
    penalize(z, power).backward()
    assert z.grad is not None
    active = z.detach() > 0
    expected = power * z.detach()[active] ** (power - 1) / 20
    torch.testing.assert_close(z.grad[active], expected)
    assert power == 1 or not z.grad[~active].any()
    torch.testing.assert_close(penalize(z, power), (z.detach()[active] ** power).sum() / 20)


@pytest.mark.parametrize(
    ("k", "ks"), [(4, (4, 8, 16, 32, 40)), (10, (10, 20, 40)), (40, (40,)), (39, (39, 40)), (1, (1, 2, 4, 8, 16, 32, 40))]
)
@pytest.mark.parametrize("weights", ["uniform", "reverse"])
@pytest.mark.parametrize("error", ["relative", "absolute"])
def test_the_nested_loss_is_the_weighted_mean_of_the_errors_at_each_k(k, ks, weights, error) -> None:
    settings = NestedTopK(d_sae=D_SAE, k=k, weights=weights, error=error)
    sae, x = build(settings, 16, 0), plant(30)
    assert isinstance(sae, NestedTopKSAE)
    assert settings.list_ks() == ks
    errors = []
    for each in ks:
        square = (x - sae.decode(sae.encode(x, each))).square()
        errors.append((square.sum(1) / x.square().sum(1)).mean() if error == "relative" else square.mean())
    factors = range(len(ks), 0, -1) if weights == "reverse" else [1] * len(ks)
    expected = sum(f * e for f, e in zip(factors, errors, strict=True)) / sum(factors)
    torch.testing.assert_close(sae.loss(x)[0], expected)


@pytest.mark.parametrize(
    "fields",
    [
        lambda: Gated(l1=-1.0),
        lambda: Gated(d_sae=8, l0=9.0),
        lambda: AbsTopK(d_sae=8, k=9),
        lambda: AbsTopK(k=0),
        lambda: NestedTopK(d_sae=8, k=9),
        lambda: PAnneal(p_end=0.0),
        lambda: PAnneal(p_end=1.5),
        lambda: PAnneal(anneal_from=5, anneal_until=5),
        lambda: PAnneal(n_powers=1),
        lambda: PAnneal(n_remembered=0),
    ],
)
def test_nonsense_is_refused_with_its_value(fields) -> None:
    with pytest.raises(ConfigError, match=r"=.*: "):
        fields()
