"""The laws of codes and of sparse autoencoders, as classes that a test subclasses."""

from typing import cast

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from thresher.train.classical import FittedSAE
from thresher.train.codes import Codes, count_active, densify
from thresher.train.loop import fit
from thresher.train.protocol import SAE


class CodeSuite:
    """The laws of whatever encodes and decodes. Subclass it in a test and override `build`; `FittedSuite` and `CoderSuite`
    add those of fitting and of training."""

    d_in = 16
    """Width of a row of training."""
    n_rows = 256
    fvu_at_most = 0.5
    """Unexplained fraction of variance of planted data that must be reached."""

    def build(self, d_in: int, seed: int) -> SAE:
        """A small untrained module, about twice as many atoms as `d_in`, that can use 2 to 4 atoms per row."""
        raise NotImplementedError

    def prepare(self, sae: SAE) -> None:
        """Bring a new module to where its codes are no longer those of random atoms."""
        raise NotImplementedError

    def given(self, x: Tensor) -> Tensor:
        """What `encode` reads of rows of training: all of them, unless it reads one of several blocks."""
        return x

    def wanted(self, x: Tensor) -> Tensor:
        """What reconstructions of rows of training are compared with: the rows, unless `decode` gives one of several blocks."""
        return x

    def reconstruct(self, sae: SAE, x: Tensor) -> Tensor:
        """What the module makes of rows that `encode` reads."""
        return sae.decode(sae.encode(x))

    def plant(self, seed: int, n_rows: int | None = None) -> Tensor:
        """Centred rows of mean square 1, each a sum of 2 of `d_in` orthogonal directions with positive coefficients."""
        generator = torch.Generator().manual_seed(seed)
        n_rows = self.n_rows if n_rows is None else n_rows
        chosen = torch.rand(n_rows, self.d_in, generator=generator).topk(2, dim=1).indices
        values = 1 + torch.rand(n_rows, 2, generator=generator)
        basis = torch.linalg.qr(torch.randn(self.d_in, self.d_in, generator=torch.Generator().manual_seed(7)))[0]
        x = (basis[chosen] * values[:, :, None]).sum(1)
        mean = 1.5 * 2 / self.d_in * basis.sum(0)
        return (x - mean) * (self.d_in / (2 * (1.5**2 + 1 / 12) - mean.square().sum())).sqrt()

    def test_widths_are_those_of_the_dictionary(self) -> None:
        """`d_in` and `d_sae` describe what is read and `dictionary`; codes and reconstructions have one row per row."""
        sae = self.build(self.d_in, 0)
        given, wanted = self.given(self.plant(0)), self.wanted(self.plant(0))
        codes = sae.encode(given)
        assert sae.dictionary.shape == (sae.d_sae, wanted.shape[1])
        assert sae.d_in == given.shape[1]
        assert codes.indices.shape == codes.values.shape
        assert sae.decode(codes).shape == wanted.shape

    def test_decoded_codes_are_the_reconstruction_of_the_loss(self) -> None:
        """What `loss` reports about a batch that it has observed is what `encode` and `decode` do to it."""
        sae = self.build(self.d_in, 0)
        x = self.plant(0)
        _, stats = sae.loss(x)
        sae.observe(stats)
        given = self.given(x)
        error = (self.wanted(x) - self.reconstruct(sae, given)).square().mean()
        torch.testing.assert_close(error.detach(), stats.parts["reconstruction"], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(count_active(sae.encode(given)).float().mean(), stats.parts["l0"], rtol=1e-4, atol=1e-6)

    def test_fired_marks_the_atoms_of_the_codes(self) -> None:
        """`Stats.fired` is the support of the batch's codes."""
        sae = self.build(self.d_in, 0)
        x = self.plant(0)
        _, stats = sae.loss(x)
        sae.observe(stats)
        assert torch.equal(stats.fired, (densify(sae.encode(self.given(x)), sae.d_sae) != 0).any(0))

    def test_loss_changes_no_state(self) -> None:
        """Two calls of `loss` give the same number and leave the state dict as it was."""
        sae = self.build(self.d_in, 0)
        before = {name: value.clone() for name, value in cast(nn.Module, sae).state_dict().items()}
        x = self.plant(0)
        assert sae.loss(x)[0].equal(sae.loss(x)[0])
        after = cast(nn.Module, sae).state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before)

    def test_encoding_is_deterministic(self) -> None:
        """The same rows give the same codes, bit for bit."""
        sae = self.build(self.d_in, 0)
        x = self.given(self.plant(0))
        assert all(torch.equal(a, b) for a, b in zip(sae.encode(x), sae.encode(x), strict=True))

    def test_a_code_depends_on_its_row_only(self) -> None:
        """Encoding in parts or in another order gives the same codes."""
        sae = self.build(self.d_in, 0)
        self.prepare(sae)
        cast(nn.Module, sae).double()
        x = self.given(self.plant(0)).double()
        whole = densify(sae.encode(x), sae.d_sae)
        parts = torch.cat([densify(sae.encode(part), sae.d_sae) for part in x.split(7)])
        torch.testing.assert_close(parts, whole, rtol=1e-9, atol=1e-9)
        turned = densify(sae.encode(x.flip(0)), sae.d_sae).flip(0)
        torch.testing.assert_close(turned, whole, rtol=1e-9, atol=1e-9)

    @pytest.mark.parametrize("k", [1, 3])
    def test_at_most_k_atoms_are_active_when_asked(self, k: int) -> None:
        """`encode(x, k)` needs no retraining."""
        sae = self.build(self.d_in, 0)
        self.prepare(sae)
        codes = sae.encode(self.given(self.plant(0)), k)
        assert int(count_active(codes).max()) <= k
        assert codes.indices.shape[1] <= k

    def test_padding_has_value_zero_and_index_zero(self) -> None:
        """An entry without a value names no atom; every index is one of an atom."""
        sae = self.build(self.d_in, 0)
        codes = sae.encode(self.given(torch.cat([self.plant(0), torch.zeros(3, self.d_in)])))
        assert bool((codes.indices[codes.values == 0] == 0).all())
        assert 0 <= int(codes.indices.min()) <= int(codes.indices.max()) < sae.d_sae

    @pytest.mark.parametrize("n_rows", [0, 1])
    def test_few_rows_are_encoded(self, n_rows: int) -> None:
        """No rows give no codes, one row one."""
        sae = self.build(self.d_in, 0)
        x = self.plant(0, n_rows)
        codes = sae.encode(self.given(x))
        assert codes.indices.shape[0] == n_rows
        assert sae.decode(codes).shape == self.wanted(x).shape

    def test_the_state_dict_holds_the_codes(self) -> None:
        """A module of another seed that loads it, through safetensors, encodes and decodes bit for bit."""
        sae, other = self.build(self.d_in, 0), self.build(self.d_in, 1)
        self.prepare(sae)
        _copy_state(sae, other)
        x = self.plant(0)
        codes: list[Codes] = [each.encode(self.given(x)) for each in (sae, other)]
        assert all(torch.equal(a, b) for a, b in zip(*codes, strict=True))
        assert torch.equal(sae.decode(codes[0]), other.decode(codes[1]))
        assert sae.loss(x)[0].equal(other.loss(x)[0])


