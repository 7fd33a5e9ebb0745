"""overcomplete's relaxed archetypal dictionaries, at unit norm, are feasible for ours: the projection leaves them in place."""

from collections.abc import Callable

import peers
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from thresher.train.arch.hull import Hull, HullConfig

pytestmark = pytest.mark.interop


@pytest.mark.parametrize("delta", [0.0, 0.2])
def test_atoms_of_overcomplete_stay_and_those_beyond_its_relaxation_move(
    delta: float, draw: Callable[..., tuple[Tensor, Tensor]], need: Callable[[str], None]
) -> None:
    """Theirs is W C + L with |L_i| <= delta; at norm n an atom is delta / n at most from the cone of its points.

    delta = 0 gives NaN there, so that it stands for no relaxation here.
    """
    need("overcomplete")
    atoms, points = draw(rows=30, d_in=24, d_sae=60)
    hull = Hull(HullConfig(delta=delta, points=60, mixed=5), 24, 30).double()
    hull.collect(points, atoms.clone())
    theirs = peers.import_peer("overcomplete.sae.archetypal_dictionary").RelaxedArchetypalDictionary(
        24, 30, points, delta=delta or 1.0, use_multiplier=True
    )
    generator = torch.Generator().manual_seed(1)
    weights = torch.rand(30, 5, generator=generator, dtype=torch.float64)
    theirs.W.data = torch.zeros(30, 60, dtype=torch.float64).scatter(1, hull.candidates, weights)
    mixtures = theirs.W.data / theirs.W.data.sum(1, keepdim=True) @ points
    theirs.Relax.data = torch.randn(30, 24, generator=generator, dtype=torch.float64)
    if delta:
        # The part of L along the mixture would change the norm; without it the distance is known.
        along = functional.normalize(mixtures, dim=1)
        theirs.Relax.data -= (theirs.Relax.data * along).sum(1, keepdim=True) * along
        theirs.Relax.data = functional.normalize(theirs.Relax.data, dim=1) * 0.9 * delta * mixtures.norm(dim=1, keepdim=True)
    else:
        theirs.Relax.data.zero_()
    found = functional.normalize(theirs.get_dictionary().detach(), dim=1)
    for _ in range(60):
        projected = found.clone()
        hull.project(projected)
    torch.testing.assert_close(projected, found, rtol=0, atol=1e-6)
    beyond = functional.normalize(found + 2 * functional.normalize(atoms, dim=1), dim=1)
    moved = beyond.clone()
    hull.project(moved)
    assert not torch.allclose(moved, beyond, atol=0.1)
