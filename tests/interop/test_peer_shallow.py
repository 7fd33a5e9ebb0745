"""SAELens' gated and AbsTopK SAEs give the same codes, reconstructions and losses at equal parameters."""

from collections.abc import Callable

import peers
import pytest
import torch
from torch import Tensor

from thresher.train.arch import AbsTopK, Gated, build
from thresher.train.arch.abs_topk import AbsTopKSAE
from thresher.train.arch.gated import GatedSAE
from thresher.train.kernels import densify

pytestmark = pytest.mark.interop

Draw = Callable[..., tuple[Tensor, Tensor]]
Need = Callable[[str], None]


def perturb(sae: torch.nn.Module) -> None:
    """Leave the symmetric start: every parameter but the dictionary gets its own numbers."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            if name != "dictionary":
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("l1", [0.0, 0.4])
def test_saelens_gated_has_the_same_codes_and_loss(l1: float, draw: Draw, need: Need) -> None:
    """SAELens sums over dimensions, we take their mean. Its auxiliary loss trains the decoder too; ours, as published, not."""
    need("saelens")
    x, _ = draw()
    ours = build(Gated(d_sae=130, l1=l1), 24, 0)
    assert isinstance(ours, GatedSAE)
    perturb(ours.double())
    module = peers.import_peer("sae_lens.saes.gated_sae")
    settings = module.GatedTrainingSAEConfig(d_in=24, d_sae=130, l1_coefficient=l1, dtype="float64")
    theirs = module.GatedTrainingSAE(settings)
    theirs.W_enc.data, theirs.W_dec.data = ours.encoder.T.detach().clone(), ours.dictionary.detach().clone()
    theirs.b_gate.data, theirs.b_dec.data = ours.encoder_bias.detach().clone(), ours.bias.detach().clone()
    theirs.r_mag.data, theirs.b_mag.data = ours.log_gain.detach().clone(), ours.magnitude_bias.detach().clone()
    codes = ours.encode(x)
    torch.testing.assert_close(densify(codes, 130), theirs.encode(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(ours.decode(codes), theirs.decode(theirs.encode(x)), rtol=0, atol=1e-12)
    step_input = peers.import_peer("sae_lens.saes.sae").TrainStepInput(
        sae_in=x, coefficients={"l1": l1}, dead_neuron_mask=None, n_training_steps=0, is_logging_step=False
    )
    loss = theirs.training_forward_pass(step_input).loss
    torch.testing.assert_close(24 * ours.loss(x)[0], loss, rtol=1e-6, atol=0)


def test_saelens_abs_topk_has_the_same_codes(draw: Draw, need: Need) -> None:
    need("saelens")
    x, _ = draw()
    ours = build(AbsTopK(d_sae=130, k=7), 24, 0)
    assert isinstance(ours, AbsTopKSAE)
    perturb(ours.double())
    module = peers.import_peer("sae_lens.saes.abstopk_sae")
    settings = module.AbsTopKSAEConfig(d_in=24, d_sae=130, k=7, dtype="float64")
    theirs = module.AbsTopKSAE(settings)
    theirs.W_enc.data, theirs.W_dec.data = ours.encoder.T.detach().clone(), ours.dictionary.detach().clone()
    theirs.b_enc.data, theirs.b_dec.data = ours.encoder_bias.detach().clone(), ours.bias.detach().clone()
    dense = theirs.encode(x)
    assert (dense < 0).any()
    torch.testing.assert_close(densify(ours.encode(x), 130), dense, rtol=0, atol=1e-12)
    torch.testing.assert_close(ours.decode(ours.encode(x)), theirs.decode(dense), rtol=0, atol=1e-12)
