"""What test_parallel lets every process of a launch check. Each also does alone what all do together, and compares."""

import os
import signal
import warnings

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from thresher.cli import app
from thresher.team import open_team
from thresher.train.arch import (
    Architecture,
    BatchTopK,
    Gated,
    JumpRelu,
    MatchingPursuit,
    Matryoshka,
    PAnneal,
    Relu,
    TopK,
    build,
)
from thresher.train.arch.hull import HullConfig
from thresher.train.kernels import pursue
from thresher.train.learner import Learner
from thresher.train.optimizer import OptimizerConfig
from thresher.train.parallel.group import mean_over, spread_over, sum_over
from thresher.train.parallel.layout import Layout
from thresher.train.parallel.parts import Parts
from thresher.train.parallel.shard import Shard, draw_atoms

warnings.simplefilter("error")

CPU = torch.device("cpu")
D_IN, D_SAE, ROWS, STEPS = 12, 37, 24, 4
ADAM = OptimizerConfig(lr=1e-3, warmup=0.0, clip=0.02)
"""The norm to clip at lies below the norms of these gradients."""

SHARED_ROWS: list[Architecture] = [
    MatchingPursuit(d_sae=D_SAE, k=3, revive=0.1, dead_after=30, redraw=5),
    MatchingPursuit(d_sae=D_SAE, k=3, revive=0.1, revive_when="batch", dropout=0.3),
    TopK(d_sae=D_SAE, k=3, dead_after=30),
    TopK(d_sae=D_SAE, k=3, hull=HullConfig(points=40, mixed=4)),
    BatchTopK(d_sae=D_SAE, k=2.7, dead_after=30),
    JumpRelu(d_sae=D_SAE, l0=3.0),
    Relu(d_sae=D_SAE, l0=3.0),
    Matryoshka(d_sae=D_SAE, k=2.7, dead_after=30),
    Gated(d_sae=D_SAE, l0=3.0),
    PAnneal(d_sae=D_SAE, l0=3.0, anneal_from=1, anneal_until=5, n_powers=3, n_remembered=2),
]
SPLIT_ATOMS: list[Architecture] = [
    MatchingPursuit(d_sae=D_SAE, k=4, revive=0.1, dead_after=30, redraw=5, residual_tol=0.2),
    MatchingPursuit(d_sae=D_SAE, k=4, sign="abs", revive=0.1, revive_when="batch", gradient="raw"),
    TopK(d_sae=D_SAE, k=4, dead_after=30, aux_k=7),
]


def make_batches(n: int = STEPS) -> list[Tensor]:
    """Batches of rows of different sizes."""
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(ROWS, D_IN, generator=generator) * torch.rand(ROWS, 1, generator=generator) * 3 for _ in range(n)]


def share_rows() -> None:
    """Losses, statistics, parameters and all state are those of one process with the whole batch."""
    with open_team() as team:
        layout = Layout(team, 1, CPU)
        for settings in SHARED_ROWS:
            for micro_batches in (1, 2) if isinstance(settings, BatchTopK) else (1,):
                adam = OptimizerConfig(**(vars(ADAM) | {"micro_batches": micro_batches, "ema": 0.9}))
                _compare_training(layout, settings, adam)


def split_atoms(n_shards: int) -> None:
    """The same where dictionaries are split; the first atoms are drawn twice, so that there are equal scores."""
    with open_team() as team:
        layout = Layout(team, n_shards, CPU)
        shard = Shard(D_SAE, layout.atoms)
        _compare_draws(shard)
        _compare_codes(shard)
        for settings in SPLIT_ATOMS:
            _compare_training(layout, settings, ADAM)


