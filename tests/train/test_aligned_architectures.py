"""Crosscoders and transcoders keep the laws of `SAE`, and their own."""

import pytest
import torch
from torch import Tensor

from thresher.errors import ConfigError
from thresher.testing.coder import CoderSuite
from thresher.train.aligned import AlignedSAE
from thresher.train.arch import (
    BatchTopK,
    BatchTopKCrosscoder,
    BatchTopKTranscoder,
    Crosscoder,
    JumpReluTranscoder,
    Relu,
    ReluTranscoder,
    Transcoder,
    build,
)
from thresher.train.arch.crosscoder import BatchTopKCrosscoderSAE, CrosscoderSAE, block_norms, relative_norms
from thresher.train.arch.transcoder import Transcoding
from thresher.train.codes import densify
from thresher.train.protocol import SAE

WIDTHS = (6, 10)
D_SAE = 40


class TestCrosscoder(CoderSuite):
    def build(self, d_in: int, seed: int) -> SAE:
        return build(Crosscoder(d_sae=D_SAE, l1=0.1, widths=WIDTHS), d_in, seed)


class TestCrosscoderWithWantedL0(CoderSuite):
    fvu_at_most = 0.8

    def build(self, d_in: int, seed: int) -> SAE:
        return build(Crosscoder(d_sae=D_SAE, l0=4.0, widths=WIDTHS), d_in, seed)


class TestBatchTopKCrosscoder(CoderSuite):
    def build(self, d_in: int, seed: int) -> SAE:
        return build(BatchTopKCrosscoder(d_sae=D_SAE, k=3.5, widths=WIDTHS), d_in, seed)


class TestTranscoder(CoderSuite):
    """The target is a function of the input: the planted row's two halves hold the same two directions."""

    fvu_at_most = 0.6

    def build(self, d_in: int, seed: int) -> SAE:
        return build(Transcoder(d_sae=D_SAE, k=4, widths=WIDTHS), d_in, seed)

    def given(self, x: Tensor) -> Tensor:
        return x[:, : WIDTHS[0]]

    def wanted(self, x: Tensor) -> Tensor:
        return x[:, WIDTHS[0] :]

    def reconstruct(self, sae: SAE, x: Tensor) -> Tensor:
        assert isinstance(sae, Transcoding)
        return sae.transcode(x)[1]


class TestSkipTranscoder(TestTranscoder):
    def build(self, d_in: int, seed: int) -> SAE:
        return build(Transcoder(d_sae=D_SAE, k=4, skip=True, widths=WIDTHS), d_in, seed)


class TestReluTranscoder(TestTranscoder):
    fvu_at_most = 0.8

    def build(self, d_in: int, seed: int) -> SAE:
        return build(ReluTranscoder(d_sae=D_SAE, l0=4.0, widths=WIDTHS), d_in, seed)


class TestBatchTopKTranscoder(TestTranscoder):
    def build(self, d_in: int, seed: int) -> SAE:
        return build(BatchTopKTranscoder(d_sae=D_SAE, k=4.0, skip=True, widths=WIDTHS), d_in, seed)


class TestJumpReluTranscoder(TestTranscoder):
    fvu_at_most = 0.8

    def build(self, d_in: int, seed: int) -> SAE:
        return build(JumpReluTranscoder(d_sae=D_SAE, l0=4.0, widths=WIDTHS), d_in, seed)


class TestTranscoderWithDeadAtoms(TestTranscoder):
    def build(self, d_in: int, seed: int) -> SAE:
        return build(Transcoder(d_sae=D_SAE, k=4, widths=WIDTHS, dead_after=300, aux=0.1), d_in, seed)


def plant(n_rows: int, *, d_in: int = 16, seed: int = 0) -> Tensor:
    return torch.randn(n_rows, d_in, generator=torch.Generator().manual_seed(seed))


def make_crosscoder() -> CrosscoderSAE:
    sae = build(Crosscoder(d_sae=D_SAE, l1=0.7, widths=WIDTHS), 16, 0)
    assert isinstance(sae, CrosscoderSAE)
    return sae


def test_the_loss_does_not_depend_on_how_a_contribution_is_shared_between_code_and_atom() -> None:
    """The published loss, written out for atoms of any norm, is the same for d_j / c and c z_j: unit norm loses nothing."""
    sae, x = make_crosscoder(), plant(50)
    factors = 0.5 + torch.rand(D_SAE, generator=torch.Generator().manual_seed(1))
    activations, atoms = sae.preactivate(x).relu() * factors, sae.dictionary / factors[:, None]
    blocks = zip(x.split(WIDTHS, 1), (activations @ atoms + sae.bias).split(WIDTHS, 1), strict=True)
    error = sum((row - row_hat).square().sum(1) for row, row_hat in blocks)
    norms = sum(part.norm(dim=1) for part in atoms.split(WIDTHS, 1))
    published = (error + 0.7 * (activations * norms).sum(1)).mean() / 16
    torch.testing.assert_close(sae.loss(x)[0], published, rtol=1e-5, atol=1e-6)


