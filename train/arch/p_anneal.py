"""p-annealing: a ReLU SAE whose penalty goes from the L1 norm towards counting the active atoms."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from thresher.config import config
from thresher.errors import ConfigError
from thresher.train.arch.relu import PenaltyFields, ReluSAE
from thresher.train.protocol import Stats


@config
class PAnneal(PenaltyFields):
    """ReLU SAE with a penalty sum(z^p) whose power p falls in steps during training (arXiv 2408.00113)."""

    kind: Literal["p_anneal"] = "p_anneal"
    """Which architecture this is."""
    p_end: float = 0.2
    """The last power; the first is 1."""
    anneal_from: int = 10_000
    """Iteration at which the power starts to fall."""
    anneal_until: int = 24_000
    """Iteration from which on it is `p_end`; set it to less than the length of the training."""
    n_powers: int = 10
    """Different powers on the way, the first and the last among them, equally far from each other."""
    n_remembered: int = 10
    """Batches whose penalties decide how the weight changes with the power, so that weight times penalty does not jump."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.p_end <= 1:
            raise ConfigError(f"p_end={self.p_end}: the power falls from 1 to a number above 0")
        if not 0 <= self.anneal_from < self.anneal_until:
            raise ConfigError(f"anneal_from={self.anneal_from}, anneal_until={self.anneal_until}: 0 <= from < until")
        if self.n_powers < 2 or self.n_remembered < 1:
            raise ConfigError(f"n_powers={self.n_powers}, n_remembered={self.n_remembered}: at least 2 powers and 1 batch")

    def find_level(self, iteration: int) -> int:
        """How often the power has fallen when so many iterations are done: from 0 to n_powers - 1."""
        share = (iteration - self.anneal_from) / (self.anneal_until - self.anneal_from)
        return min(max(int(share * (self.n_powers - 1)), 0), self.n_powers - 1)

    def find_power(self, level: int) -> float:
        """The power after so many falls."""
        return 1 - (1 - self.p_end) * min(level, self.n_powers - 1) / (self.n_powers - 1)


class PAnnealSAE(ReluSAE):
    """Encodes as a ReLU SAE; how many batches it has seen and its last penalties are part of its state."""

    remembered: Tensor

    def __init__(self, settings: PAnneal, d_in: int, generator: torch.Generator) -> None:
        super().__init__(settings, d_in, generator)
        self.annealing = settings
        self.register_buffer("remembered", torch.zeros(settings.n_remembered, 2))
        self.n_batches = 0

    def loss(self, x: Float[Tensor, "row d_in"]) -> tuple[Float[Tensor, ""], Stats]:
        """(||x - x_hat||^2 + l1 sum(z^p)) / d_in, mean over rows (arXiv 2408.00113, section 4)."""
        level = self.annealing.find_level(self.n_batches)
        activations = self.preactivate(x).relu()
        residual = x - activations @ self.atoms() - self.bias
        penalty = penalize(activations, self.annealing.find_power(level))
        next_penalty = penalize(activations.detach(), self.annealing.find_power(level + 1))
        sparsity = self.l1 * penalty / self.d_in
        loss = residual.square().mean() + sparsity
        is_active = activations.detach() > 0
        parts = {"loss": loss, "sparsity": sparsity, "l1": self.l1.clone(), "penalty": penalty, "next_penalty": next_penalty}
        return loss, self.describe(x, residual, is_active.sum(1), is_active.any(0), parts)

    def observe(self, stats: Stats) -> None:
        """Remember the penalty at this power and at the next; when the power falls, set the weight by their ratio.

        l1 <- l1 sum(penalty) / sum(next penalty) over the remembered batches (arXiv 2408.00113, section 4).
        """
        super().observe(stats)
        pair = torch.stack([stats.parts["penalty"], stats.parts["next_penalty"]])
        self.remembered[self.n_batches % len(self.remembered)] = pair
        before = self.annealing.find_level(self.n_batches)
        self.n_batches += 1
        if self.annealing.find_level(self.n_batches) != before:
            old, new = self.remembered.sum(0)
            ratio = torch.where(new > 0, old / new, 1)
            self.l1_base.mul_(ratio)
            self.l1.mul_(ratio)
            self.remembered.zero_()

    def get_extra_state(self) -> Tensor:
        """Batches seen; kept on the host, which chooses the power by it."""
        return torch.tensor([self.n_batches])

    def set_extra_state(self, state: Tensor) -> None:
        """Go on where `state` was taken."""
        self.n_batches = int(state[0])


def penalize(activations: Float[Tensor, "row d_sae"], power: float) -> Float[Tensor, ""]:
    """Mean over rows of sum(z^power) of non-negative z; zeros get no gradient."""
    if power == 1:
        return activations.sum(1).mean()
    is_active = activations > 0
    return torch.where(is_active, torch.where(is_active, activations, 1).pow(power), 0).sum(1).mean()
