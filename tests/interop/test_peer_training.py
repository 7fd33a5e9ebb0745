"""Gradients and training of overcomplete's MpSAE, which is dense and plain autograd, against our sparse backward."""

from collections.abc import Callable

import peers
import pytest
import torch
from torch import Tensor

from thresher.train.arch import MatchingPursuit, build
from thresher.train.kernels import Method, densify, pursue
from thresher.train.loop import fit

pytestmark = pytest.mark.interop

Draw = Callable[..., tuple[Tensor, Tensor]]
Need = Callable[[str], None]


@pytest.mark.parametrize("method", ["residual", "gram"])
@pytest.mark.parametrize(("d_in", "d_sae"), [(4, 12), (24, 130)])
def test_gradients_are_those_of_overcompletes_dense_autograd(
    method: Method, d_in: int, d_sae: int, draw: Draw, need: Need
) -> None:
    """Any use of residual, dense codes and reconstruction; in 4 dimensions atoms are picked again. Sign rule `signed`."""
    need("overcomplete")
    x, dictionary = draw(d_in=d_in, d_sae=d_sae)
    for_codes = torch.randn(len(x), d_sae, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def scalar(x: Tensor, residual: Tensor, dense: Tensor, atoms: Tensor) -> Tensor:
        return (x - dense @ atoms).square().sum() + residual.pow(3).sum() + (dense * for_codes).sum() + dense.abs().sum()

    sae = peers.make_overcomplete_mp(dictionary, 9, normalization="identity")
    theirs = x.clone().requires_grad_()
    residual, dense = sae.encode(theirs)
    weights = sae.dictionary._weights
    expected = torch.autograd.grad(scalar(theirs, residual, dense, weights), [theirs, weights])

    ours, atoms = x.clone().requires_grad_(), dictionary.clone().requires_grad_()
    codes, left = pursue(ours, atoms, 9, sign="signed", method=method)
    got = torch.autograd.grad(scalar(ours, left, densify(codes, d_sae), atoms), [ours, atoms])
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("method", ["residual", "gram"])
def test_training_with_raw_gradients_gives_overcompletes_dictionary(method: Method, draw: Draw, need: Need) -> None:
    """Adam on the gradient as it is, then atoms back to unit norm: both do the same from the same start.

    overcomplete scales by 1 / (norm + 1e-8) before each forward; we scale after each step: hence the tolerance.
    """
    need("overcomplete")
    x, dictionary = draw(rows=6 * 40, d_sae=60)
    batches = x.split(40)
    queue = iter(batches)
    sae = peers.make_overcomplete_mp(dictionary, 4)
    step = peers.make_step(sae, peers.compute_overcomplete_loss, lambda: next(queue))
    for _ in batches:
        step()
    theirs = sae.get_dictionary().detach()

    found = {}
    for gradient in ("raw", "tangent"):
        settings = MatchingPursuit(d_sae=60, k=4, sign="signed", bias=False, method=method, gradient=gradient)
        ours = build(settings, 24, 0).double()
        with torch.no_grad():
            ours.dictionary.copy_(dictionary)
        optimizer = torch.optim.Adam([p for p in ours.parameters() if p.requires_grad], lr=peers.LEARNING_RATE)
        steps = fit(ours, batches, optimizer, learning_rate=lambda _: peers.LEARNING_RATE, clip=1.0)
        assert sum(1 for _ in steps) == len(batches)
        found[gradient] = ours.dictionary.detach()
    assert (theirs - dictionary).abs().max() > 1e-3
    torch.testing.assert_close(found["raw"], theirs, rtol=0, atol=1e-6)
    assert (found["tangent"] - theirs).abs().max() > 1e-5, "the two choices of the gradient must differ"
