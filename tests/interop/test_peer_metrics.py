"""Measures equal overcomplete's and SAEBench's where those compute what they name, and differ from them where not."""

import importlib.util
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import peers
import pytest
import torch
from scipy.sparse import csr_array
from torch import Tensor

from thresher.analyze.metrics.dictionary import compare_encoder, measure_coherence
from thresher.analyze.metrics.energy import measure_energies
from thresher.analyze.metrics.reconstruction import Reconstruction, measure_reconstruction, sum_reconstruction
from thresher.analyze.metrics.sparsity import measure_density, measure_rows
from thresher.analyze.metrics.stability import match_dictionaries

pytestmark = pytest.mark.interop

Draw = Callable[..., tuple[Tensor, Tensor]]
Need = Callable[[str], None]
WIDTH, ATOMS = 24, 130


def draw_codes(rows: int = 60) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    values = torch.rand(rows, ATOMS, generator=generator, dtype=torch.float64)
    return values * (torch.rand(rows, ATOMS, generator=generator) < 0.1)


def measure(x: Tensor, x_hat: Tensor, l0: np.ndarray) -> Reconstruction:
    rows = np.arange(len(x))
    return measure_reconstruction(sum_reconstruction(x, x_hat, l0, rows, np.ones((1, len(x)))))


@pytest.fixture(scope="module")
def saebench() -> ModuleType:
    """SAEBench's core evaluation, or a skip where it or something it imports is missing."""
    if importlib.util.find_spec("sae_bench") is None:
        pytest.skip("sae-bench is not installed: pip install sae-bench")
    try:
        return peers.import_peer("sae_bench.evals.core.main")
    except ImportError as error:
        pytest.skip(f"sae-bench cannot be imported: {error}")


def test_overcomplete_has_the_same_sparsity(need: Need) -> None:
    """Its `l0` is a mean share, ours a count; its sums have 1e-6 added to what they divide by."""
    need("overcomplete")
    metrics, z = peers.import_peer("overcomplete.metrics"), draw_codes()
    ours = measure_rows(csr_array(z.numpy()))
    assert ours.l0.mean() / ATOMS == pytest.approx(float(metrics.l0(z)), rel=1e-6)
    np.testing.assert_allclose(ours.l1, metrics.l1(z, 1).numpy(), rtol=1e-12)
    np.testing.assert_allclose(ours.hoyer, metrics.hoyer(z).numpy(), atol=1e-5)
    np.testing.assert_allclose(ours.kurtosis, metrics.kappa_4(z).numpy(), rtol=1e-5)


def test_overcomplete_r2_is_the_variant_with_the_scalar_mean(draw: Draw, need: Need) -> None:
    need("overcomplete")
    x = draw(rows=200)[0] + 1
    x_hat = x.mean(dim=0).expand_as(x).contiguous()
    ours = measure(x, x_hat, np.zeros(200, dtype=np.int64))
    theirs = float(peers.import_peer("overcomplete.metrics").r2_score(10 * x, 10 * x_hat))
    assert ours.r2_scalar_mean[0] == pytest.approx(theirs, abs=1e-4)
    assert ours.r2[0] == pytest.approx(0, abs=1e-9)


def test_overcomplete_has_the_same_energy_coherence_and_matching(draw: Draw, need: Need) -> None:
    need("overcomplete")
    metrics, z = peers.import_peer("overcomplete.metrics"), draw_codes()
    one, other = draw()[1], draw(seed=1)[1]
    codes, norm = z.numpy(), np.linalg.norm(one.numpy(), axis=1)
    energy = measure_energies(60.0, codes.sum(0), (codes**2).sum(0), np.zeros(ATOMS), norm)
    np.testing.assert_allclose(energy.length, metrics.energy_of_codes(z, one).numpy(), rtol=1e-9)
    assert measure_coherence(one.numpy(), 10).largest == pytest.approx(metrics.dictionary_collinearity(one)[0], rel=1e-5)
    loss = metrics.cosine_hungarian_loss(one, other)
    assert match_dictionaries(one.numpy(), other.numpy()).stability == pytest.approx(1 - loss / ATOMS, rel=1e-9)


