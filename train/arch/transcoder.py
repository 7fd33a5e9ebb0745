"""Transcoders: the code of one hook point reconstructs another, as an interpretable stand-in for what lies between them.

What distinguishes them from the autoencoders of the same name is in `Transcoding`; selection, penalties and AuxK are theirs.
"""

from typing import Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from thresher.config import config
from thresher.errors import ConfigError
from thresher.train.arch.base import Dictionary, LinearCoder
from thresher.train.arch.batch_topk import BatchTopKFields, BatchTopKSAE
from thresher.train.arch.jumprelu import JumpReluFields, JumpReluSAE
from thresher.train.arch.relu import PenaltyFields, ReluSAE
from thresher.train.arch.topk import TopKFields, TopKSAE
from thresher.train.kernels import Codes, sparse_decode
from thresher.train.protocol import SAE


@config
class TranscoderFields(Dictionary):
    """Fields of every transcoder; of its two `hook_points` the first is read, the second reconstructed."""

    skip: bool = False
    """Add a learned linear map of the input to the reconstruction: a skip transcoder (arXiv 2501.18823)."""
    widths: tuple[int, ...] = ()
    """Widths of the two hook points; training reads them from the store."""


@config
class Transcoder(TranscoderFields, TopKFields):
    """Transcoder (arXiv 2406.11944) with TopK and AuxK."""

    kind: Literal["transcoder"] = "transcoder"
    """Which architecture this is."""


@config
class ReluTranscoder(TranscoderFields, PenaltyFields):
    """Transcoder with an L1 penalty, as first published (arXiv 2406.11944)."""

    kind: Literal["relu_transcoder"] = "relu_transcoder"
    """Which architecture this is."""


@config
class BatchTopKTranscoder(TranscoderFields, BatchTopKFields):
    """Transcoder that selects over a batch, with AuxK."""

    kind: Literal["batch_topk_transcoder"] = "batch_topk_transcoder"
    """Which architecture this is."""


@config
class JumpReluTranscoder(TranscoderFields, JumpReluFields):
    """Transcoder with a learned threshold per atom and an L0 penalty, as in Gemma Scope (arXiv 2408.05147)."""

    kind: Literal["jumprelu_transcoder"] = "jumprelu_transcoder"
    """Which architecture this is."""


class Transcoding(LinearCoder):
    """`encode` takes input rows, `decode` gives target rows, without what the skip connection adds; a row of training is an
    input row and its target row side by side."""

    widths: tuple[int, ...]
    encoded, decoded = (0,), (1,)

    def read_inputs(self, settings: TranscoderFields, generator: torch.Generator) -> None:
        """Start encoder rows as unit vectors drawn apart from the atoms, the skip connection at zero (arXiv 2501.18823)."""
        width, target_width = self.widths = settings.widths
        directions = torch.randn(settings.d_sae, width, generator=generator)
        self.encoder = nn.Parameter(functional.normalize(directions, dim=1))
        self.register_parameter("skip", nn.Parameter(torch.zeros(target_width, width)) if settings.skip else None)

    @property
    def d_in(self) -> int:
        """Width of an input row."""
        return self.encoder.shape[1]

    def divide(self, x: Float[Tensor, "row d_both"]) -> tuple[Float[Tensor, "row d_in"], Float[Tensor, "row d_out"]]:
        """The input row and the target row."""
        given, target = x.split(self.widths, dim=1)
        return given, target

    def center(self, x: Float[Tensor, "row d_in"]) -> Float[Tensor, "row d_in"]:
        """The row itself: the decoder's bias belongs to the target."""
        return x

    def offset(self, x: Float[Tensor, "row d_in"]) -> Float[Tensor, "*row d_out"]:
        """The bias, and what the skip connection makes of input rows."""
        skip = self._parameters["skip"]
        return self.bias if skip is None else self.bias + functional.linear(x, skip)

    def transcode(self, x: Float[Tensor, "row d_in"]) -> tuple[Codes, Float[Tensor, "row d_out"]]:
        """The codes of input rows, and the target rows made of them and the skip connection."""
        codes = cast(SAE, self).encode(x)
        return codes, sparse_decode(codes, self.dictionary) + self.offset(x)


class TranscoderSAE(Transcoding, TopKSAE):
    """Keeps the `k` largest positive encoder outputs of an input row."""

    def __init__(self, settings: Transcoder, generator: torch.Generator) -> None:
        super().__init__(settings, _find_target_width(settings), generator)
        self.read_inputs(settings, generator)


class ReluTranscoderSAE(Transcoding, ReluSAE):
    """Every positive encoder output of an input row is active."""

    def __init__(self, settings: ReluTranscoder, generator: torch.Generator) -> None:
        super().__init__(settings, _find_target_width(settings), generator)
        self.read_inputs(settings, generator)


class BatchTopKTranscoderSAE(Transcoding, BatchTopKSAE):
    """Trains with the largest outputs of the batch; encodes by a threshold."""

    def __init__(self, settings: BatchTopKTranscoder, generator: torch.Generator) -> None:
        super().__init__(settings, _find_target_width(settings), generator)
        self.read_inputs(settings, generator)


class JumpReluTranscoderSAE(Transcoding, JumpReluSAE):
    """An encoder output of an input row is active when it exceeds its atom's threshold."""

    def __init__(self, settings: JumpReluTranscoder, generator: torch.Generator) -> None:
        super().__init__(settings, _find_target_width(settings), generator)
        self.read_inputs(settings, generator)


def _find_target_width(settings: TranscoderFields) -> int:
    if len(settings.widths) != 2 or min(settings.widths) < 1:
        raise ConfigError(f"widths={list(settings.widths)}: a transcoder has two hook points, its input and its target")
    return settings.widths[1]
