"""Gradients are the same bits on every call, also with several threads: exact resume rests on that."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from thresher.train.arch import BatchTopK, JumpRelu, MatchingPursuit, Matryoshka, Relu, TopK, build

ROWS, D_IN, D_SAE = 2048, 64, 256
"""Large enough for torch to share the work of indexing among threads (it does from 32,768 elements on)."""


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    "config",
    [
        MatchingPursuit(d_sae=D_SAE, k=24),
        Relu(d_sae=D_SAE, l0=24.0),
        TopK(d_sae=D_SAE, k=24, dead_after=1, aux_k=32),
        BatchTopK(d_sae=D_SAE, k=24.0, dead_after=1, aux_k=32),
        JumpRelu(d_sae=D_SAE, l0=24.0),
        Matryoshka(d_sae=D_SAE, k=24.0, dead_after=1, aux_k=32),
    ],
    ids=lambda config: config.kind,
)
def test_the_same_batch_gives_the_same_gradients_bit_for_bit(config: object) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, D_IN, generator=generator)
    sae = build(config, D_IN, 0)
    assert isinstance(sae, nn.Module)
    sae.idle[: D_SAE // 2] = 10
    state = {name: value.clone() for name, value in sae.state_dict().items()}

    def gradients() -> list[torch.Tensor]:
        sae.load_state_dict(state)
        sae.zero_grad()
        loss, _ = sae.loss(x)
        loss.backward()
        return [parameter.grad.clone() for parameter in sae.parameters() if parameter.grad is not None]

    first = gradients()
    assert first
    for _ in range(8):
        for before, now in zip(first, gradients(), strict=True):
            assert torch.equal(before, now)
