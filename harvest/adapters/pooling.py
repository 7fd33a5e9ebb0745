"""Which position a tower pools, found by trying: what a configuration says is not always what the model does.

transformers' CLIP is the known trap: with `eos_token_id` 2 in its configuration it pools at the largest token id.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from thresher.harvest.adapters.base import Inputs
from thresher.harvest.adapters.hooks import HookedModel
from thresher.harvest.adapters.layouts import find_last
from thresher.harvest.adapters.tokens import Encoded

Rule = Callable[[Encoded], Int[Tensor, " item"]]
"""Positions that stand for encoded texts."""

PROBES = ("a", "a small red square on a dark ground", "zz top 9")
"""Texts of different lengths; the largest token id is not always at the same place."""


def find_dependence(model: HookedModel, inputs: Inputs, hook_point: str) -> Bool[Tensor, "item position"]:
    """At which positions of a hook point the tower's output depends on the activation: where its gradient is not zero."""
    leaves: list[Tensor] = []

    def cut(activation: Tensor) -> Tensor:
        leaves.append(activation.detach().requires_grad_())
        return leaves[-1]

    with torch.inference_mode(mode=False), torch.enable_grad():
        with model.splice(hook_point, cut):
            output = model.forward(inputs.send(model.device))
        # Not the plain sum, which is constant behind a norm.
        weights = torch.linspace(0.5, 1.5, output.shape[-1], device=output.device, dtype=output.dtype)
        (gradient,) = torch.autograd.grad((output * weights).sum(), leaves)
    return (gradient != 0).any(dim=-1).cpu()


def find_rule(encode: Callable[[Sequence[str]], Encoded], dependence: Callable[[Encoded], Tensor], eos: Any) -> Rule | None:
    """The rule that gives the one position that `dependence` marks for each of several texts.

    None when an output depends on several positions, as a mean does, or when no rule fits.
    """
    probes = [encode([text]) for text in PROBES]
    marked = [dependence(probe)[0].nonzero().flatten().tolist() for probe in probes]
    for rule in _candidates(eos):
        if [[int(rule(probe)[0])] for probe in probes] == marked:
            return rule
    return None


def _candidates(eos: Any) -> Sequence[Rule]:
    """First of all; first EOS as configured; largest token id; last that is not padding; last of all."""
    rules: list[Rule] = [lambda found: torch.zeros(len(found.ids), dtype=torch.int64)]
    if isinstance(eos, int):
        rules.append(lambda found: (found.ids == eos).int().argmax(dim=-1))
    return [
        *rules,
        lambda found: found.ids.argmax(dim=-1),
        lambda found: find_last(found.valid),
        lambda found: torch.full((len(found.ids),), found.ids.shape[1] - 1),
    ]
