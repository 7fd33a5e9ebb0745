"""Laws of one dictionary in training: what surrounds a step, whatever the architecture."""

import re
from pathlib import Path
from typing import cast

import pytest
import torch
from architectures import list_over_batches, list_over_rows
from torch import Tensor, nn

from thresher.config import validate
from thresher.errors import CheckpointError, ConfigError
from thresher.train.anneal import compute_k
from thresher.train.arch import (
    Architecture,
    BatchTopK,
    MatchingPursuit,
    Relu,
    TopK,
    build,
)
from thresher.train.config import TrainConfig
from thresher.train.learner import Learner, accumulate_gradient
from thresher.train.optimizer import OptimizerConfig, compute_learning_rate
from thresher.train.protocol import SAE

D_IN, D_SAE, ROWS = 12, 40, 60

OVER_ROWS, OVER_BATCHES = list_over_rows(D_SAE, 10), list_over_batches(D_SAE)


def rows(seed: int, n: int = ROWS) -> Tensor:
    return torch.randn(n, D_IN, generator=torch.Generator().manual_seed(seed))


def gradients(sae: SAE, x: Tensor, micro_batches: int) -> tuple[list[Tensor], dict[str, float]]:
    module = cast(nn.Module, sae)
    module.zero_grad()
    stats = accumulate_gradient(sae, x, micro_batches=micro_batches)
    assert stats.n_rows == len(x)
    found = [parameter.grad.clone() for parameter in module.parameters() if parameter.grad is not None]
    return found, {name: float(part) for name, part in stats.parts.items()}


