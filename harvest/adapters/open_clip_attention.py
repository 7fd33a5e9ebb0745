"""open_clip's attention with its last step apart, so that what the heads give can be read and replaced."""

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


class SplitAttention(nn.MultiheadAttention):
    """nn.MultiheadAttention that calls its output projection as a module: torch's own does everything in one function."""

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride] - open_clip's blocks never ask for the weights
        self,
        query: Float[Tensor, "_ _ d"],
        key: Float[Tensor, "_ _ d"],
        value: Float[Tensor, "_ _ d"],
        *,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
    ) -> tuple[Float[Tensor, "_ _ d"], None]:
        """Attend with a mask to add, [position, position] or one per item and head."""
        assert not need_weights
        sources = [query, key, value] if self.batch_first else [part.transpose(0, 1) for part in (query, key, value)]
        heads = [_split(part, self.num_heads) for part in self._project(sources)]
        if attn_mask is not None and attn_mask.ndim == 3:
            attn_mask = attn_mask.unflatten(0, (-1, self.num_heads))
        mixed = functional.scaled_dot_product_attention(heads[0], heads[1], heads[2], attn_mask)
        given = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return (given if self.batch_first else given.transpose(0, 1)), None

    def _project(self, sources: list[Tensor]) -> list[Tensor]:
        if sources[0] is sources[1] is sources[2]:
            return list(functional.linear(sources[0], self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1))
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        return [functional.linear(*parts) for parts in zip(sources, weights, biases, strict=True)]


def split_attention(model: nn.Module) -> None:
    """Give every residual block's attention in an open_clip model its output projection as a step of its own."""
    for block in model.modules():
        attention: Any = getattr(block, "attn", None)
        if type(block).__name__ == "ResidualAttentionBlock" and type(attention) is nn.MultiheadAttention:
            # The parameters stay where they are: only how they are used changes.
            attention.__class__ = SplitAttention


def _split(part: Tensor, n_heads: int) -> Float[Tensor, "item head position _"]:
    return part.unflatten(-1, (n_heads, -1)).transpose(1, 2)
