"""From the names that users write to taps of a model, and from globs to names."""

from collections.abc import Mapping

from torch import nn

from thresher.data.records import Modality
from thresher.errors import ModelError
from thresher.harvest.adapters.names import (
    MODULE,
    Heads,
    find_nearest,
    is_glob,
    match_glob,
    name_head,
    parse_module,
    split_heads,
)
from thresher.harvest.adapters.taps import Tap, Tower, tap_element, tap_head, tap_input, tap_output

Towers = Mapping[Modality, Tower]


def find_tap(model: nn.Module, towers: Towers, name: str) -> Tap:
    """The tap that one name, not a glob, stands for. Raises ModelError with the nearest names when there is none."""
    base, heads = split_heads(name)
    tap = _find_whole(model, towers, name, base)
    if heads is None:
        return tap
    if heads.n_heads is None or heads.part is None:
        raise ModelError(f"hook point {name}: stands for several parts; name one, such as {name_head(base, 0, 12)}")
    return tap_head(tap, heads.part, heads.n_heads)


def expand(model: nn.Module, towers: Towers, active: Towers, pattern: str) -> list[str]:
    """The names that a name or glob stands for, in the order of the forward pass; globs speak of the active towers only.

    Raises ModelError when there is none, or when a name is of a tower that is not active.
    """
    base, heads = split_heads(pattern)
    names = _expand_whole(model, towers, active, pattern, base)
    return [part for name in names for part in _expand_heads(model, towers, pattern, name, heads)]


def _find_whole(model: nn.Module, towers: Towers, name: str, base: str) -> Tap:
    for tower in towers.values():
        if base in tower.taps:
            return tower.taps[base]
    if not base.startswith(MODULE):
        known = [known for tower in towers.values() for known in tower.taps]
        raise ModelError(f"hook point {name}: this model has no such place; {find_nearest(base, known)}")
    place, modules = parse_module(base), dict(model.named_modules())
    if place.path not in modules:
        near = find_nearest(place.path, filter(None, modules))
        raise ModelError(f"hook point {name}: the model has no module {place.path!r}; {near}")
    module = modules[place.path]
    if place.elements:
        return tap_element(module, place.side, place.elements)
    return tap_input(module) if place.side == "in" else tap_output(module)


def _expand_whole(model: nn.Module, towers: Towers, active: Towers, pattern: str, base: str) -> list[str]:
    known, side = [name for tower in active.values() for name in tower.taps], ""
    if base.startswith(MODULE):
        parse_module(base)
        base, at, rest = base.partition("@")
        side = at + rest
        known = [MODULE + path for path, _ in model.named_modules() if path]
    if not is_glob(base):
        _find_whole(model, towers, pattern, base + side)
        if base not in known and any(base in tower.taps for tower in towers.values()):
            raise ModelError(
                f"hook point {pattern}: the source has nothing for this tower; it has {' and '.join(active)} items"
            )
        return [base + side]
    matches = match_glob(base, known)
    if not matches:
        raise ModelError(f"hook point {pattern}: nothing matches; {find_nearest(base, known)}")
    return [name + side for name in matches]


def _expand_heads(model: nn.Module, towers: Towers, pattern: str, base: str, heads: Heads | None) -> list[str]:
    """The names of the parts of one hook point that a pattern asks for."""
    if heads is None:
        return [base]
    n_heads = heads.n_heads or find_tap(model, towers, base).n_heads
    if n_heads is None:
        raise ModelError(f"hook point {pattern}: how many heads {base} has is not known; write /heads=12 with their number")
    parts = range(n_heads) if heads.part is None else [heads.part]
    return [name_head(base, part, n_heads) for part in parts]
