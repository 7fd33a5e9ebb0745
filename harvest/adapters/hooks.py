"""The part that all families share: towers with named taps, captured and replaced by forward hooks."""

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from thresher.data.records import Modality
from thresher.errors import ModelError
from thresher.harvest.adapters.base import Function, HookPoint, ImageTransform, Inputs
from thresher.harvest.adapters.compilation import compile_parts, find_parts
from thresher.harvest.adapters.lookup import expand, find_tap
from thresher.harvest.adapters.names import MODULE, split_heads
from thresher.harvest.adapters.taps import Tap, Tower

T = TypeVar("T")


class _Enough(BaseException):
    """Everything that was asked for has been seen: ends the forward pass. No Exception, which a model might catch."""


class HookedModel:
    """A model with towers whose taps can be read and replaced; the families build on it."""

    reads_pairs = False
    image_transform: ImageTransform | None = None

    def __init__(self, model: nn.Module, towers: Mapping[Modality, Tower], device: torch.device) -> None:
        self.model = model
        self._towers: Mapping[Modality, Tower] = towers
        self._device = device
        self._running: Inputs | None = None
        self._compiled: list[nn.Module] = []
        self._towers = self._keep_reached(towers)

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

    def prepare_images(self, images: Sequence[Image.Image]) -> Inputs:
        """Images through the model's own preprocessing. Raises ModelError when it has no tower for images."""
        if self.image_transform is None:
            raise ModelError("this model has no tower for images; harvest its text hook points only")
        return self.image_transform(images)

    def prepare_texts(self, texts: Sequence[str]) -> Inputs:
        """Raises ModelError: a family with a tower for texts has its own."""
        raise ModelError("this model has no tower for texts; harvest its image hook points only")

    def prepare_pairs(self, images: Sequence[Image.Image | None], texts: Sequence[str]) -> Inputs:
        """Raises ModelError: a family that reads images and texts in one sequence has its own."""
        raise ModelError("this model does not read an image and a text together; prepare them apart")

    def check_packing(self, length: int, hook_points: Sequence[HookPoint]) -> None:
        """Raises ModelError: a family whose texts can share a sequence has its own."""
        raise ModelError("text_passes=packed: is for decoder language models (model.kind=hf-causal-lm); use length")

    def pack_texts(self, inputs: Inputs, length: int) -> Inputs:
        """Raises ModelError, as `check_packing` does."""
        self.check_packing(length, ())
        return inputs

    def resolve(self, patterns: Sequence[str], modalities: Sequence[Modality]) -> tuple[HookPoint, ...]:
        """The hook points that names and globs stand for; see `Adapter.resolve`."""
        towers: dict[Modality, Tower] = {known: tower for known, tower in self._towers.items() if known in modalities}
        names = list(dict.fromkeys(name for pattern in patterns for name in expand(self.model, self._towers, towers, pattern)))
        found: dict[str, HookPoint] = {}
        for modality, tower in towers.items():
            wanted = [name for name in names if split_heads(name)[0] in tower.taps or name.startswith(MODULE)]
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
        """Activations by name from one forward pass, which ends where the last of them is; see `Adapter.capture`."""
        seen: dict[str, list[Tensor]] = {point.name: [] for point in hook_points}
        overwritten = {point.name for point in hook_points if point.is_overwritten}
        remaining = set(seen)

        def record(name: str, activation: Tensor) -> None:
            seen[name].append(activation.clone() if name in overwritten else activation)
            remaining.discard(name)
            if not remaining:
                raise _Enough

        with suppress(_Enough):
            self._watch(inputs, seen, record)
        return {point.name: _check_shape(point, _only(point.name, seen[point.name]), inputs) for point in hook_points}

    def compile(self, hook_points: Sequence[HookPoint]) -> None:
        """Compile what lies between these hook points; see `Adapter.compile`."""
        # Takes a second.
        from torch._dynamo.exc import TorchDynamoException

        watched = [find_tap(self.model, self._towers, point.name).module for point in hook_points]
        self._compiled = find_parts(self.model, watched)
        compile_parts(self._compiled)
        for modality, tower in self._towers.items():
            points = [point for point in hook_points if point.modality == modality]
            if not points:
                continue
            try:
                with torch.inference_mode():
                    self.capture(tower.blank().send(self._device), points)
            except TorchDynamoException as error:
                reason = str(error).strip().partition("\n")[0]
                raise ModelError(f"torch.compile cannot do this model here ({reason}); set compile=false") from error

    @contextmanager
    def splice(self, hook_point: str, function: Function) -> Generator[None, None, None]:
        """While the block runs, the model goes on with `function(activations)` at `hook_point`."""
        tap = self._find(hook_point)

        def replace(payload: Any) -> Any:
            inputs = self._running
            if inputs is None:
                raise ModelError(f"splice at {hook_point}: call the model through the adapter's own methods")
            whole = tap.read(payload, inputs)
            before = _fold(whole, inputs)
            after = function(before)
            if after.shape != before.shape:
                raise ModelError(f"splice at {hook_point}: the function made {list(after.shape)} of {list(before.shape)}")
            return tap.write(payload, after.to(before).reshape(whole.shape), inputs)

        handle = tap.attach(replace)
        try:
            yield
        finally:
            handle.remove()

    def _watch(self, inputs: Inputs, names: Iterable[str], record: Callable[[str, Tensor], None]) -> None:
        """Run one forward pass and give `record` every activation that passes the named places."""

        def observe(name: str, tap: Tap) -> Callable[[Any], None]:
            def hook(payload: Any) -> None:
                activation = _read(name, tap, payload, inputs)
                record(name, _fold(activation.detach(), inputs))

            return hook

        taps = {name: self._find(name) for name in names}
        with ExitStack() as hooks:
            for name, tap in taps.items():
                hooks.callback(tap.attach(observe(name, tap)).remove)
            self.forward(inputs)

    def _find(self, name: str) -> Tap:
        """The tap of a name. Raises ModelError when it is inside of what was compiled, where no hook is called."""
        tap = find_tap(self.model, self._towers, name)
        if any(tap.module is inner for part in self._compiled for inner in list(part.modules())[1:]):
            raise ModelError(f"hook point {name}: the model was compiled for others; open it again to read this one")
        return tap

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
            if activation.ndim not in (2, 3) or len(activation) != blank.shape[0]:
                raise ModelError(
                    f"hook point {name}: gives {list(activation.shape)}; expected [item, d] or [item, position, d]: "
                    "name another module"
                )
            level = "tokens" if activation.ndim == 3 else "items"
            point = HookPoint(name, modality, level, activation.shape[-1], is_overwritten=activation._version != version)
            _check_shape(point, activation, blank)
            yield point

    def _keep_reached(self, towers: Mapping[Modality, Tower]) -> Mapping[Modality, Tower]:
        """The towers without the places that their model does not call, or where no activation of each position passes.

        Families name what the models of their kind usually have; not every one has all of it.
        """
        kept: dict[Modality, Tower] = {}
        for modality, tower in towers.items():
            blank = tower.blank().send(self._device)
            seen: dict[str, list[Any]] = {name: [] for name in tower.taps}
            with ExitStack() as hooks, torch.no_grad():
                for name, tap in tower.taps.items():
                    hooks.callback(tap.attach(_keeper(tap, blank, seen[name])).remove)
                self.forward(blank)
            taps = {name: tap for name, tap in tower.taps.items() if _is_activation(name, seen[name], blank)}
            kept[modality] = tower._replace(taps=taps)
        return kept