class FittedSuite(CodeSuite):
    """The laws of a dictionary that is fitted once."""

    n_fitted = 1000
    """Planted rows that it is fitted to."""

    def prepare(self, sae: SAE) -> None:
        """Fit it to planted rows."""
        assert isinstance(sae, FittedSAE)
        sae.fit(self.plant(0, self.n_fitted), 3)

    def test_a_fit_depends_on_rows_and_seed_only(self) -> None:
        """Modules that started apart end equal, bit for bit."""
        first, second = self.build(self.d_in, 0), self.build(self.d_in, 1)
        self.prepare(first)
        self.prepare(second)
        states = [cast(nn.Module, sae).state_dict() for sae in (first, second)]
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])

    def test_a_fit_explains_rows_it_has_not_seen(self) -> None:
        """The unexplained fraction of variance falls, to `fvu_at_most`; atoms have unit norm, and codes at most k of them."""
        sae = self.build(self.d_in, 0)
        x = self.plant(1)
        before = float(sae.loss(x)[1].parts["fvu"])
        self.prepare(sae)
        after = float(sae.loss(x)[1].parts["fvu"])
        assert after < before
        assert after < self.fvu_at_most
        torch.testing.assert_close(sae.dictionary.norm(dim=1), torch.ones(sae.d_sae), rtol=0, atol=1e-5)


