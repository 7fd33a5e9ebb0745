"""Transcoder: the code of one hook point reconstructs another, as an interpretable stand-in for what lies between them."""

import dataclasses
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from thresher.config import config
from thresher.errors import ConfigError
from thresher.train.arch.base import LinearCoder, LinearEncoder
from thresher.train.arch.selection import find_topk
from thresher.train.kernels import Codes, mark_fired, sparse_decode, sparse_encode
from thresher.train.protocol import Stats


@config
class Transcoder(LinearEncoder):
    """Transcoder (arXiv 2406.11944) with TopK and AuxK; of two `hook_points` the first is read, the second reconstructed."""

    kind: Literal["transcoder"] = "transcoder"
    """Which architecture this is."""
    k: int = 32
    """Atoms per row."""
    skip: bool = False
    """Add a learned linear map of the input to the reconstruction: a skip transcoder (arXiv 2501.18823)."""
    widths: tuple[int, ...] = ()
    """Widths of the two hook points; training reads them from the store."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.k <= self.d_sae:
            raise ConfigError(f"k={self.k}: keep between 1 and d_sae={self.d_sae} atoms")

    def with_l0(self, target: float) -> "Transcoder":
        """The same, set to reach `target` active atoms per row: k rounded."""
        return dataclasses.replace(self, k=max(round(target), 1))


class TranscoderSAE(LinearCoder):
    """Keeps the `k` largest positive encoder outputs of an input row and decodes the target from them.

    `encode` takes input rows, `decode` gives target rows, without what the skip connection adds; a row of training is an
    input row and its target row side by side.
    """

    encoded, decoded = (0,), (1,)

    def __init__(self, settings: Transcoder, generator: torch.Generator) -> None:
        """Start encoder rows as unit vectors drawn apart from the atoms, the skip connection at zero (arXiv 2501.18823)."""
        if len(settings.widths) != 2 or min(settings.widths) < 1:
            raise ConfigError(f"widths={list(settings.widths)}: a transcoder has two hook points, its input and its target")
        width, target_width = settings.widths
        super().__init__(target_width, settings, generator)
        self.settings, self.widths = settings, (width, target_width)
        directions = torch.randn(settings.d_sae, width, generator=generator)
        self.encoder = nn.Parameter(functional.normalize(directions, dim=1))
        self.register_parameter("skip", nn.Parameter(torch.zeros(target_width, width)) if settings.skip else None)

    @property
    def d_in(self) -> int:
        """Width of an input row."""
        return self.widths[0]

    def preactivate(self, x: Float[Tensor, "row d_in"]) -> Float[Tensor, "row d_sae"]:
        """Encoder outputs of input rows; the decoder's bias belongs to the target and plays no part."""
        return functional.linear(x, self.encoder, self.encoder_bias)

    def activate(self, x: Float[Tensor, "row d_in"], indices: Tensor) -> Codes:
        """The positive part of the encoder's outputs at the chosen atoms only; the rest becomes padding."""
        bias = self.encoder_bias.index_select(0, indices.flatten()).view_as(indices)
        values = (sparse_encode(x, self.encoder, indices) + bias).relu()
        return Codes(torch.where(values > 0, indices, 0), values)

    def encode(self, x: Float[Tensor, "row d_in"], k: int | None = None) -> Codes:
        """The `k` largest positive outputs, largest first."""
        k = min(self.settings.k if k is None else k, self.d_sae)
        return self.activate(x, find_topk(x, self.encoder, self.encoder_bias, k))

    def transcode(self, x: Float[Tensor, "row d_in"]) -> tuple[Codes, Float[Tensor, "row d_out"]]:
        """The codes of input rows, and the target rows made of them and the skip connection."""
        codes = self.encode(x)
        return codes, self.decode(codes) + self._pass(x)

    def loss(self, x: Float[Tensor, "row d_both"]) -> tuple[Float[Tensor, ""], Stats]:
        """Mean squared error of the target per dimension plus AuxK."""
        given, target = x.split(self.widths, dim=1)
        with torch.no_grad():
            preactivations = self.preactivate(given)
        codes = self.activate(given, preactivations.topk(self.settings.k, dim=1).indices)
        residual = target - sparse_decode(codes, self.atoms()) - self.bias - self._pass(given)
        aux = self.auxiliary(given, residual, preactivations, self.settings)
        loss = residual.square().mean() + aux
        with torch.no_grad():
            l0, fired = (codes.values > 0).sum(1), mark_fired(codes, self.d_sae)
        return loss, self.describe(target, residual, l0, fired, {"loss": loss, "aux": aux})

    def _pass(self, x: Tensor) -> Tensor:
        skip = self._parameters["skip"]
        return x.new_zeros(()) if skip is None else functional.linear(x, skip)
