"""SpaDE and distance-weighted sparse coding keep the laws of `SAE`, and their own."""

from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from thresher.errors import ConfigError
from thresher.testing.coder import CoderSuite
from thresher.train.arch import DistanceWeighted, Spade, build
from thresher.train.arch.kds import DistanceWeightedSAE
from thresher.train.arch.simplex import project_on_simplex
from thresher.train.arch.spade import SpadeSAE
from thresher.train.codes import densify
from thresher.train.loop import fit
from thresher.train.optimizer import OptimizerConfig, make_adam
from thresher.train.protocol import SAE

D_SAE = 40
NEW = [
    Spade(d_sae=64, l0=4.0),
    DistanceWeighted(d_sae=64, l0=4.0, unrolled=4),
    DistanceWeighted(d_sae=64, l0=4.0, unrolled=4, constraint="positive"),
]


class TestSpade(CoderSuite):
    def build(self, d_in: int, seed: int) -> SAE:
        return build(Spade(d_sae=D_SAE), d_in, seed)


class TestDistanceWeightedOnTheSimplex(CoderSuite):
    def build(self, d_in: int, seed: int) -> SAE:
        return build(DistanceWeighted(d_sae=D_SAE, l1=0.1), d_in, seed)


class TestDistanceWeightedAboveZero(CoderSuite):
    def build(self, d_in: int, seed: int) -> SAE:
        return build(DistanceWeighted(d_sae=D_SAE, l1=0.1, constraint="positive"), d_in, seed)


def plant(n_rows: int, *, d_in: int = 16, seed: int = 0) -> Tensor:
    return torch.randn(n_rows, d_in, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("config", NEW, ids=lambda config: f"{config.kind}-{getattr(config, 'constraint', '')}")
def test_training_never_waits_for_a_device(config: Spade | DistanceWeighted) -> None:
    sae = build(config, 16, 0)
    module = cast(nn.Module, sae).to("meta")
    batches = [torch.empty(32, 16, device="meta") for _ in range(3)]
    records = list(fit(sae, batches, make_adam(module, OptimizerConfig()), learning_rate=lambda _: 1e-3, clip=1.0))
    assert all(part.device.type == "meta" and part.shape == () for record in records for part in record.parts.values())


@pytest.mark.parametrize("shape", [(1, 1), (7, 33), (130, 257)])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_the_projection_is_the_nearest_point_of_the_simplex(shape: tuple[int, int], scale: float) -> None:
    """By the variational inequality <v - z, e_j - z> <= 0 at every corner e_j."""
    v = scale * plant(shape[0], d_in=shape[1]).double()
    z = project_on_simplex(v)
    assert bool((z >= 0).all())
    torch.testing.assert_close(z.sum(1), torch.ones(shape[0], dtype=torch.float64))
    at_corners = (v - z) - ((v - z) * z).sum(1, keepdim=True)
    assert at_corners.max() <= 1e-9


def test_the_projection_has_the_gradient_of_its_definition() -> None:
    v = plant(6, d_in=9).double().requires_grad_()
    assert torch.autograd.gradcheck(project_on_simplex, (v,))
    z = project_on_simplex(v)
    given = plant(6, d_in=9, seed=1).double()
    (found,) = torch.autograd.grad(z, v, given)
    active = z > 0
    mean = (given * active).sum(1, keepdim=True) / active.sum(1, keepdim=True)
    torch.testing.assert_close(found, torch.where(active, given - mean, 0))


def test_equal_entries_share_and_a_far_larger_one_takes_all() -> None:
    v = torch.tensor([[2.0, 2.0, 2.0, 2.0], [5.0, 1.0, 0.0, 0.0]])
    assert project_on_simplex(v).tolist() == [[0.25] * 4, [1.0, 0.0, 0.0, 0.0]]


def test_spade_codes_are_the_published_ones_at_the_sizes_of_the_atoms() -> None:
    """sparsemax(-lambda ||x - w_i||^2), with the distances written out (arXiv 2503.01822)."""
    sae, x = build(Spade(d_sae=D_SAE), 16, 0), plant(30).double()
    assert isinstance(sae, SpadeSAE)
    sae.double()
    with torch.no_grad():
        sae.prototypes.add_(plant(D_SAE, seed=4))
        sae.raw_sharpness.fill_(-1.0)
    distances = (x[:, None] - sae.prototypes).square().sum(2)
    z = project_on_simplex(-functional.softplus(sae.raw_sharpness) * distances)
    torch.testing.assert_close(densify(sae.encode(x), D_SAE), z * sae.log_size.exp())
    assert 1 < float((z > 0).sum(1).double().mean()) < D_SAE / 2
    x_hat = z @ (sae.dictionary * sae.log_size.exp()[:, None])
    loss, _ = sae.loss(x)
    torch.testing.assert_close(loss, (x - x_hat).square().mean() + 1e-3 * (z * distances).sum(1).mean() / 16)


@pytest.mark.parametrize("constraint", ["simplex", "positive"])
def test_enough_iterations_reach_the_minimum_of_the_objective(constraint: str) -> None:
    """No feasible direction descends: the gradient at z is at least the multiplier everywhere and equals it on the support."""
    config = DistanceWeighted(d_sae=D_SAE, l1=0.05, unrolled=4000, constraint=constraint)
    sae, x = build(config, 16, 0), plant(5).double()
    assert isinstance(sae, DistanceWeightedSAE)
    sae.double()
    points = (sae.dictionary * sae.log_size.exp()[:, None]).detach()
    with torch.no_grad():
        z, distances = sae.unroll(x, points)
        gradient = (z @ points - x) @ points.T + 0.05 * distances
        active = z > 0
        assert bool(active.any(1).all())
        multiplier = (gradient * z).sum(1, keepdim=True) if constraint == "simplex" else torch.zeros(5, 1)
    torch.testing.assert_close(distances, (x[:, None] - points).square().sum(2))
    assert (gradient - multiplier).min() > -1e-4
    assert ((gradient - multiplier) * active).abs().max() < 1e-4
    if constraint == "simplex":
        torch.testing.assert_close(z.sum(1), torch.ones(5, dtype=torch.float64))


def test_distances_keep_codes_local() -> None:
    """The larger their weight, the nearer the points that a row uses."""
    x, used = plant(50), []
    for l1 in (0.0, 0.1, 1.0):
        sae = build(DistanceWeighted(d_sae=D_SAE, l1=l1, unrolled=100), 16, 0)
        assert isinstance(sae, DistanceWeightedSAE)
        with torch.no_grad():
            z, distances = sae.unroll(x, sae.dictionary * sae.log_size.exp()[:, None])
        used.append(float((z * distances).sum(1).mean()))
    assert used == sorted(used, reverse=True)
    assert used[2] < 0.9 * used[0]


def test_nonsense_is_refused_with_its_value() -> None:
    with pytest.raises(ConfigError, match="unrolled=0: "):
        DistanceWeighted(unrolled=0)
    with pytest.raises(ConfigError, match="l1=-1"):
        Spade(l1=-1.0)
