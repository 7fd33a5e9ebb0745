"""Other implementations find the same codes on one unit-norm dictionary.

What each picks: overcomplete's MpSAE the largest inner product whatever its sign (our `signed`), SAELens' matching_pursuit
the largest if positive (our `relu`). Of equal inner products they and we take the first.
"""

from collections.abc import Callable
from typing import get_args

import peers
import pytest
import torch
from torch import Tensor

from thresher.train.arch import TopK, build
from thresher.train.kernels import Method, densify, has_numba, pursue

pytestmark = pytest.mark.interop

Draw = Callable[..., tuple[Tensor, Tensor]]
Need = Callable[[str], None]
EXACT: tuple[Method, ...] = ("reference", "residual", "gram")
FAST: tuple[Method, ...] = tuple(m for m in get_args(Method) if m.startswith("numba"))


def draw_dyadic(rows: int, d_in: int, d_sae: int) -> tuple[Tensor, Tensor]:
    """Whole numbers and atoms with four entries of +-1/2, half of the atoms twice: every product is exact, so ties are."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-4, 5, (rows, d_in), generator=generator).double()
    places = torch.rand(d_sae, d_in, generator=generator).topk(4, dim=1).indices
    signs = torch.randint(2, (d_sae, 4), generator=generator).double() - 0.5
    atoms = torch.zeros(d_sae, d_in, dtype=torch.float64).scatter(1, places, signs)
    return x, torch.cat([atoms, atoms[: d_sae // 2]])


@pytest.mark.parametrize("method", EXACT)
def test_overcomplete_finds_the_same_codes_and_residual(method: Method, draw: Draw, need: Need) -> None:
    """`signed`: MpSAE has no ReLU. Its codes are dense, repeats added up; it returns the residual before them."""
    need("overcomplete")
    x, dictionary = draw()
    sae = peers.make_overcomplete_mp(dictionary, 9, normalization="identity")
    residual, dense = sae.encode(x)
    codes, ours = pursue(x, dictionary, 9, sign="signed", method=method)
    torch.testing.assert_close(densify(codes, len(dictionary)), dense.detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(ours, residual.detach(), rtol=0, atol=1e-12)


def test_overcomplete_picks_negative_coefficients_where_relu_stops(draw: Draw, need: Need) -> None:
    """With fewer atoms than dimensions all inner products can be negative: the sign rules then differ, and so do the codes."""
    need("overcomplete")
    x, dictionary = draw(d_in=24, d_sae=5)
    dense = peers.make_overcomplete_mp(dictionary, 4, normalization="identity").encode(x)[1].detach()
    assert (dense < 0).any()
    codes, _ = pursue(x, dictionary, 4, sign="signed")
    torch.testing.assert_close(densify(codes, 5), dense, rtol=0, atol=1e-12)
    assert not torch.allclose(densify(pursue(x, dictionary, 4, sign="relu")[0], 5), dense)


@pytest.mark.parametrize("d_sae", [5, 130])
@pytest.mark.parametrize("method", EXACT)
def test_saelens_finds_the_same_codes(method: Method, d_sae: int, draw: Draw, need: Need) -> None:
    """`relu`. SAELens' residual threshold is 0 and its stop at a repeated support off: it then takes exactly k steps."""
    need("saelens")
    x, dictionary = draw(d_sae=d_sae)
    dense = peers.make_saelens_mp(dictionary, 9).encode(x).detach()
    codes, _ = pursue(x, dictionary, 9, sign="relu", method=method)
    torch.testing.assert_close(densify(codes, d_sae), dense, rtol=0, atol=1e-12)


@pytest.mark.parametrize("tolerance", [0.3, 0.6])
def test_saelens_residual_threshold_is_our_relative_one_on_rows_of_unit_norm(tolerance: float, draw: Draw, need: Need) -> None:
    """Theirs is a norm, ours a fraction of the row's norm; theirs looks after a step, ours before the next."""
    need("saelens")
    x, dictionary = draw()
    dense = peers.make_saelens_mp(dictionary, 12, threshold=tolerance).encode(x).detach()
    codes, _ = pursue(x, dictionary, 12, residual_tol=tolerance)
    assert 0 < (codes.values == 0).sum() < codes.values.numel()
    torch.testing.assert_close(densify(codes, len(dictionary)), dense, rtol=0, atol=1e-12)


