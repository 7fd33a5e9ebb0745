"""The hook points that a model has, for whoever writes a configuration."""

import re
from collections.abc import Sequence

from thresher.devices import find_device
from thresher.harvest.adapters import open_adapter
from thresher.harvest.adapters.base import HookPoint
from thresher.harvest.settings import HarvestConfig

_NUMBERED = re.compile(r"(\w+)\.(\d+)((?:\.\w+)?)")


def list_hook_points(config: HarvestConfig) -> list[dict[str, str]]:
    """Name, row space and width of every named hook point of `config.model`; blocks that are alike in one row.

    Loads the model and runs each of its towers once. Raises ModelError when it cannot be had.
    """
    adapter = open_adapter(config.model, find_device(config.device))
    return group_blocks(adapter.resolve(["**"], adapter.modalities))


def group_blocks(points: Sequence[HookPoint]) -> list[dict[str, str]]:
    """One row per kind of place: `vision.0-11.attn` stands for the attention of twelve blocks of one width."""
    numbers: dict[tuple[str, str, str, int], list[int]] = {}
    for point in points:
        found = _NUMBERED.fullmatch(point.name)
        key = (found[1], found[3], point.space, point.width) if found else (point.name, "", point.space, point.width)
        numbers.setdefault(key, []).extend([int(found[2])] if found else [])
    return [
        {"hook points": _write(first, last, places), "rows": space, "width": str(width)}
        for (first, last, space, width), places in numbers.items()
    ]


def _write(first: str, last: str, places: Sequence[int]) -> str:
    """The name of one group; numbers with gaps between them are listed."""
    if not places:
        return first
    is_run = len(places) > 1 and list(places) == list(range(places[0], places[-1] + 1))
    numbers = f"{places[0]}-{places[-1]}" if is_run else ",".join(map(str, places))
    return f"{first}.{numbers}{last}"
