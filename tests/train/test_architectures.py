"""Every architecture keeps the laws of `SAE`, and its own."""

from typing import cast

import pytest
import torch
from torch import nn

from thresher.errors import ConfigError
from thresher.testing.coder import CoderSuite
from thresher.train.arch import (
    Architecture,
    BatchTopK,
    JumpRelu,
    MatchingPursuit,
    Matryoshka,
    Relu,
    TopK,
    build,
)
from thresher.train.arch.batch_topk import BatchTopKSAE
from thresher.train.arch.jumprelu import jump, step
from thresher.train.arch.matryoshka import MatryoshkaSAE
from thresher.train.arch.mp import MatchingPursuitSAE
from thresher.train.arch.topk import TopKSAE
from thresher.train.codes import count_active
from thresher.train.loop import fit
from thresher.train.protocol import SAE

D_SAE = 40


class TestMatchingPursuit(CoderSuite):
    fvu_at_most = 0.15

    def build(self, d_in: int, seed: int) -> SAE:
        return build(MatchingPursuit(d_sae=D_SAE, k=4), d_in, seed)


class TestSignedMatchingPursuitThatStopsEarly(CoderSuite):
    fvu_at_most = 0.2

    def build(self, d_in: int, seed: int) -> SAE:
        return build(MatchingPursuit(d_sae=D_SAE, k=6, sign="abs", residual_tol=0.3, bias=False), d_in, seed)


class TestMatchingPursuitWithRevival(CoderSuite):
    fvu_at_most = 0.15

    def build(self, d_in: int, seed: int) -> SAE:
        return build(MatchingPursuit(d_sae=D_SAE, k=4, revive=0.01, dead_after=500), d_in, seed)


class TestRelu(CoderSuite):
    def build(self, d_in: int, seed: int) -> SAE:
        return build(Relu(d_sae=D_SAE, l1=0.1), d_in, seed)


class TestReluWithWantedL0(CoderSuite):
    fvu_at_most = 0.8

    def build(self, d_in: int, seed: int) -> SAE:
        return build(Relu(d_sae=D_SAE, l0=4.0), d_in, seed)


class TestTopK(CoderSuite):
    def build(self, d_in: int, seed: int) -> SAE:
        return build(TopK(d_sae=D_SAE, k=4), d_in, seed)


class TestTopKWithDeadAtoms(CoderSuite):
    def build(self, d_in: int, seed: int) -> SAE:
        return build(TopK(d_sae=D_SAE, k=4, dead_after=300, aux=0.1), d_in, seed)


class TestBatchTopK(CoderSuite):
    def build(self, d_in: int, seed: int) -> SAE:
        return build(BatchTopK(d_sae=D_SAE, k=3.5), d_in, seed)


class TestJumpRelu(CoderSuite):
    def build(self, d_in: int, seed: int) -> SAE:
        return build(JumpRelu(d_sae=D_SAE, sparsity=0.3), d_in, seed)


class TestJumpReluWithWantedL0(CoderSuite):
    def build(self, d_in: int, seed: int) -> SAE:
        return build(JumpRelu(d_sae=D_SAE, l0=4.0), d_in, seed)


class TestMatryoshka(CoderSuite):
    fvu_at_most = 0.6

    def build(self, d_in: int, seed: int) -> SAE:
        return build(Matryoshka(d_sae=D_SAE, k=4.0), d_in, seed)


class TestMatryoshkaWithFixedPrefixes(CoderSuite):
    fvu_at_most = 0.6

    def build(self, d_in: int, seed: int) -> SAE:
        return build(Matryoshka(d_sae=D_SAE, k=4.0, prefixes=(0.25, 0.5, 1.0)), d_in, seed)