def _keeper(tap: Tap, inputs: Inputs, seen: list[Any]) -> Callable[[Any], None]:
    return lambda payload: seen.append(tap.read(payload, inputs))


def _read(name: str, tap: Tap, payload: Any, inputs: Inputs) -> Tensor:
    """The activation at a tap. Raises ModelError that names the hook point when there is none."""
    try:
        activation = tap.read(payload, inputs)
    except ModelError as error:
        raise ModelError(f"hook point {name}: {error}") from error
    if not isinstance(activation, Tensor):
        raise ModelError(
            f"hook point {name}: the module gives {type(activation).__name__}, not a tensor; name an element of it"
        )
    return activation


def _fold(activation: Tensor, inputs: Inputs) -> Tensor:
    """[item, position, d] of what a module sees as [item * position, d]; anything else as it is."""
    n_items, n_positions = inputs.shape
    if activation.ndim == 2 and n_positions > 1 and len(activation) == n_items * n_positions:
        return activation.view(n_items, n_positions, -1)
    return activation


def _is_activation(name: str, seen: Sequence[Any], inputs: Inputs) -> bool:
    if len(seen) != 1 or not isinstance(seen[0], Tensor):
        return False
    activation = _fold(seen[0], inputs)
    n_axes = (2, 3) if name.endswith((".pooled", ".embed")) else (3,)
    return activation.ndim in n_axes and len(activation) == inputs.shape[0]


def _only(name: str, seen: Sequence[T]) -> T:
    if not seen:
        raise ModelError(f"hook point {name}: never fires: the forward pass did not reach it for this batch")
    if len(seen) > 1:
        raise ModelError(f"hook point {name}: fires {len(seen)} times in one forward pass; name a module that is called once")
    return seen[0]


def _check_shape(point: HookPoint, activation: Tensor, inputs: Inputs) -> Tensor:
    n_items, n_positions = inputs.shape
    expected = (n_items, n_positions, point.width) if point.level == "tokens" else (n_items, point.width)
    if activation.shape == expected:
        return activation
    if activation.shape[:-1] == expected[:-1]:
        raise ModelError(
            f"hook point {point.name}: its width is {activation.shape[-1]} in this batch, {point.width} in the first; a store "
            "holds one width per hook point: name another module"
        )
    raise ModelError(f"hook point {point.name}: gives {list(activation.shape)}; expected {list(expected)}")
