"""torch.compile for models that are read by hooks: the parts between the hooks are compiled, what holds a hook is not."""

from collections.abc import Collection
from typing import Any

import torch
from torch import nn


def find_parts(model: nn.Module, watched: Collection[nn.Module]) -> list[nn.Module]:
    """The largest modules below `model` with modules of their own and no watched one inside; one may be watched itself.

    A hook inside of a compiled part would not be called, or would cut it in two.
    """
    parts: list[nn.Module] = []
    for child in model.children():
        inside = list(child.modules())[1:]
        if not inside:
            continue
        if _is_called(child) and not any(module is found for module in inside for found in watched):
            parts.append(child)
        else:
            parts += find_parts(child, watched)
    return parts


def compile_parts(parts: Collection[nn.Module]) -> None:
    """Compile modules in place, each as a whole when it is first run; alike ones (the blocks of a tower) share the work.

    Hooks on the modules themselves stay outside of what is compiled.
    """
    for part in parts:
        compiled: Any = torch.compile(part.forward)
        part.forward = compiled


def _is_called(module: nn.Module) -> bool:
    """Whether it has a forward pass: lists and dictionaries of modules have none."""
    return type(module).forward is not nn.Module.forward