def test_saelens_stop_at_a_repeated_support_cuts_our_code_after_the_first_repeat(draw: Draw, need: Need) -> None:
    """SAELens adds the step that repeats an atom, then stops the row; our code of as many steps is the same."""
    need("saelens")
    x, dictionary = draw(d_sae=12)
    dense = peers.make_saelens_mp(dictionary, 12, stop_on_repeat=True).encode(x).detach()
    codes, _ = pursue(x, dictionary, 12)
    same = codes.indices[:, :, None] == codes.indices[:, None, :]
    is_repeat = same.tril(-1).any(2)
    n_repeats_before = is_repeat.cumsum(1) - is_repeat.long()
    assert (n_repeats_before > 0).any()
    cut = codes._replace(values=torch.where(n_repeats_before == 0, codes.values, 0))
    torch.testing.assert_close(densify(cut, len(dictionary)), dense, rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", EXACT)
def test_of_equal_inner_products_all_take_the_first(method: Method, need: Need) -> None:
    need("overcomplete")
    need("saelens")
    x, dictionary = draw_dyadic(65, 12, 40)
    codes, _ = pursue(x, dictionary, 6, sign="signed", method=method)
    assert codes.indices.max() < 40, "an atom's second copy comes after its first"
    dense = peers.make_overcomplete_mp(dictionary, 6, normalization="identity").encode(x)[1].detach()
    assert torch.equal(densify(codes, 60), dense)
    codes, _ = pursue(x, dictionary, 6, sign="relu", method=method)
    assert torch.equal(densify(codes, 60), peers.make_saelens_mp(dictionary, 6).encode(x).detach())


@pytest.mark.skipif(not has_numba(), reason="numba is not installed: pip install 'thresher[native]'")
@pytest.mark.parametrize("method", FAST)
def test_float32_accelerators_find_the_codes_of_both(method: Method, draw: Draw, need: Need) -> None:
    need("overcomplete")
    need("saelens")
    x, dictionary = (tensor.float() for tensor in draw(rows=130, d_in=40, d_sae=257))
    codes, _ = pursue(x, dictionary, 8, sign="signed", method=method)
    dense = peers.make_overcomplete_mp(dictionary, 8, normalization="identity").encode(x)[1].detach()
    torch.testing.assert_close(densify(codes, 257), dense, rtol=0, atol=2e-6)
    codes, _ = pursue(x, dictionary, 8, sign="relu", method=method)
    torch.testing.assert_close(densify(codes, 257), peers.make_saelens_mp(dictionary, 8).encode(x).detach(), rtol=0, atol=2e-6)


def test_peers_topk_keep_the_same_atoms_as_ours(draw: Draw, need: Need) -> None:
    """A linear encoder tied to the dictionary: the step that the benchmark compares with is the same function."""
    for peer in peers.PACKAGES:
        need(peer)
    x, dictionary = (tensor.float() for tensor in draw())
    ours = build(TopK(d_sae=len(dictionary), k=5), x.shape[1], 0)
    with torch.no_grad():
        ours.dictionary.copy_(dictionary)
        ours.encoder.copy_(dictionary)
        codes = ours.encode(x)
    dense = densify(codes, len(dictionary))
    found = [
        peers.encode_overcomplete(peers.make_overcomplete_topk(dictionary, 5), x),
        peers.encode_saelens(peers.make_saelens_topk(dictionary, 5), x),
    ]
    values, indices = peers.encode_sparsify(peers.make_sparsify_topk(dictionary, 5), x)
    found.append(torch.zeros_like(dense).scatter(1, indices, values.detach()))
    for codes_of_peer in found:
        torch.testing.assert_close(dense.detach(), codes_of_peer.detach(), rtol=0, atol=1e-5)
