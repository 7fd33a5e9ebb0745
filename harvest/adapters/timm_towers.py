"""What is known of timm's transformers from their attributes; open_clip uses them as vision towers."""

from typing import Any

from torch import nn


def describe_patches(model: Any) -> tuple[tuple[int, int], int, int]:
    """Grid of the patches (rows, columns), CLS tokens and registers of a timm model; one cell where it has no sequence."""
    if not list(getattr(model, "blocks", ())) or not hasattr(model, "patch_embed"):
        return (1, 1), 0, 0
    n_prefix, n_registers = int(getattr(model, "num_prefix_tokens", 0)), int(getattr(model, "num_reg_tokens", 0))
    # The distillation token of DeiT stands for nothing in the image either.
    n_registers += int(getattr(model, "dist_token", None) is not None)
    rows, columns = getattr(model.patch_embed, "grid_size", (1, 1))
    return (int(rows), int(columns)), n_prefix - n_registers, n_registers


def find_norm(model: Any) -> nn.Module | None:
    """The norm over all positions after the last block; None where the model norms only what it has pooled."""
    norm = getattr(model, "norm", None)
    return None if norm is None or isinstance(norm, nn.Identity) else norm