def plant(n_rows: int, *, d_in: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.randn(n_rows, d_in, generator=torch.Generator().manual_seed(seed))


def test_pursuit_codes_of_more_steps_begin_with_those_of_fewer() -> None:
    sae = build(MatchingPursuit(d_sae=D_SAE, k=3), 16, 0)
    few, many = sae.encode(plant(50)), sae.encode(plant(50), 9)
    assert torch.equal(few.indices, many.indices[:, :3])
    assert torch.equal(few.values, many.values[:, :3])


def test_pursuit_error_falls_with_every_step_beyond_training() -> None:
    sae = build(MatchingPursuit(d_sae=D_SAE, k=3), 16, 0)
    x = plant(50)
    errors = [float((x - sae.decode(sae.encode(x, k))).detach().square().sum()) for k in (1, 3, 9, 20)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 4


def test_pursuit_without_bias_keeps_it_at_zero() -> None:
    sae = build(MatchingPursuit(d_sae=D_SAE, k=3, bias=False), 16, 0)
    assert isinstance(sae, MatchingPursuitSAE)
    sae.loss(plant(20))[0].backward()
    assert sae.bias.grad is None
    assert not sae.bias.any()


def test_revival_pulls_dead_atoms_towards_the_residual_and_leaves_the_others_alone() -> None:
    """The gradient of the revived loss differs only at dead atoms, where it is the tangent part of the mean residual."""
    x = plant(64)
    gradients = []
    for revive in (0.0, 0.5):
        sae = build(MatchingPursuit(d_sae=D_SAE, k=2, revive=revive, dead_after=100), 16, 0)
        assert isinstance(sae, MatchingPursuitSAE)
        sae.idle[5] = sae.idle[17] = 100
        sae.loss(x)[0].backward()
        assert sae.dictionary.grad is not None
        gradients.append(sae.dictionary.grad)
    sae = build(MatchingPursuit(d_sae=D_SAE, k=2), 16, 0)
    residual = (x - sae.decode(sae.encode(x))).mean(0)
    difference = gradients[1] - gradients[0]
    for atom in (5, 17):
        d = sae.dictionary[atom].detach()
        torch.testing.assert_close(difference[atom], -0.5 / 2 * (residual - (residual @ d) * d).detach(), rtol=1e-4, atol=1e-6)
    difference[[5, 17]] = 0
    torch.testing.assert_close(difference, torch.zeros_like(difference), rtol=0, atol=1e-7)


@pytest.mark.parametrize("k", [1.0, 2.5, 7.3])
def test_batch_topk_keeps_k_times_batch_entries(k: float) -> None:
    sae = build(BatchTopK(d_sae=D_SAE, k=k), 16, 0)
    assert isinstance(sae, BatchTopKSAE)
    activations = sae.preactivate(plant(33))
    kept, smallest = sae.select(activations)
    assert int((kept > 0).sum()) == round(k * 33)
    assert smallest == kept[kept > 0].min()
    assert activations[kept == 0].max() <= smallest


@pytest.mark.parametrize("config", [BatchTopK(d_sae=D_SAE, k=3.0), Matryoshka(d_sae=D_SAE, k=3.0)])
def test_the_threshold_gives_rows_on_their_own_the_l0_of_training(config: Architecture) -> None:
    sae = build(config, 16, 0)
    for seed in range(200):
        sae.observe(sae.loss(plant(128, seed=seed))[1])
    l0 = count_active(sae.encode(plant(2000, seed=1000))).float().mean()
    torch.testing.assert_close(l0, torch.tensor(3.0), rtol=0.05, atol=0)


def test_a_batch_without_positive_outputs_leaves_the_threshold() -> None:
    sae = build(BatchTopK(d_sae=D_SAE, k=3.0), 16, 0)
    assert isinstance(sae, BatchTopKSAE)
    sae.observe(sae.loss(plant(32))[1])
    before = sae.threshold.clone()
    with torch.no_grad():
        sae.encoder_bias.fill_(-1e3)
    sae.observe(sae.loss(plant(32))[1])
    assert before > 0
    assert torch.equal(sae.threshold, before)


def test_matryoshka_loss_is_the_mean_error_of_its_prefixes() -> None:
    sae = build(Matryoshka(d_sae=D_SAE, k=4.0), 16, 0)
    assert isinstance(sae, MatryoshkaSAE)
    x = plant(30)
    kept, _ = sae.select(sae.preactivate(x))
    stops = sae.draw_prefixes()
    errors = [(x - kept[:, :stop] @ sae.dictionary[:stop] - sae.bias).square().mean() for stop in stops]
    loss, stats = sae.loss(x)
    torch.testing.assert_close(loss, torch.stack(errors).mean())
    torch.testing.assert_close(stats.parts["reconstruction"], errors[-1].detach())


def test_matryoshka_prefixes_rise_to_the_whole_dictionary_and_change_with_each_batch() -> None:
    sae = build(Matryoshka(d_sae=D_SAE, k=4.0, prefixes=6), 16, 0)
    assert isinstance(sae, MatryoshkaSAE)
    draws = []
    for seed in range(300):
        draws.append(sae.draw_prefixes())
        sae.observe(sae.loss(plant(4, seed=seed))[1])
    assert all(len(set(draw)) == 6 and list(draw) == sorted(draw) and draw[-1] == D_SAE for draw in draws)
    assert len(set(draws)) > 250
    # A Pareto law favours short prefixes: the shortest has size 1 more often than not.
    assert sum(draw[0] == 1 for draw in draws) > 150


def test_jump_relu_derivatives_are_the_published_ones() -> None:
    """Against the formulas of arXiv 2407.14435, eq. 11 and 12, summed entry by entry."""
    z = plant(40, d_in=7).double().requires_grad_()
    threshold = torch.linspace(0.1, 1.2, 7, dtype=torch.float64, requires_grad=True)
    weight, bandwidth = plant(40, d_in=7, seed=1).double(), 0.8
    for function, at_jump in ((jump, lambda theta: -theta / bandwidth), (step, lambda theta: -1 / bandwidth)):
        (function(z, threshold, bandwidth) * weight).sum().backward()
        expected = torch.zeros(7, dtype=torch.float64)
        for row in range(40):
            for atom in range(7):
                distance = (z[row, atom] - threshold[atom]).item() / bandwidth
                if -0.5 < distance < 0.5:
                    expected[atom] += weight[row, atom] * at_jump(threshold[atom].item())
        assert threshold.grad is not None
        torch.testing.assert_close(threshold.grad, expected)
        assert expected.abs().min() > 0
        threshold.grad = None
    # z passes where it is above the threshold, and only through `jump`.
    assert z.grad is not None
    torch.testing.assert_close(z.grad, torch.where(z > threshold, weight, 0).detach())


@pytest.mark.parametrize("config", [Relu(d_sae=64, l0=5.0), JumpRelu(d_sae=64, l0=5.0)])
def test_penalties_lead_to_the_wanted_l0(config: Architecture) -> None:
    sae = build(config, 16, 0)
    optimizer = torch.optim.Adam(list(cast(nn.Module, sae).parameters()), lr=0.003)
    for _ in fit(sae, (plant(256, seed=i) for i in range(800)), optimizer, learning_rate=lambda _: 0.003):
        pass
    l0 = count_active(sae.encode(plant(5000, seed=9999))).float().mean()
    torch.testing.assert_close(l0, torch.tensor(5.0), rtol=0.15, atol=0)


def test_auxiliary_loss_moves_dead_atoms_only_while_some_are_dead() -> None:
    x = plant(64)
    found = {}
    for idle in (0, 100):
        sae = build(TopK(d_sae=D_SAE, k=2, dead_after=100), 16, 0)
        assert isinstance(sae, TopKSAE)
        with torch.no_grad():
            sae.encoder_bias[:5] = -0.5
        sae.idle[:5] = idle
        loss, stats = sae.loss(x)
        loss.backward()
        assert sae.encoder.grad is not None
        found[idle] = (float(stats.parts["aux"]), float(sae.encoder.grad[:5].abs().sum()))
    assert found[0][0] == 0
    assert found[100][0] > 0
    assert found[100][1] > found[0][1]


def test_idle_counts_rows_since_an_atom_last_fired() -> None:
    sae = build(TopK(d_sae=D_SAE, k=2), 16, 0)
    assert isinstance(sae, TopKSAE)
    expected = torch.zeros(D_SAE, dtype=torch.int64)
    for seed in range(5):
        _, stats = sae.loss(plant(3, seed=seed))
        sae.observe(stats)
        expected = torch.where(stats.fired, 0, expected + 3)
    assert torch.equal(sae.idle, expected)
    assert 0 < int(sae.idle.max()) == 15


@pytest.mark.parametrize(
    "fields",
    [
        lambda: MatchingPursuit(d_sae=8, k=9),
        lambda: MatchingPursuit(d_sae=8, k=0),
        lambda: MatchingPursuit(residual_tol=1.0),
        lambda: MatchingPursuit(revive=-1.0),
        lambda: MatchingPursuit(redraw=-1),
        lambda: MatchingPursuit(d_sae=8, k=2, redraw=9),
        lambda: MatchingPursuit(dropout=1.0),
        lambda: MatchingPursuit(dropout=-0.1),
        lambda: TopK(d_sae=8, k=9),
        lambda: TopK(aux=-0.1),
        lambda: TopK(aux_k=0),
        lambda: TopK(d_sae=0),
        lambda: TopK(dead_after=0),
        lambda: BatchTopK(d_sae=8, k=8.5),
        lambda: BatchTopK(threshold_momentum=1.0),
        lambda: Matryoshka(d_sae=8, k=2.0, prefixes=9),
        lambda: Matryoshka(prefixes=(0.5, 0.25, 1.0)),
        lambda: Matryoshka(prefixes=(0.5, 0.9)),
        lambda: Relu(l1=-1.0),
        lambda: Relu(l0=0.0),
        lambda: Relu(l0_rate=0.0),
        lambda: JumpRelu(sparsity=-1.0),
        lambda: JumpRelu(l0=0.0),
        lambda: JumpRelu(threshold=0.0),
        lambda: JumpRelu(bandwidth=0.0),
    ],
)
def test_nonsense_is_refused_with_its_value(fields) -> None:
    with pytest.raises(ConfigError, match=r"=.*: "):
        fields()


@pytest.mark.parametrize("config", [MatchingPursuit(), TopK(), BatchTopK(), Matryoshka(), Relu(), JumpRelu()])
def test_with_l0_aims_at_the_wanted_number_of_atoms(config: Architecture) -> None:
    aimed = config.with_l0(7.6)
    found = getattr(aimed, "l0", None) or getattr(aimed, "k", None)
    assert type(aimed) is type(config)
    assert abs(found - 7.6) < 0.5


def test_equal_seeds_give_equal_modules() -> None:
    a, b, c = (build(TopK(d_sae=D_SAE, k=4), 16, seed) for seed in (3, 3, 4))
    assert torch.equal(a.dictionary, b.dictionary)
    assert not torch.equal(a.dictionary, c.dictionary)
