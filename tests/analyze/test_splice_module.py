"""Laws of splicing into any torch model."""

import pytest
import torch
from torch import Tensor, nn

from thresher.analyze.splice import ablate_to_zero, from_position, replace_module, splice_module
from thresher.errors import ModelError


class Pair(nn.Module):
    """Gives its input doubled, and something beside it."""

    def forward(self, x: Tensor) -> tuple[Tensor, str]:
        return 2 * x, "cache"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_model_goes_on_with_the_replacement_only_inside_the_block(dtype: torch.dtype) -> None:
    layers = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 4)).to(dtype)
    x = torch.randn(2, 5, 6).to(dtype)
    clean = layers(x)
    with splice_module(layers[0], from_position(1, ablate_to_zero)):
        spliced = layers(x)
    assert spliced.dtype == dtype
    assert torch.equal(spliced[:, 0], clean[:, 0])
    torch.testing.assert_close(spliced[:, 1:], layers[1].bias.expand(2, 4, 4))
    assert torch.equal(layers(x), clean)


def test_of_a_tuple_the_first_is_replaced_and_the_hook_goes_even_after_an_error() -> None:
    pair, x = Pair(), torch.ones(1, 3)
    with splice_module(pair, lambda x: x + 1):
        assert pair(x)[0].tolist() == [[3, 3, 3]]
        assert pair(x)[1] == "cache"
    with pytest.raises(ModelError, match=r"made \[1, 2\] of \[1, 3\]"), splice_module(pair, lambda x: x[:, :2]):
        pair(x)
    assert pair(x)[0].tolist() == [[2, 2, 2]]


def test_a_transcoder_stands_in_for_a_module_from_a_position_on() -> None:
    """One that computes what the module computes changes nothing; its input is the module's input, of another width."""
    layers, x = nn.Sequential(nn.Linear(6, 9), nn.Linear(9, 4)), torch.randn(2, 5, 6)
    clean = layers(x)
    with replace_module(layers[0], lambda rows: rows @ layers[0].weight.T + layers[0].bias):
        torch.testing.assert_close(layers(x), clean)
    with replace_module(layers[0], lambda rows: torch.zeros(len(rows), 9), first_position=2):
        spliced = layers(x)
    torch.testing.assert_close(spliced[:, :2], clean[:, :2])
    torch.testing.assert_close(spliced[:, 2:], layers[1].bias.expand(2, 3, 4))
    with (
        pytest.raises(ModelError, match="gives rows of width 9, the replacement 6"),
        replace_module(layers[0], lambda rows: rows),
    ):
        layers(x)
    with pytest.raises(ModelError, match="its first argument is a NoneType"), replace_module(layers[0], lambda rows: rows):
        layers[0](input=x)
    assert torch.equal(layers(x), clean)
