"""The moving average of a module's weights."""

import copy
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from thresher.train.protocol import SAE


class Average:
    """Exponential moving average of the trained parameters, of age 1 / (1 - decay) iterations.

    The decay after t iterations is at most (1 + t) / (10 + t), so that the start is forgotten. Atoms are averaged as they
    are; `apply` puts the average back under the architecture's constraints. Buffers (thresholds, weights of penalties) are
    those of the last iteration. Memory: the trained parameters once more.
    """

    def __init__(self, sae: SAE, decay: float) -> None:
        self._decay = decay
        self.tensors = {name: value.detach().clone() for name, value in _trained(sae).items()}
        """By the name of the parameter."""

    @torch.no_grad()
    def update(self, sae: SAE, done: int) -> None:
        """Follow the parameters after an iteration; `done` before it."""
        decay = min(self._decay, (1 + done) / (10 + done))
        for mine, its in zip(self.tensors.values(), _trained(sae).values(), strict=True):
            mine.lerp_(its, 1 - decay)

    @torch.no_grad()
    def apply(self, sae: SAE) -> SAE:
        """A copy of the module with the averaged parameters, constrained."""
        averaged = copy.deepcopy(sae)
        for name, value in _trained(averaged).items():
            value.copy_(self.tensors[name])
        averaged.constrain()
        return averaged

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on with saved averages. Raises KeyError or RuntimeError when they are of another module."""
        for name, value in self.tensors.items():
            value.copy_(tensors[name])


def _trained(sae: SAE) -> dict[str, nn.Parameter]:
    return {name: value for name, value in cast(nn.Module, sae).named_parameters() if value.requires_grad}
