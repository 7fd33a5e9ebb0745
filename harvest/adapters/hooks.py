"""The part that all families share: towers with named taps, captured and replaced by forward hooks."""

import difflib
import fnmatch
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from thresher.data.records import Modality
from thresher.errors import ModelError
from thresher.harvest.adapters.base import Function, HookPoint, Inputs

MODULE = "module:"
"""Prefix of a hook point that names a module by its path."""

T = TypeVar("T")
Read = Callable[[Any, Inputs], Any]
Write = Callable[[Any, Tensor, Inputs], Any]


class Tap(NamedTuple):
    """Where an activation is in a model: in the output of a module."""

    module: nn.Module
    read: Read
    """Takes the activation out of the module's output."""
    write: Write
    """The module's output with the activation replaced; the original is left as it was."""


class Tower(NamedTuple):
    """One forward pass of a model and its named places."""

    forward: Callable[[Inputs], Tensor]
    taps: Mapping[str, Tap]
    blank: Callable[[], Inputs]
    """The smallest real inputs, to run the tower once."""


def tap_output(module: nn.Module) -> Tap:
    """The tap at a module's output, or at the first element of it when it is a tuple."""
    return Tap(module, _read_output, _write_output)


def tap_field(module: nn.Module, field: str) -> Tap:
    """The tap at a named field of a module's structured output."""

    def read(output: Any, inputs: Inputs) -> Any:
        return getattr(output, field)

    def write(output: Any, activation: Tensor, inputs: Inputs) -> Any:
        return type(output)(**(dict(output) | {field: activation}))

    return Tap(module, read, write)


