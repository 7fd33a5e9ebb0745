"""Atoms that sit out a training batch."""

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor, nn


class AtomDropout(nn.Module):
    """Draws the atoms that take part in a batch: each with probability 1 - share, the same ones for all of its rows.

    A draw depends on the seed and the number of batches seen, which are the module's state: a resumed run goes on with the
    same draws. They happen on the host, which therefore knows how many there are without waiting for the device.
    """

    def __init__(self, share: float, d_sae: int, generator: torch.Generator) -> None:
        super().__init__()
        self.share, self.d_sae = share, d_sae
        self.seed = int(torch.randint(2**31, (), generator=generator))
        self.n_batches = 0

    def draw(self, device: torch.device) -> Int64[Tensor, "_"]:
        """The atoms of the current batch, at least one, rising; equal until `advance`."""
        uniform = np.random.default_rng([self.seed, self.n_batches]).random(self.d_sae)
        taking_part = np.flatnonzero(uniform >= min(self.share, uniform.max()))
        indices = torch.from_numpy(taking_part)
        return (indices.pin_memory() if device.type == "cuda" else indices).to(device, non_blocking=True)

    def advance(self) -> None:
        """Go on to the draw of the next batch."""
        self.n_batches += 1

    def get_extra_state(self) -> Tensor:
        """Where the draws are."""
        return torch.tensor([self.seed, self.n_batches])

    def set_extra_state(self, state: Tensor) -> None:
        """Go on with the draws where `state` was taken."""
        self.seed, self.n_batches = (int(number) for number in state)
