"""What `AdapterSuite` tries on a model: inputs, captures, plain hooks beside them."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from thresher.data.records import Modality
from thresher.harvest.adapters.base import Adapter, HookPoint, Inputs

TEXTS = ("a red square", "two small green circles on a dark ground", "blue")


def find_place(places: Mapping[str, str], name: str) -> str | None:
    """The module path and side that `places` gives for a hook point."""
    found = re.fullmatch(r"(\w+)\.(\d+)(\.\w+)?", name)
    if found is None:
        return places.get(name)
    pattern = f"{found[1]}.{{i}}{found[3] or ''}"
    return places[pattern].replace("{i}", found[2]) if pattern in places else None


def watch(model: nn.Module, places: Mapping[str, str], adapter: Adapter, inputs: Inputs) -> dict[str, Tensor]:
    """What plain hooks of torch see at places written `path@in` or `path@out`."""
    seen: dict[str, Any] = {}

    def keep(name: str, value: Any) -> None:
        seen[name] = value[0] if isinstance(value, tuple) else value

    def watch_output(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            keep(name, output)

        return hook

    def watch_input(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            keep(name, [*args, *named.values()][0])

        return hook

    handles: list[Any] = []
    for name, place in places.items():
        path, _, side = place.partition("@")
        module = model.get_submodule(path)
        if side == "in":
            handles.append(module.register_forward_pre_hook(watch_input(name), with_kwargs=True))
        else:
            handles.append(module.register_forward_hook(watch_output(name)))
    run_forward(adapter, inputs)
    for handle in handles:
        handle.remove()
    return seen


def make_inputs(adapter: Adapter, modality: Modality, n: int = 3) -> Inputs:
    """Inputs of `n` items (at most 3), each unlike the others; of a model that reads pairs, the last without an image."""
    if modality == "text" and adapter.reads_pairs:
        return adapter.prepare_pairs([*make_images(2), None][:n], TEXTS[:n])
    return adapter.prepare_texts(TEXTS[:n]) if modality == "text" else adapter.prepare_images(make_images(n))


def make_images(n: int) -> list[Image.Image]:
    """Pictures of different shapes, each unlike the others."""
    colours = ("red", "#203040", "yellow")
    images = [Image.linear_gradient("L").resize((40 + 9 * i, 50)).convert("RGB") for i in range(n)]
    for image, colour in zip(images, colours, strict=False):
        image.paste(colour, (5, 5, 25, 20))
    return images


def resolve_tower(adapter: Adapter, modality: Modality) -> tuple[HookPoint, ...]:
    """All named hook points of one tower."""
    return adapter.resolve(["**"], [modality])


def capture(adapter: Adapter, inputs: Inputs, points: "tuple[HookPoint, ...] | list[HookPoint]") -> dict[str, Tensor]:
    """A capture without gradients."""
    with torch.inference_mode():
        return adapter.capture(inputs, points)


def take_first(activation: Tensor, inputs: Inputs, point: HookPoint) -> Tensor:
    """The activations of the first item, without padding."""
    if point.level == "items":
        return activation[0]
    places = inputs.layout.valid[0].nonzero().flatten()
    if inputs.packing is None:
        return activation[0, places]
    return activation[int(inputs.packing.sequence[0]), int(inputs.packing.start[0]) + places]


def run_forward(adapter: Adapter, inputs: Inputs) -> Tensor:
    """The tower's output without gradients."""
    with torch.inference_mode():
        return adapter.forward(inputs)


def count_hooks(model: nn.Module) -> int:
    """Forward hooks on all modules of a model."""
    tables = ("_forward_hooks", "_forward_pre_hooks")
    return sum(len(getattr(module, table)) for module in model.modules() for table in tables)


def divide_by_zero(activation: Tensor) -> Tensor:
    """Fails in the middle of a forward pass."""
    return activation * (1 // 0)