def _compare_training(layout: Layout, settings: Architecture, adam: OptimizerConfig) -> None:
    """Train alone and together, and compare all that there is; then go on from what was saved."""
    alone = Learner(build(settings, D_IN, 1), adam, STEPS + 2)
    module = layout.build(settings, D_IN, 1)
    together = Learner(module, adam, STEPS + 2, synchronize=layout.synchronize(module))
    share = slice(layout.rows.place * (n := ROWS // layout.rows.size), (layout.rows.place + 1) * n)
    for x in make_batches():
        expected, found = alone.step(x), together.step(x[share].contiguous())
        assert found.n_rows == expected.n_rows
        for name, value in expected.parts.items():
            torch.testing.assert_close(found.parts[name], value, rtol=2e-4, atol=1e-5, msg=lambda m: f"{settings}: {name}: {m}")  # noqa: B023
    parts = Parts(layout, together)
    whole = parts.collect(together.state_dict())
    assert (whole is not None) == layout.is_first
    if whole is not None:
        assert whole.keys() == alone.state_dict().keys()
        for name, value in alone.state_dict().items():
            torch.testing.assert_close(whole[name], value, rtol=2e-4, atol=2e-5, msg=lambda m: f"{settings}: {name}: {m}")  # noqa: B023
    _go_on(layout, together, parts, whole, layout.build(settings, D_IN, 1), share, adam)


def _go_on(layout, together, parts, whole, module, share, adam) -> None:
    """A learner that was brought to the saved state takes the same steps, bit for bit."""
    path = f"{os.environ['LAUNCH_FOLDER']}/{layout.team.n_ranks}.safetensors"
    if whole is not None:
        save_file({f"learner.{name}": value for name, value in whole.items()}, path)
    layout.team.wait()
    resumed = Learner(module, adam, STEPS + 2, synchronize=layout.synchronize(module))
    with safe_open(path, "pt") as file:
        resumed.load_state_dict({name.partition(".")[2]: parts.read(file, name) for name in file.keys()})  # noqa: SIM118
    layout.team.wait()
    for x in make_batches(2):
        together.step(x[share].contiguous())
        resumed.step(x[share].contiguous())
    for name, value in together.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def _compare_draws(shard: Shard) -> None:
    for d_sae, d_in in ((D_SAE, D_IN), (4099, 3), (1, 1), (8200, 1)):
        whole = torch.randn(d_sae, d_in, generator=torch.Generator().manual_seed(5))
        mine = Shard(d_sae, shard.group) if d_sae >= shard.group.size else shard
        if mine is shard:
            continue
        found = draw_atoms(d_sae, d_in, torch.Generator().manual_seed(5), mine.first, mine.stop)
        assert torch.equal(found, whole[mine.first : mine.stop])


def _compare_codes(shard: Shard) -> None:
    """Codes and gradients of a pursuit over atoms of which many are equal."""
    from thresher.train.kernels import Rule
    from thresher.train.parallel.pursuit import pursue_sharded

    generator = torch.Generator().manual_seed(7)
    atoms = functional.normalize(torch.randn(10, D_IN, generator=generator), dim=1)
    whole = atoms[torch.arange(D_SAE) * 7 % 10].requires_grad_()
    own = whole.detach()[shard.first : shard.stop].clone().requires_grad_()
    x = torch.randn(33, D_IN, generator=generator).requires_grad_()
    y = x.detach().clone().requires_grad_()
    weight = torch.randn(33, 5, generator=generator)
    expected, residual = pursue(x, whole, 5, method="residual")
    found, left = pursue_sharded(y, own, shard, Rule(5, None, "relu", True))
    assert torch.equal(found.indices, expected.indices)
    assert torch.equal(found.values, expected.values)
    assert torch.equal(left, residual)
    ((expected.values * weight).sum() + residual.square().sum()).backward()
    ((found.values * weight).sum() + left.square().sum()).backward()
    torch.testing.assert_close(y.grad, x.grad)
    torch.testing.assert_close(own.grad, whole.grad[shard.first : shard.stop])


def exchange() -> None:
    """Sums, means and their gradients over processes."""
    with open_team() as team:
        layout = Layout(team, 1, CPU)
        group, n = layout.rows, team.n_ranks
        x = torch.tensor([float(team.rank), 1.0], requires_grad=True)
        mean = mean_over(x, group)
        assert mean.tolist() == [(n - 1) / 2, 1.0]
        (mean.square().sum() * 3).backward()
        assert x.grad.tolist() == [3 * (n - 1), 6.0]
        x.grad = None
        sum_over(x, group)[0].backward()
        assert x.grad.tolist() == [1.0, 0.0]
        x.grad = None
        (spread_over(x, group)[0] * (team.rank + 1)).backward()
        assert x.grad.tolist() == [n * (n + 1) / 2, 0.0]
        assert layout.any(here=team.rank == n - 1)
        assert not layout.any(here=False)


def run_command(*arguments: str) -> None:
    """A command of thresher."""
    app(list(arguments))


def run_killed(rank: int, iteration: int, *arguments: str) -> None:
    """A command of thresher; one of the processes dies of SIGKILL in an iteration."""
    if int(os.environ["RANK"]) == rank:
        step, done = Learner.step, [0]

        def step_or_die(self, x):
            done[0] += 1
            if done[0] == iteration:
                os.kill(os.getpid(), signal.SIGKILL)
            return step(self, x)

        Learner.step = step_or_die
    app(list(arguments))
