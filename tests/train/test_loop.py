"""Laws of the loop and of its learning rate."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from thresher.errors import ConfigError
from thresher.train.arch import MatchingPursuit, TopK, build
from thresher.train.arch.mp import MatchingPursuitSAE
from thresher.train.loop import fit
from thresher.train.optimizer import OptimizerConfig, compute_learning_rate, make_adam


def rows(seed: int) -> torch.Tensor:
    return torch.randn(64, 8, generator=torch.Generator().manual_seed(seed))


def test_one_step_is_adam_on_the_loss_then_the_projection() -> None:
    ours, by_hand = (build(MatchingPursuit(d_sae=20, k=3), 8, 0) for _ in range(2))
    assert isinstance(ours, nn.Module)
    assert isinstance(by_hand, MatchingPursuitSAE)
    optimizer = torch.optim.Adam(ours.parameters(), lr=1.0)
    for _ in fit(ours, [rows(0), rows(1)], optimizer, learning_rate=lambda done: 0.01 / (1 + done)):
        pass
    expected = torch.optim.Adam(by_hand.parameters(), lr=1.0)
    for done in range(2):
        expected.param_groups[0]["lr"] = 0.01 / (1 + done)
        expected.zero_grad()
        by_hand.loss(rows(done))[0].backward()
        expected.step()
        with torch.no_grad():
            by_hand.dictionary.div_(by_hand.dictionary.norm(dim=1, keepdim=True))
    torch.testing.assert_close(ours.dictionary, by_hand.dictionary)
    torch.testing.assert_close(ours.bias, by_hand.bias)


def test_records_count_from_start_and_end_with_the_batches() -> None:
    sae = build(TopK(d_sae=20, k=3), 8, 0)
    assert isinstance(sae, nn.Module)
    optimizer = make_adam(sae, OptimizerConfig())
    steps = list(fit(sae, [rows(i) for i in range(3)], optimizer, learning_rate=lambda done: 0.1 * done, start=7))
    assert [step.number for step in steps] == [8, 9, 10]
    assert [step.lr for step in steps] == pytest.approx([0.7, 0.8, 0.9])
    assert all(step.n_rows == 64 for step in steps)


def test_the_gradient_is_clipped_to_its_norm() -> None:
    sae = build(TopK(d_sae=20, k=3), 8, 0)
    assert isinstance(sae, nn.Module)
    optimizer = torch.optim.SGD(sae.parameters(), lr=0.0)
    (step,) = fit(sae, [1e3 * rows(0)], optimizer, learning_rate=lambda _: 0.0, clip=0.5)
    norm = torch.stack([p.grad.norm() for p in sae.parameters() if p.grad is not None]).norm()
    assert step.parts["gradient_norm"] > 10
    torch.testing.assert_close(norm, torch.tensor(0.5), rtol=1e-4, atol=0)


@pytest.mark.parametrize("decay", ["linear", "cosine"])
def test_learning_rate_rises_stays_and_falls_to_almost_nothing(decay) -> None:
    settings = OptimizerConfig(lr=2.0, warmup=0.1, decay=decay, decay_from=0.6)
    rates = [compute_learning_rate(settings, done, 100) for done in range(100)]
    assert all(a < b for a, b in pairwise(rates[:10]))
    assert set(rates[9:61]) == {2.0}
    assert all(a > b for a, b in pairwise(rates[60:]))
    assert 0 < rates[-1] < 0.06


def test_learning_rate_without_decay_or_warmup_is_constant() -> None:
    settings = OptimizerConfig(lr=2.0, warmup=0.0, decay="none")
    assert {compute_learning_rate(settings, done, 10) for done in range(10)} == {2.0}


@pytest.mark.parametrize(
    "fields", [{"lr": 0.0}, {"betas": (1.0, 0.9)}, {"warmup": 0.9, "decay_from": 0.5}, {"decay_from": 1.5}, {"clip": 0.0}]
)
def test_nonsense_is_refused(fields) -> None:
    with pytest.raises(ConfigError, match=next(iter(fields))):
        OptimizerConfig(**fields)