def evaluate(saebench: ModuleType, x: Tensor, x_hat: Tensor, z: Tensor) -> tuple[dict[str, Any], dict[str, Any]]:
    """SAEBench's function on given activations: two prompts whose tokens have them."""
    rows = {"there": x.reshape(2, -1, WIDTH)}
    sae = SimpleNamespace(
        cfg=SimpleNamespace(hook_name="there", hook_layer=0, hook_head_index=None, d_sae=ATOMS),
        device="cpu",
        encode=lambda _: z.reshape(2, -1, ATOMS),
        decode=lambda _: x_hat.reshape(2, -1, WIDTH),
    )
    model = SimpleNamespace(run_with_cache=lambda *_, **__: (None, dict(rows)))
    tokens = SimpleNamespace(get_batch_tokens=lambda _: torch.zeros(2, len(x) // 2, dtype=torch.int64))
    return saebench.get_sparsity_and_variance_metrics(sae, model, tokens, 1, True, True, True, True, 2, {})


def test_saebench_has_the_same_shrinkage_cosine_l0_and_densities(saebench: ModuleType, draw: Draw) -> None:
    """Not its `explained_variance`, whose mean is squared before it is averaged: predicting the mean would score high."""
    z, x = draw_codes(), 3 * draw(rows=60)[0] + 1
    x_hat = 0.9 * x + 0.1 * draw(rows=60, seed=2)[0]
    scalars, features = evaluate(saebench, x, x_hat, z)
    fired = (z != 0).numpy()
    ours = measure(x, x_hat, fired.sum(axis=1))
    assert ours.length_ratio[0] == pytest.approx(scalars["l2_ratio"], rel=1e-9)
    assert ours.bias[0] == pytest.approx(scalars["relative_reconstruction_bias"], rel=1e-9)
    assert ours.cosine[0] == pytest.approx(scalars["cossim"], rel=1e-9)
    assert ours.l0[0] == pytest.approx(scalars["l0"], rel=1e-6)
    prompts = fired.reshape(2, -1, ATOMS).any(axis=1).sum(axis=0)
    density = measure_density(fired.sum(axis=0).astype(float), prompts.astype(float), 60.0)
    np.testing.assert_allclose(fired.mean(axis=0), features["feature_density"], rtol=1e-6)
    np.testing.assert_allclose(density.rows_per_record, features["consistent_activation_heuristic"], rtol=1e-6)


def test_saebench_explained_variance_credits_the_mean_and_ours_does_not(saebench: ModuleType, draw: Draw) -> None:
    x = draw(rows=60)[0] + 1
    x_hat = x.mean(dim=0).expand_as(x).contiguous()
    scalars, _ = evaluate(saebench, x, x_hat, draw_codes())
    assert scalars["explained_variance"] > 0.5
    assert measure(x, x_hat, np.zeros(60, dtype=np.int64)).r2[0] == pytest.approx(0, abs=1e-9)


def test_saebench_has_the_same_cosines_of_weights(saebench: ModuleType, draw: Draw) -> None:
    dictionary, encoder = draw()[1], draw(seed=3)[1]
    sae = SimpleNamespace(W_enc=encoder.T.contiguous(), W_dec=dictionary, cfg=SimpleNamespace(d_sae=ATOMS))
    found = saebench.get_featurewise_weight_based_metrics(sae)
    np.testing.assert_allclose(
        compare_encoder(encoder.numpy(), dictionary.numpy()), found["encoder_decoder_cosine_sim"], rtol=1e-6
    )
    np.testing.assert_allclose(
        measure_coherence(dictionary.numpy(), 5).most_similar, found["max_decoder_cosine_sim"], rtol=1e-9
    )