def test_an_atom_of_one_block_pays_what_it_pays_in_a_dictionary_of_its_own() -> None:
    """With all atoms in the first block the loss is that of a ReLU SAE on rows whose second block no code reaches."""
    sae, x = make_crosscoder(), plant(50)
    with torch.no_grad():
        sae.dictionary[:, WIDTHS[0] :] = 0
        sae.constrain()
    plain = build(Relu(d_sae=D_SAE, l1=0.7), 16, 0)
    plain.load_state_dict(sae.state_dict())
    torch.testing.assert_close(sae.loss(x)[0], plain.loss(x)[0])


def test_an_atom_that_spreads_over_blocks_pays_more() -> None:
    """By the square root of two for equal parts in two blocks."""
    sae = make_crosscoder()
    with torch.no_grad():
        sae.dictionary[0] = torch.cat([torch.ones(6) / 12**0.5, torch.ones(10) / 20**0.5])
    assert float(block_norms(sae.dictionary.detach(), WIDTHS)[0].sum()) == pytest.approx(2**0.5)


def test_relative_norms_say_whose_an_atom_is() -> None:
    atoms = torch.zeros(3, 16)
    atoms[0, 2], atoms[1, 9], atoms[2, 0], atoms[2, 15] = 1, 1, 0.6, 0.6
    expected = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    torch.testing.assert_close(relative_norms(atoms, WIDTHS), expected)


def test_selection_over_a_batch_counts_the_norms_of_the_blocks() -> None:
    """Kept are those with the largest value times sum of norms; where all atoms lie in one block, those of BatchTopK."""
    sae, x = build(BatchTopKCrosscoder(d_sae=D_SAE, k=2.0, widths=WIDTHS), 16, 0), plant(30)
    assert isinstance(sae, BatchTopKCrosscoderSAE)
    outputs = sae.preactivate(x)
    weighed = outputs.relu() * block_norms(sae.dictionary, WIDTHS).sum(1)
    smallest = weighed.flatten().topk(60).values[-1]
    kept, found = sae.select(outputs)
    assert torch.equal(kept > 0, weighed >= smallest)
    assert found == pytest.approx(float(smallest.detach()))
    torch.testing.assert_close(kept[kept > 0], outputs[kept > 0])
    with torch.no_grad():
        sae.dictionary[:, WIDTHS[0] :] = 0
        sae.constrain()
    plain = build(BatchTopK(d_sae=D_SAE, k=2.0), 16, 0)
    plain.load_state_dict(sae.state_dict())
    torch.testing.assert_close(sae.loss(x)[0], plain.loss(x)[0])


def test_a_skip_connection_starts_at_nothing_and_then_carries_what_is_linear() -> None:
    """Of a linear target hardly anything is left for the code."""
    sae = build(Transcoder(d_sae=8, k=1, skip=True, widths=(6, 10)), 16, 0)
    without = build(Transcoder(d_sae=8, k=1, widths=(6, 10)), 16, 0)
    assert isinstance(sae, Transcoding)
    given = plant(200, d_in=6)
    x = torch.cat([given, given @ plant(6, d_in=10, seed=1)], dim=1)
    assert sae.loss(x)[0].equal(without.loss(x)[0])
    with torch.no_grad():
        sae.skip.copy_(plant(6, d_in=10, seed=1).T)
        sae.encoder_bias.fill_(-100)
    assert float(sae.loss(x)[0].detach()) < 1e-9
    assert not sae.decode(sae.encode(given)).any()
    torch.testing.assert_close(sae.transcode(given)[1], x[:, 6:])


@pytest.mark.parametrize("config", [Crosscoder(d_sae=8, widths=WIDTHS), Transcoder(d_sae=8, k=2, widths=WIDTHS)])
def test_they_say_which_blocks_they_read_and_give(config: Crosscoder | Transcoder) -> None:
    sae = build(config, 16, 0)
    assert isinstance(sae, AlignedSAE)
    expected = ((0, 1), (0, 1)) if config.kind == "crosscoder" else ((0,), (1,))
    assert (sae.encoded, sae.decoded, sae.widths) == (*expected, WIDTHS)
    assert not isinstance(build(Relu(d_sae=8), 16, 0), AlignedSAE)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Crosscoder(d_sae=8), r"widths=\[\]"),
        (Crosscoder(d_sae=8, widths=(6, 11)), r"widths=\[6, 11\].*16 together"),
        (BatchTopKCrosscoder(d_sae=8, k=2.0, widths=(16,)), "at least two hook points"),
        (Transcoder(d_sae=8, k=2, widths=(4, 4, 8)), "its input and its target"),
    ],
)
def test_widths_that_are_none_are_refused(config, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(config, 16, 0)


def test_wanted_l0_sets_penalty_or_k() -> None:
    assert Crosscoder(d_sae=64).with_l0(3.6).l0 == 3.6
    assert BatchTopKCrosscoder(d_sae=64).with_l0(3.6).k == 3.6
    assert Transcoder(d_sae=64).with_l0(3.6).k == 4


def test_crosscoder_codes_reach_both_blocks() -> None:
    sae, x = make_crosscoder(), plant(20)
    codes, x_hat = sae.transcode(x)
    torch.testing.assert_close(x_hat, densify(codes, D_SAE) @ sae.dictionary + sae.bias, rtol=1e-5, atol=1e-5)
