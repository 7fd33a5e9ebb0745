"""TopK SAE: the k largest encoder outputs of each row."""

import dataclasses
from typing import Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from thresher.config import config
from thresher.errors import ConfigError
from thresher.train.arch.base import LinearCoder, LinearEncoder
from thresher.train.arch.selection import Selection, find_topk, repair, screen_topk
from thresher.train.kernels import Codes, mark_fired, sparse_decode
from thresher.train.protocol import Stats

Fields = TypeVar("Fields", bound="TopKFields")


@config
class TopKFields(LinearEncoder):
    """Fields of the architectures that keep the largest outputs of each row."""

    k: int = 32
    """Atoms per row."""
    selection: Selection = "full"
    """How the k largest outputs are found. `full`: all of them in the precision of the weights. `bf16`: candidates in
    bfloat16, decided by their exact values; rows where the error bound leaves a doubt are looked at in full, except in
    training on a GPU, where that would make the host wait: their share is logged as `unsure`. Values are exact in both."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.k <= self.d_sae:
            raise ConfigError(f"k={self.k}: keep between 1 and d_sae={self.d_sae} atoms")

    def with_l0(self: Fields, target: float) -> Fields:
        """The same, set to reach `target` active atoms per row: k rounded."""
        return dataclasses.replace(self, k=max(round(target), 1))


@config
class TopK(TopKFields):
    """TopK SAE with AuxK (arXiv 2406.04093)."""

    kind: Literal["topk"] = "topk"
    """Which architecture this is."""
    weighted: bool = False
    """Outputs are divided by a number for each atom before they are compared. Only in dictionaries that come from elsewhere,
    where atoms of other norms than 1 were selected by their coefficients; these cannot be trained."""


class TopKSAE(LinearCoder):
    """Keeps the `k` largest positive encoder outputs of each row. Its gradients are sparse like its codes."""

    def __init__(self, settings: TopKFields, d_in: int, generator: torch.Generator) -> None:
        super().__init__(d_in, settings, generator)
        self.settings = settings
        is_weighted = isinstance(settings, TopK) and settings.weighted
        self.weights: Tensor | None
        self.register_buffer("weights", torch.ones(settings.d_sae) if is_weighted else None)

    def encode(self, x: Float[Tensor, "row d_in"], k: int | None = None) -> Codes:
        """The `k` largest positive outputs, largest first. Raises ValueError for `k` below 1."""
        k = min(self.settings.k if k is None else k, self.d_sae)
        if k < 1:
            raise ValueError(f"k={k}: keep at least 1 atom per row")
        arguments = (self.center(x), *self._compared())
        if self.settings.selection == "bf16":
            return self.activate(x, repair(screen_topk(*arguments, k), *arguments))
        return self.activate(x, find_topk(*arguments, k))

    def loss(self, x: Float[Tensor, "row d_in"]) -> tuple[Float[Tensor, ""], Stats]:
        """Mean squared error per dimension plus AuxK. Raises ConfigError where outputs are weighted."""
        if self.weights is not None:
            raise ConfigError("sae.weighted=true: a dictionary that was imported; it can be measured, not trained")
        given, target = self.divide(x)
        indices, preactivations, parts = self._select(given)
        codes = self.activate(given, indices)
        residual = target - sparse_decode(codes, self.atoms()) - self.offset(given)
        aux = self.auxiliary(given, residual, preactivations, self.settings)
        loss = residual.square().mean() + aux
        with torch.no_grad():
            l0, fired = (codes.values > 0).sum(1), mark_fired(codes, self.d_sae)
        return loss, self.describe(target, residual, l0, fired, {"loss": loss, "aux": aux, **parts})

    def _compared(self) -> tuple[Tensor, Tensor]:
        """The encoder and its bias as outputs are compared with each other."""
        if self.weights is None:
            return self.encoder, self.encoder_bias
        return self.encoder / self.weights[:, None], self.encoder_bias / self.weights

    @torch.no_grad()
    def _select(self, x: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The atoms of each row, the outputs they were selected from, and what to log about the selection."""
        if self.settings.selection == "full":
            preactivations = self.preactivate(x)
            return preactivations.topk(self.settings.k, dim=1).indices, preactivations, {}
        arguments = (self.center(x), self.encoder, self.encoder_bias)
        screened = screen_topk(*arguments, self.settings.k)
        indices = repair(screened, *arguments) if x.device.type == "cpu" else screened.indices
        return indices, screened.scores, {"unsure": (~screened.is_certain).float().mean()}
