"""Archetypal dictionaries: atoms stay near the cone of data points, whatever encodes."""

from typing import cast

import pytest
import torch
from scipy.optimize import nnls
from torch import Tensor, nn
from torch.nn import functional

from thresher.errors import ConfigError
from thresher.testing.coder import CoderSuite
from thresher.train.arch import Architecture, BatchTopK, MatchingPursuit, OrthogonalPursuit, Relu, TopK, build
from thresher.train.arch.base import Coder
from thresher.train.arch.hull import Hull, HullConfig
from thresher.train.loop import fit
from thresher.train.optimizer import OptimizerConfig, make_adam
from thresher.train.protocol import SAE

D_SAE = 40
HULL = HullConfig(delta=0.05, points=300, mixed=6)


class TestArchetypalTopK(CoderSuite):
    def build(self, d_in: int, seed: int) -> SAE:
        return build(TopK(d_sae=D_SAE, k=4, hull=HULL), d_in, seed)


class TestArchetypalMatchingPursuit(CoderSuite):
    def build(self, d_in: int, seed: int) -> SAE:
        return build(MatchingPursuit(d_sae=D_SAE, k=4, hull=HULL), d_in, seed)


def plant(n_rows: int, *, d_in: int = 16, seed: int = 0) -> Tensor:
    return torch.randn(n_rows, d_in, generator=torch.Generator().manual_seed(seed))


def train(config: Architecture, n_iterations: int = 30, rows: int = 128) -> Coder:
    sae = build(config, 16, 0)
    assert isinstance(sae, Coder)
    batches = (plant(rows, seed=seed) for seed in range(n_iterations))
    for _ in fit(sae, batches, make_adam(sae, OptimizerConfig()), learning_rate=lambda _: 0.02, clip=1.0):
        pass
    return sae


def measure_distances(sae: Coder) -> list[float]:
    """Of each atom to the cone of its points, by an exact solver."""
    hull = sae.hull
    assert hull is not None
    atoms, points = sae.dictionary.detach().double().numpy(), hull.points.double().numpy()
    return [nnls(points[chosen].T, atom)[1] for atom, chosen in zip(atoms, hull.candidates.numpy(), strict=True)]


@pytest.mark.parametrize("delta", [0.0, 0.1, 0.5])
@pytest.mark.parametrize(
    "config",
    [
        TopK(d_sae=D_SAE, k=4),
        BatchTopK(d_sae=D_SAE, k=4.0),
        Relu(d_sae=D_SAE),
        MatchingPursuit(d_sae=D_SAE, k=4),
        OrthogonalPursuit(d_sae=D_SAE, k=4),
    ],
    ids=lambda config: config.kind,
)
def test_no_atom_is_further_from_the_cone_of_its_points_than_delta(config, delta: float) -> None:
    free = train(config)
    kept = train(type(config)(**(vars(config) | {"hull": HullConfig(delta=delta, points=200, mixed=6)})))
    torch.testing.assert_close(kept.dictionary.detach().norm(dim=1), torch.ones(D_SAE))
    assert max(measure_distances(kept)) < delta + 1e-5
    assert max(measure_distances(kept)) > 0.9 * delta
    free.hull = kept.hull
    assert max(measure_distances(free)) > delta + 0.01


def test_a_hull_that_allows_everything_changes_nothing() -> None:
    """delta = 1, and atoms that are nearer than 90 degrees to their mixture."""
    config = MatchingPursuit(d_sae=D_SAE, k=4)
    free = train(config)
    kept = train(MatchingPursuit(d_sae=D_SAE, k=4, hull=HullConfig(delta=1.0, points=200, mixed=6)))
    assert torch.equal(free.dictionary, kept.dictionary)


def test_atoms_are_free_until_all_points_are_there_and_the_log_says_how_many_are_missing() -> None:
    sae = build(TopK(d_sae=D_SAE, k=4, hull=HullConfig(points=300, mixed=6)), 16, 0)
    free = build(TopK(d_sae=D_SAE, k=4), 16, 0)
    steps = []
    for one in (sae, free):
        batches = (plant(128, seed=seed) for seed in range(4))
        optimizer = make_adam(cast(nn.Module, one), OptimizerConfig())
        steps.append(fit(one, batches, optimizer, learning_rate=lambda _: 0.02))
    missing, is_same = [], []
    for step, _ in zip(*steps, strict=True):
        missing.append(int(step.parts["points_missing"]))
        is_same.append(torch.equal(sae.dictionary, free.dictionary))
    assert missing == [300, 172, 44, 0]
    assert is_same == [True, True, False, False]
    assert isinstance(sae, Coder)
    assert sae.hull is not None
    rows = torch.cat([plant(128, seed=seed) for seed in range(3)])[:300]
    torch.testing.assert_close(sae.hull.points, functional.normalize(rows, dim=1))


def test_mixtures_of_the_points_stay_where_they_are() -> None:
    """What the published W C can be, brought to unit norm, is feasible; the fit finds it (arXiv 2502.12892)."""
    hull, rows = Hull(HullConfig(delta=0.01, points=50, mixed=5), 16, 30), plant(50)
    atoms = functional.normalize(plant(30, seed=1), dim=1)
    hull.collect(rows, atoms)
    weights = torch.rand(30, 5, generator=torch.Generator().manual_seed(2))
    mixtures = functional.normalize((hull.points[hull.candidates] * weights[:, :, None]).sum(1), dim=1)
    for _ in range(20):
        atoms = mixtures.clone()
        hull.project(atoms)
    torch.testing.assert_close(atoms, mixtures, rtol=0, atol=1e-4)


def test_an_atom_opposite_to_all_its_points_comes_back_to_one() -> None:
    hull, rows = Hull(HullConfig(delta=0.0, points=8, mixed=2), 4, 3), plant(8, d_in=4).abs()
    atoms = functional.normalize(plant(3, d_in=4, seed=1).abs(), dim=1)
    hull.collect(rows, atoms)
    atoms = -atoms
    for _ in range(5):
        hull.project(atoms)
    assert bool(atoms.isfinite().all())
    assert atoms.min() > -1e-6


@pytest.mark.parametrize("fields", [{"delta": -0.1}, {"delta": 1.1}, {"points": 0}, {"points": 5, "mixed": 6}, {"mixed": 0}])
def test_nonsense_is_refused_with_its_value(fields) -> None:
    with pytest.raises(ConfigError, match=r"=.*: "):
        HullConfig(**fields)


def test_redrawing_atoms_is_refused_with_a_hull() -> None:
    with pytest.raises(ConfigError, match="redraw=4: "):
        MatchingPursuit(redraw=4, hull=HULL)
