"""Where attention and MLP are in a residual block, by the names that the libraries give to their layers.

<tower>.<i>.in       residual stream into block i
<tower>.<i>.z        outputs of the attention heads side by side, before they are mixed
<tower>.<i>.attn     what attention gives after its output projection, before a norm or scale that may follow
<tower>.<i>.mlp_in   what the MLP reads, after the norm
<tower>.<i>.neurons  hidden activations of the MLP, what its last projection reads
<tower>.<i>.mlp      what the MLP gives, before a norm or scale that may follow
<tower>.<i>          residual stream out of block i
"""

import re
from collections.abc import Sequence
from typing import Any

from torch import nn

from thresher.harvest.adapters.taps import Tap, tap_input, tap_output

_ATTENTION = r"(?:layer\.0\.)?(?:self_attn|attn|attention|self_attention|SelfAttention|mixer)"
_ATTENTION_OUT = re.compile(_ATTENTION + r"(?:\.\w+)?\.(?:out_proj|o_proj|c_proj|proj|projection|dense|out_lin|wo|Wo|o)")
_MLP = r"(?:layer\.1\.)?(?:mlp|ffn|feed_forward|DenseReluDense|block_sparse_moe|moe)"
_MLP_IN = re.compile(rf"{_MLP}|intermediate|fc1")
_MLP_OUT = re.compile(
    rf"{_MLP}\.(?:down_proj|fc2|c_proj|dense_4h_to_h|fc_out|lin2|linear_fc2|weights_out|w2|Wo|wo)|output\.dense|fc2"
)
_MLP_WHOLE = re.compile(_MLP)
_HEAD_COUNTS = ("num_heads", "num_attention_heads", "n_heads", "n_head")
_HEAD_WIDTHS = ("head_dim", "attention_head_size", "head_size")


def tap_blocks(tower: str, blocks: Sequence[nn.Module]) -> dict[str, Tap]:
    """The named places of residual blocks, in the order of the forward pass; those that a block does not have are left out."""
    taps: dict[str, Tap] = {}
    for number, block in enumerate(blocks):
        inner = {f"{tower}.{number}.{name}": tap for name, tap in tap_sublayers(block).items()}
        taps |= {f"{tower}.{number}.in": tap_input(block)} | inner | {f"{tower}.{number}": tap_output(block)}
    return taps


def tap_sublayers(block: nn.Module) -> dict[str, Tap]:
    """The places inside one residual block."""
    taps: dict[str, Tap] = {}
    mixing, attention = _find(block, _ATTENTION_OUT), _find(block, re.compile(_ATTENTION))
    if mixing is not None and attention is not None and not _is_recurrent(attention):
        taps |= {"z": tap_input(mixing, count_heads(attention, mixing)), "attn": tap_output(mixing)}
    first, last = _find(block, _MLP_IN), _find(block, _MLP_OUT)
    if first is not None:
        taps["mlp_in"] = tap_input(first)
    if last is not None:
        taps |= {"neurons": tap_input(last), "mlp": tap_output(last)}
    elif (whole := _find(block, _MLP_WHOLE)) is not None:
        taps["mlp"] = tap_output(whole)
    return taps


def count_heads(attention: nn.Module, mixing: nn.Module) -> int | None:
    """How many heads stand side by side in what the output projection reads; None when the module does not say."""
    width = count_inputs(mixing)
    parts: list[Any] = list(attention.modules())
    for part in parts:
        counts = [getattr(part, name) for name in _HEAD_COUNTS if isinstance(getattr(part, name, None), int)]
        widths = [getattr(part, name) for name in _HEAD_WIDTHS if isinstance(getattr(part, name, None), int)]
        if counts or (widths and width):
            return counts[0] if counts else (width or 0) // widths[0]
    return None


def count_inputs(layer: Any) -> int | None:
    """Width of what a linear layer reads; transformers' Conv1D keeps its weight the other way round."""
    return getattr(layer, "in_features", None) or getattr(layer, "nx", None)


def _find(block: nn.Module, pattern: re.Pattern[str]) -> nn.Module | None:
    return next((module for path, module in block.named_modules() if pattern.fullmatch(path)), None)


def _is_recurrent(mixer: nn.Module) -> bool:
    """State-space and convolutional mixers have an output projection, but no heads that it mixes."""
    return hasattr(mixer, "conv1d") or hasattr(mixer, "A_log")