@pytest.mark.parametrize("config", OVER_ROWS, ids=lambda config: config.kind)
@pytest.mark.parametrize("micro_batches", [2, 7])
def test_micro_batches_give_the_gradient_of_the_whole_batch(config: Architecture, micro_batches: int) -> None:
    sae = build(config, D_IN, 0)
    (whole, parts), (split, mean_parts) = (gradients(sae, rows(0), n) for n in (1, micro_batches))
    for expected, found in zip(whole, split, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    for name in ("loss", "reconstruction", "l0"):
        assert mean_parts[name] == pytest.approx(parts[name], rel=1e-4)


@pytest.mark.parametrize("config", OVER_BATCHES, ids=lambda config: config.kind)
def test_what_is_decided_over_a_batch_is_decided_over_each_micro_batch(config: Architecture) -> None:
    sae = build(config, D_IN, 0)
    split = gradients(sae, rows(0), 3)[0]
    each = [gradients(sae, rows(0)[start::3], 1)[0] for start in range(3)]
    for found, *expected in zip(split, *each, strict=True):
        torch.testing.assert_close(found, torch.stack(expected).mean(0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("config", [*OVER_ROWS, *OVER_BATCHES], ids=lambda config: config.kind)
def test_a_saved_learner_goes_on_bit_for_bit_with_every_feature(config: Architecture) -> None:
    settings = OptimizerConfig(
        lr=0.01,
        warmup=0.1,
        decay="sqrt",
        lr_end=0.1,
        precision="bf16",
        micro_batches=3,
        ema=0.9,
        k_start=8.0 if hasattr(config, "k") else None,
        k_until=0.8,
    )

    def start() -> Learner:
        return Learner(build(config, D_IN, 0), settings, 10)

    whole, cut, resumed = start(), start(), start()
    for seed in range(10):
        whole.step(rows(seed))
    for seed in range(6):
        cut.step(rows(seed))
    resumed.load_state_dict({name: value.clone() for name, value in cut.state_dict().items()})
    assert resumed.done == 6
    for seed in range(6, 10):
        resumed.step(rows(seed))
    expected = whole.state_dict() | {f"used.{n}": v for n, v in cast(nn.Module, whole.usable()).state_dict().items()}
    found = resumed.state_dict() | {f"used.{n}": v for n, v in cast(nn.Module, resumed.usable()).state_dict().items()}
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name


def test_a_state_of_another_architecture_is_refused() -> None:
    settings = OptimizerConfig(ema=0.9)
    state = Learner(build(TopK(d_sae=D_SAE, k=3), D_IN, 0), settings, 3).state_dict()
    for other in (
        Learner(build(TopK(d_sae=D_SAE + 1, k=3), D_IN, 0), settings, 3),
        _learner(MatchingPursuit(d_sae=D_SAE, k=3)),
    ):
        with pytest.raises(CheckpointError, match="the saved state does not fit this training"):
            other.load_state_dict(state)


def _learner(config: Architecture, **fields) -> Learner:
    return Learner(build(config, D_IN, 0), OptimizerConfig(lr=0.01, warmup=0.0, **fields), 20)


def test_the_average_forgets_the_start_and_keeps_atoms_at_unit_norm() -> None:
    learner = _learner(TopK(d_sae=D_SAE, k=3), ema=0.5)
    averaged = learner.sae.dictionary.detach().clone()
    for done in range(8):
        learner.step(rows(done))
        averaged.lerp_(learner.sae.dictionary.detach(), 1 - min(0.5, (1 + done) / (10 + done)))
    used = learner.usable().dictionary.detach()
    torch.testing.assert_close(used, averaged / averaged.norm(dim=1, keepdim=True))
    torch.testing.assert_close(used.norm(dim=1), torch.ones(D_SAE))
    assert not torch.equal(used, learner.sae.dictionary)


def test_looking_at_the_average_changes_nothing() -> None:
    looked, left = (_learner(Relu(d_sae=D_SAE, l0=3.0), ema=0.9) for _ in range(2))
    for seed in range(4):
        looked.step(rows(seed))
        left.step(rows(seed))
        looked.usable()
    assert all(torch.equal(value, left.state_dict()[name]) for name, value in looked.state_dict().items())


@pytest.mark.parametrize(
    "config", [TopK(d_sae=D_SAE, k=3), MatchingPursuit(d_sae=D_SAE, k=3), BatchTopK(d_sae=D_SAE, k=2.5)], ids=lambda c: c.kind
)
def test_k_falls_to_its_value_in_training_and_has_it_everywhere_else(config: Architecture) -> None:
    learner = _learner(config, k_start=11.0, k_until=0.5)
    assert compute_k(learner.settings, 3.0, 0, 20) == 11
    assert compute_k(learner.settings, 3.0, 5, 20) == 7
    assert {compute_k(learner.settings, 3.0, done, 20) for done in range(10, 20)} == {3}
    l0s: list[float] = []
    for seed in range(12):
        l0s.append(float(learner.step(rows(seed)).parts["l0"]))
        assert getattr(learner.sae, "settings") == config  # noqa: B009 - the protocol has no settings
    assert l0s[0] - 1 > l0s[5] > l0s[-1] + 1
    assert l0s[-1] <= config.with_l0(3.0).k


def test_products_in_bfloat16_leave_parameters_and_pursuits_in_float32() -> None:
    low, full = (_learner(MatchingPursuit(d_sae=D_SAE, k=3), precision=precision) for precision in ("bf16", "fp32"))
    for learner in (low, full):
        learner.step(rows(0))
    assert torch.equal(low.sae.dictionary, full.sae.dictionary)
    other = _learner(Relu(d_sae=D_SAE, l0=3.0), precision="bf16")
    step = other.step(rows(0))
    module = cast(nn.Module, other.sae)
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}
    assert {part.dtype for part in step.parts.values()} == {torch.float32}
    exact = _learner(Relu(d_sae=D_SAE, l0=3.0)).step(rows(0))
    assert step.parts["loss"] != exact.parts["loss"]
    assert float(step.parts["loss"]) == pytest.approx(float(exact.parts["loss"]), rel=0.02)


def test_the_rate_ends_at_its_floor_and_the_whole_rest_can_be_a_cosine() -> None:
    wsd = OptimizerConfig(lr=2.0, warmup=0.1, decay="sqrt", decay_from=0.8, lr_end=0.1)
    rates = [compute_learning_rate(wsd, done, 1000) for done in range(1001)]
    assert rates[799] == 2.0
    assert rates[850] == pytest.approx(0.2 + 1.8 * (1 - 0.25**0.5))
    assert rates[1000] == pytest.approx(0.2)
    cosine = OptimizerConfig(lr=2.0, warmup=0.1, decay="cosine", decay_from=0.1)
    assert compute_learning_rate(cosine, 550, 1000) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("sae", "fields", "message"),
    [
        ({"kind": "relu"}, {"k_start": 9}, "relu has no k to anneal"),
        ({"kind": "topk", "d_sae": 8, "k": 4}, {"k_start": 3}, "anneal from at least k=4 and at most d_sae=8"),
        ({"kind": "topk", "d_sae": 8, "k": 4}, {"k_start": 9}, "anneal from at least k=4 and at most d_sae=8"),
        ({"kind": "topk"}, {"micro_batches": 5000}, "a batch has stream.batch_size=4096 rows"),
        ({"kind": "topk"}, {"ema": 1.0}, "ema=1.0: a decay is between 0 and 1"),
        ({"kind": "topk"}, {"lr_end": 1.5}, "lr_end=1.5"),
        ({"kind": "topk"}, {"micro_batches": 0}, "micro_batches=0"),
        ({"kind": "topk"}, {"precision": "fp16"}, "precision"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(sae, fields, message) -> None:
    values = {"store": "a", "out": "b", "hook_points": ["vision.embed"], "sae": sae, "optimizer": fields}
    with pytest.raises(ConfigError, match=message):
        validate(TrainConfig, values, "train.yaml")


def test_the_examples_of_the_page_on_training_work_as_written(capsys) -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "training.md"
    for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        exec(compile(block, str(page), "exec"), {})
    assert capsys.readouterr().out.startswith("3 ['aux', 'dead', 'fvu', 'gradient_norm', 'l0', 'loss', 'reconstruction']")
