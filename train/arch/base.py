"""What the architectures share: the dictionary, the decoder, idle atoms, the linear encoder and its auxiliary loss."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from thresher.config import config
from thresher.errors import ConfigError
from thresher.train.arch.batch import WholeBatch
from thresher.train.arch.hull import Hull, HullConfig
from thresher.train.decoder import Decoder
from thresher.train.kernels import Codes, sparse_decode, sparse_encode
from thresher.train.protocol import Stats

TANGENT_BLOCK = 2**17
"""Numbers projected at once on a CPU: 0.5 MB of fp32, so that all three passes but the first stay in the cache.

With one block for all, [16384, 768] took 57 ms on one core of an AMD EPYC, two thirds of it for fresh memory; so, 31 ms.
"""


@config
class Dictionary:
    """Fields of every architecture."""

    d_sae: int = 4096
    """Dictionary size: number of atoms."""
    dead_after: int = 1_000_000
    """An atom that has not fired for this many training rows counts as dead."""
    hull: HullConfig | None = None
    """Keep atoms near mixtures of data points (archetypal dictionary); free when not given."""

    def __post_init__(self) -> None:
        if self.d_sae < 1:
            raise ConfigError(f"d_sae={self.d_sae}: a dictionary needs at least one atom")
        if self.dead_after < 1:
            raise ConfigError(f"dead_after={self.dead_after}: count at least one row")


class Coder(Decoder):
    """A unit-norm dictionary, a decoder with bias, and a count of how long each atom has been idle."""

    idle: Tensor

    def __init__(self, d_in: int, settings: Dictionary, generator: torch.Generator) -> None:
        """Draw the atoms uniformly on the sphere; the bias starts at zero (centring is the normaliser's work)."""
        super().__init__()
        atoms = torch.randn(settings.d_sae, d_in, generator=generator)
        self.register_parameter("dictionary", nn.Parameter(functional.normalize(atoms, dim=1)))
        self.bias = nn.Parameter(torch.zeros(d_in))
        self.dead_after = settings.dead_after
        self.batch = WholeBatch()
        """Who has the rows of the batches that `loss` sees."""
        self.register_buffer("idle", torch.zeros(settings.d_sae, dtype=torch.int64))
        self.hull = None if settings.hull is None else Hull(settings.hull, d_in, settings.d_sae)

    @torch.no_grad()
    def constrain(self) -> None:
        """Scale every atom back to unit norm, and turn it back to its hull if it has one."""
        functional.normalize(self.dictionary, dim=1, out=self.dictionary.data)
        if self.hull is not None:
            self.hull.project(self.dictionary)

    def observe(self, stats: Stats) -> None:
        """Count the rows since each atom last fired; take the rows that the hull still wants."""
        self.idle.add_(stats.n_rows).masked_fill_(stats.fired, 0)
        if self.hull is not None and stats.points is not None:
            self.hull.collect(stats.points, self.dictionary)

    def find_dead(self) -> Bool[Tensor, "d_sae"]:
        """Atoms that have not fired for `dead_after` training rows."""
        return self.idle >= self.dead_after

    @torch.no_grad()
    def describe(self, x: Tensor, residual: Tensor, l0: Tensor, fired: Tensor, parts: Mapping[str, Tensor]) -> Stats:
        """The statistics that every architecture reports, and its own `parts`; `l0` per row, `fired` per atom.

        They are those of the whole batch, the rows of other processes included.
        """
        batch, variance = self.batch, (x - self.batch.mean(x.mean(0))).square().mean()
        shared = {"reconstruction": residual.square().mean(), "variance": variance, "l0": l0.float().mean()}
        means = batch.average(shared | {name: part.detach() for name, part in parts.items()})
        error = means.pop("reconstruction")
        shared = {
            "reconstruction": error,
            "fvu": error / means.pop("variance"),
            "l0": means.pop("l0"),
            "dead": self.find_dead().float().mean(),
        }
        points = None
        if self.hull is not None:
            n_wanted = self.hull.n_wanted
            shared["points_missing"] = x.new_full((), n_wanted)
            points = batch.gather(x[:n_wanted].detach())[:n_wanted] if n_wanted else None
        return Stats(shared | means, batch.any(fired), x.shape[0] * batch.n_parts, points=points)

    def atoms(self) -> Float[Tensor, "d_sae d_in"]:
        """The dictionary, to be used in a loss: its gradient loses the radial part, which `constrain` would undo."""
        return remove_radial_gradient(self.dictionary)


def remove_radial_gradient(atoms: Float[Tensor, "_ d_in"]) -> Float[Tensor, "_ d_in"]:
    """The same unit-norm rows; their gradient is projected onto the tangent space of the unit spheres they lie on."""
    return _Tangent.apply(atoms)  # pyright: ignore[reportReturnType]


class _Tangent(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, dictionary: Tensor) -> Tensor:
        ctx.save_for_backward(dictionary)
        return dictionary.view_as(dictionary)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (gradient,) = gradients
        (dictionary,) = ctx.saved_tensors
        tangent = torch.empty_like(gradient, memory_format=torch.contiguous_format)
        at_once = max(TANGENT_BLOCK // max(dictionary.shape[1], 1), 1) if gradient.device.type == "cpu" else len(gradient)
        blocks = (tensor.split(max(at_once, 1)) for tensor in (gradient, dictionary, tangent))
        for given, atoms, out in zip(*blocks, strict=True):
            radial = torch.mul(given, atoms, out=out).sum(1, keepdim=True)
            torch.addcmul(given, radial, atoms, value=-1, out=out)
        return tangent


@config
class LinearEncoder(Dictionary):
    """Fields of the architectures that revive dead atoms through an auxiliary reconstruction."""

    aux: float = 1 / 32
    """Weight of the auxiliary loss AuxK (arXiv 2406.04093, A.2): dead atoms reconstruct the error; 0 turns it off."""
    aux_k: int | None = None
    """Dead atoms used per row; half of d_in when not given."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.aux < 0:
            raise ConfigError(f"aux={self.aux}: a weight is not negative")
        if self.aux_k is not None and not 0 < self.aux_k <= self.d_sae:
            raise ConfigError(f"aux_k={self.aux_k}: use between 1 and d_sae={self.d_sae} dead atoms per row")


class LinearCoder(Coder):
    """A `Coder` with an affine encoder, untied from the dictionary, applied to the row less the decoder's bias."""

    def __init__(self, d_in: int, settings: Dictionary, generator: torch.Generator) -> None:
        """Start the encoder as the decoder's transpose (arXiv 2406.04093, A.1), its bias at zero."""
        super().__init__(d_in, settings, generator)
        self.encoder = nn.Parameter(self.dictionary.detach().clone())
        self.encoder_bias = nn.Parameter(torch.zeros(settings.d_sae))

    def divide(self, x: Float[Tensor, "row _"]) -> tuple[Float[Tensor, "row d_in"], Float[Tensor, "row d_out"]]:
        """What the encoder is given of a training row, and what is to be reconstructed: both all of it."""
        return x, x

    def center(self, x: Float[Tensor, "row d_in"]) -> Float[Tensor, "row d_in"]:
        """What the encoder's directions are multiplied with."""
        return x - self.bias

    def offset(self, x: Float[Tensor, "row d_in"]) -> Float[Tensor, "*row d_out"]:
        """What a reconstruction has beside atoms."""
        return self.bias

    def preactivate(self, x: Float[Tensor, "row d_in"]) -> Float[Tensor, "row d_sae"]:
        """Encoder outputs before the nonlinearity."""
        return functional.linear(self.center(x), self.encoder, self.encoder_bias)

    def activate(self, x: Float[Tensor, "row d_in"], indices: Tensor) -> Codes:
        """The positive part of the encoder's outputs at the chosen atoms only; the rest becomes padding."""
        return self.activate_centered(self.center(x), indices)

    def activate_centered(self, x: Float[Tensor, "row d_in"], indices: Tensor) -> Codes:
        """The same of rows less the decoder's bias."""
        # Indexing by [indices] would add up the bias's gradient in whatever order the threads come.
        bias = self.encoder_bias.index_select(0, indices.flatten()).view_as(indices)
        values = (sparse_encode(x, self.encoder, indices) + bias).relu()
        return Codes(torch.where(values > 0, indices, 0), values)

    def auxiliary(self, x: Tensor, residual: Tensor, preactivations: Tensor, settings: LinearEncoder) -> Tensor:
        """AuxK: share of the (detached) error that the `aux_k` most active dead atoms leave unexplained.

        0 while no atom is dead; a GPU computes it nevertheless, because asking would make the host wait.
        """
        dead, target = self.find_dead(), residual.detach()
        is_idle = settings.aux == 0 or x.shape[0] == 0 or (dead.device.type == "cpu" and not bool(dead.any()))
        if is_idle:
            return residual.new_zeros(())
        aux_k = min(settings.aux_k or max(self.d_in // 2, 1), self.d_sae)
        scores, indices = preactivations.detach().masked_fill(~dead, -torch.inf).topk(aux_k, dim=1)
        codes = self.activate(x, indices)
        codes = Codes(codes.indices, torch.where(scores > -torch.inf, codes.values, 0))
        missed = self.batch.mean((target - sparse_decode(codes, self.atoms())).square().sum())
        whole = self.batch.mean(target.square().sum())
        return settings.aux * missed / whole.clamp_min(torch.finfo(target.dtype).tiny) * dead.any()