class CoderSuite(CodeSuite):
    """The laws of a sparse autoencoder that is trained by gradients."""

    n_iterations = 150
    """Iterations that `fvu_at_most` is reached in."""

    def prepare(self, sae: SAE) -> None:
        """Train it a little."""
        self.train(sae, 3)

    def train(self, sae: SAE, n_iterations: int | None = None) -> list[float]:
        """Fit to planted rows; the unexplained fraction of variance at each iteration."""
        module = cast(nn.Module, sae)
        optimizer = torch.optim.Adam([p for p in module.parameters() if p.requires_grad], lr=0.01)
        n = self.n_iterations if n_iterations is None else n_iterations
        batches = (self.plant(seed) for seed in range(n))
        return [float(step.parts["fvu"]) for step in fit(sae, batches, optimizer, learning_rate=lambda _: 0.01, clip=1.0)]

    def test_atoms_have_unit_norm_after_every_step(self) -> None:
        """`constrain` undoes what the optimizer did to the norms."""
        sae = self.build(self.d_in, 0)
        self.train(sae, 3)
        torch.testing.assert_close(sae.dictionary.norm(dim=1), torch.ones(sae.d_sae), rtol=0, atol=1e-5)

    def test_gradients_are_finite_and_reach_the_dictionary(self) -> None:
        """No parameter gets NaN or Inf; the dictionary gets a gradient without a radial part."""
        sae = self.build(self.d_in, 0)
        sae.loss(self.plant(0))[0].backward()
        gradients = [p.grad for p in cast(nn.Module, sae).parameters() if p.grad is not None]
        assert all(gradient.isfinite().all() for gradient in gradients)
        assert sae.dictionary.grad is not None
        assert sae.dictionary.grad.abs().sum() > 0
        radial = (sae.dictionary.grad * sae.dictionary).sum(1)
        torch.testing.assert_close(radial, torch.zeros_like(radial), rtol=0, atol=1e-6)

    def test_a_single_row_can_be_trained_on(self) -> None:
        """Its loss is finite."""
        sae = self.build(self.d_in, 0)
        loss, stats = sae.loss(self.plant(0, 1))
        loss.backward()
        sae.observe(stats)
        assert bool(loss.isfinite())

    def test_the_state_dict_holds_everything(self) -> None:
        """A module of another seed that loads it goes on training bit for bit."""
        sae, other = self.build(self.d_in, 0), self.build(self.d_in, 1)
        self.train(sae, 3)
        _copy_state(sae, other)
        assert self.train(sae, 3) == self.train(other, 3)

    def test_training_explains_planted_data(self) -> None:
        """The unexplained fraction of variance falls, to `fvu_at_most`."""
        found = self.train(self.build(self.d_in, 0))
        assert found[-1] < found[0]
        assert found[-1] < self.fvu_at_most


def _copy_state(sae: SAE, other: SAE) -> None:
    """Through the bytes of a safetensors file."""
    state = load(save({name: value.contiguous() for name, value in cast(nn.Module, sae).state_dict().items()}))
    cast(nn.Module, other).load_state_dict(state)