class HookedModel:
    """A model with towers whose taps can be read and replaced; the families build on it."""

    def __init__(self, model: nn.Module, towers: Mapping[Modality, Tower], device: torch.device) -> None:
        self.model = model
        self._towers = towers
        self._device = device
        self._running: Inputs | None = None

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """What it has towers for."""
        return tuple(self._towers)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._device

    @property
    def hook_points(self) -> tuple[str, ...]:
        """Names of its hook points, in the order of the forward pass."""
        return tuple(name for tower in self._towers.values() for name in tower.taps)

    def resolve(self, patterns: Sequence[str], modalities: Sequence[Modality]) -> tuple[HookPoint, ...]:
        """The hook points that names and globs stand for; see `Adapter.resolve`."""
        towers: dict[Modality, Tower] = {known: tower for known, tower in self._towers.items() if known in modalities}
        names = list(dict.fromkeys(name for pattern in patterns for name in self._match(pattern, towers)))
        found: dict[str, HookPoint] = {}
        for modality, tower in towers.items():
            wanted = [name for name in names if name in tower.taps or name.startswith(MODULE)]
            for point in self._probe(modality, tower, wanted):
                if point.name in found:
                    raise ModelError(f"hook point {point.name}: both towers run it; name a module of one tower")
                found[point.name] = point
        missing = [name for name in names if name not in found]
        if missing:
            raise ModelError(
                f"hook point {missing[0]}: never fires: the forward pass of {' and '.join(towers)} does not call this module; "
                "name the module that is called (its parent, or one of its children)"
            )
        return tuple(found[name] for name in names)

    def forward(self, inputs: Inputs) -> Float[Tensor, "item *position d"]:
        """The tower's own output for inputs on the device."""
        if inputs.modality not in self._towers:
            raise ModelError(f"this model has no tower for {inputs.modality}; it has {', '.join(self._towers)}")
        self._running = inputs
        try:
            return self._towers[inputs.modality].forward(inputs)
        finally:
            self._running = None

    def capture(self, inputs: Inputs, hook_points: Sequence[HookPoint]) -> dict[str, Float[Tensor, "item *_ _"]]:
        """Activations by name from one forward pass; see `Adapter.capture`."""
        seen: dict[str, list[Tensor]] = {point.name: [] for point in hook_points}
        overwritten = {point.name for point in hook_points if point.is_overwritten}

        def record(name: str, activation: Tensor) -> None:
            seen[name].append(activation.clone() if name in overwritten else activation)

        self._watch(inputs, seen, record)
        return {point.name: _check_shape(point, _only(point.name, seen[point.name]), inputs) for point in hook_points}

    @contextmanager
    def splice(self, hook_point: str, function: Function) -> Generator[None, None, None]:
        """While the block runs, the model goes on with `function(activations)` at `hook_point`."""
        tap = self._find(hook_point)

        def replace(module: nn.Module, args: Any, output: Any) -> Any:
            inputs = self._running
            if inputs is None:
                raise ModelError(f"splice at {hook_point}: call the model through the adapter's own methods")
            before = tap.read(output, inputs)
            after = function(before)
            if after.shape != before.shape:
                raise ModelError(f"splice at {hook_point}: the function made {list(after.shape)} of {list(before.shape)}")
            return tap.write(output, after.to(before), inputs)

        handle = tap.module.register_forward_hook(replace)
        try:
            yield
        finally:
            handle.remove()

    def _watch(self, inputs: Inputs, names: Iterable[str], record: Callable[[str, Tensor], None]) -> None:
        """Run one forward pass and give `record` every activation that passes the named places."""

        def observe(name: str, tap: Tap) -> Callable[..., None]:
            def hook(module: nn.Module, args: Any, output: Any) -> None:
                activation = tap.read(output, inputs)
                if not isinstance(activation, Tensor):
                    raise ModelError(f"hook point {name}: the module gives {type(activation).__name__}, not a tensor")
                record(name, activation.detach())

            return hook

        taps = {name: self._find(name) for name in names}
        handles = [tap.module.register_forward_hook(observe(name, tap)) for name, tap in taps.items()]
        try:
            self.forward(inputs)
        finally:
            for handle in handles:
                handle.remove()

    def _probe(self, modality: Modality, tower: Tower, names: Sequence[str]) -> Iterable[HookPoint]:
        """The hook points among `names` that this tower's forward pass reaches."""
        if not names:
            return
        seen: dict[str, list[tuple[Tensor, int]]] = {name: [] for name in names}
        # Outside of inference mode, where tensors do not count the writes to them.
        with torch.inference_mode(mode=False), torch.no_grad():
            blank = tower.blank().send(self._device)
            self._watch(blank, names, lambda name, activation: seen[name].append((activation, activation._version)))
        for name in names:
            if not seen[name]:
                continue
            activation, version = _only(name, seen[name])
            if activation.ndim not in (2, 3) or len(activation) != len(blank.layout.valid):
                raise ModelError(
                    f"hook point {name}: gives {list(activation.shape)}; expected [item, d] or [item, position, d]: "
                    "name another module"
                )
            level = "tokens" if activation.ndim == 3 else "items"
            point = HookPoint(name, modality, level, activation.shape[-1], is_overwritten=activation._version != version)
            _check_shape(point, activation, blank)
            yield point

    def _find(self, name: str) -> Tap:
        for tower in self._towers.values():
            if name in tower.taps:
                return tower.taps[name]
        if name.startswith(MODULE):
            modules = dict(self.model.named_modules())
            path = name.removeprefix(MODULE)
            if path in modules:
                return tap_output(modules[path])
            raise ModelError(f"hook point {name}: the model has no module {path!r}; {_nearest(path, modules)}")
        raise ModelError(f"hook point {name}: this model has no such place; {_nearest(name, self.hook_points)}")

    def _match(self, pattern: str, towers: Mapping[Modality, Tower]) -> list[str]:
        """The names that one pattern stands for."""
        known = [name for tower in towers.values() for name in tower.taps]
        if not any(sign in pattern for sign in "*?["):
            self._find(pattern)
            if pattern in self.hook_points and pattern not in known:
                raise ModelError(f"hook point {pattern}: the source has nothing for this tower; it has {', '.join(towers)}")
            return [pattern]
        if pattern.startswith(MODULE):
            known = [MODULE + path for path, _ in self.model.named_modules() if path]
        matches = [name for name in known if fnmatch.fnmatchcase(name, pattern)]
        if not matches:
            raise ModelError(f"hook point {pattern}: nothing matches; {_nearest(pattern, known)}")
        return matches


def _read_output(output: Any, inputs: Inputs) -> Any:
    return output[0] if isinstance(output, tuple) else output


def _write_output(output: Any, activation: Tensor, inputs: Inputs) -> Any:
    return (activation, *output[1:]) if isinstance(output, tuple) else activation


def _only(name: str, seen: Sequence[T]) -> T:
    if not seen:
        raise ModelError(f"hook point {name}: never fires: the forward pass did not reach it for this batch")
    if len(seen) > 1:
        raise ModelError(f"hook point {name}: fires {len(seen)} times in one forward pass; name a module that is called once")
    return seen[0]


def _check_shape(point: HookPoint, activation: Tensor, inputs: Inputs) -> Tensor:
    n_items, n_positions = inputs.layout.valid.shape
    expected = (n_items, n_positions, point.width) if point.level == "tokens" else (n_items, point.width)
    if activation.shape != expected:
        raise ModelError(f"hook point {point.name}: gives {list(activation.shape)}; expected {list(expected)}")
    return activation


def _nearest(name: str, known: Iterable[str]) -> str:
    names = list(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.3)
    if near:
        return f"nearest: {', '.join(near)}"
    return f"known: {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"
