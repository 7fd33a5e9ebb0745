"""Taps: where an activation is in what goes into a module or comes out of it, and how to replace it there."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from thresher.errors import ModelError
from thresher.harvest.adapters.base import Inputs

Read = Callable[[Any, Inputs], Any]
Write = Callable[[Any, Tensor, Inputs], Any]
Key = int | str


class Tap(NamedTuple):
    """Where an activation is in a model."""

    module: nn.Module
    read: Read
    """Takes the activation out of what passes the module."""
    write: Write
    """What passes, with the activation replaced; the original is left as it was."""
    side: Literal["in", "out"] = "out"
    """What passes: the module's output, or its arguments (positional, by name)."""
    n_heads: int | None = None
    """Into how many equal parts the activation falls by the model's own rule; None when it has none."""

    def attach(self, function: Callable[[Any], Any]) -> RemovableHandle:
        """Have `function` called with what passes in a forward pass; what it returns, unless None, passes instead."""
        if self.side == "in":
            return self.module.register_forward_pre_hook(lambda _, args, named: function((args, named)), with_kwargs=True)
        return self.module.register_forward_hook(lambda _, args, output: function(output))


class Tower(NamedTuple):
    """One forward pass of a model and its named places."""

    forward: Callable[[Inputs], Tensor]
    taps: Mapping[str, Tap]
    blank: Callable[[], Inputs]
    """The smallest real inputs, to run the tower once."""


def tap_output(module: nn.Module, n_heads: int | None = None) -> Tap:
    """The tap at a module's output, or at the first element of it when it is a tuple."""
    return Tap(module, _read_output, _write_output, "out", n_heads)


def tap_input(module: nn.Module, n_heads: int | None = None) -> Tap:
    """The tap at a module's first argument."""
    return Tap(module, _read_input, _write_input, "in", n_heads)


def tap_field(module: nn.Module, field: str) -> Tap:
    """The tap at a named field of a module's structured output."""
    return tap_element(module, "out", (field,))


def tap_element(module: nn.Module, side: Literal["in", "out"], keys: tuple[Key, ...]) -> Tap:
    """The tap at an element of a module's output or arguments: a place, a key, a field, or an argument's name."""

    def find(payload: Any) -> tuple[Key, ...]:
        if side == "out":
            return keys
        first, *rest = keys
        # An argument that was given by place cannot be found by name, nor the other way round.
        return (0 if isinstance(first, int) else 1, first, *rest)

    def read(payload: Any, inputs: Inputs) -> Any:
        if side == "in":
            _check_argument(payload, keys[0])
        for key in find(payload):
            payload = _get(payload, key)
        return payload

    def write(payload: Any, activation: Tensor, inputs: Inputs) -> Any:
        return _replace(payload, find(payload), activation)

    return Tap(module, read, write, side)


def _check_argument(passed: Any, key: Key) -> None:
    """Raise ModelError that says how the arguments are to be called."""
    args, named = passed
    if key in named if isinstance(key, str) else key < len(args):
        return
    known = [f"[{place}]" for place in range(len(args))] + [f"[{name}]" for name in named]
    raise ModelError(
        f"there is no argument [{key}] in what passes the module; it is called with {', '.join(known) or 'nothing'}"
    )


def tap_position(tap: Tap, find: Callable[[Inputs], Tensor]) -> Tap:
    """The activation of one position per item, `find(inputs)`, in a tap with one per position."""

    def place(inputs: Inputs, whole: Tensor) -> tuple[Tensor, Tensor]:
        return torch.arange(len(whole), device=whole.device), find(inputs).to(whole.device)

    def read(output: Any, inputs: Inputs) -> Tensor:
        whole = tap.read(output, inputs)
        return whole[place(inputs, whole)]

    def write(output: Any, activation: Tensor, inputs: Inputs) -> Any:
        replaced = tap.read(output, inputs).clone()
        replaced[place(inputs, replaced)] = activation
        return tap.write(output, replaced, inputs)

    return tap._replace(read=read, write=write)


def tap_head(tap: Tap, index: int, n_heads: int) -> Tap:
    """One of `n_heads` equal parts of a tap's width."""

    def read(output: Any, inputs: Inputs) -> Any:
        whole = tap.read(output, inputs)
        return _cut(whole, index, n_heads) if isinstance(whole, Tensor) else whole

    def write(output: Any, activation: Tensor, inputs: Inputs) -> Any:
        replaced = tap.read(output, inputs).clone()
        _cut(replaced, index, n_heads).copy_(activation)
        return tap.write(output, replaced, inputs)

    return tap._replace(read=read, write=write, n_heads=None)


def _cut(whole: Tensor, index: int, n_heads: int) -> Tensor:
    width, rest = divmod(whole.shape[-1], n_heads)
    if rest:
        raise ModelError(f"a width of {whole.shape[-1]} does not fall into {n_heads} equal parts; name another number of heads")
    return whole.narrow(-1, index * width, width)


def _read_output(output: Any, inputs: Inputs) -> Any:
    return output[0] if isinstance(output, tuple) else output


def _write_output(output: Any, activation: Tensor, inputs: Inputs) -> Any:
    return (activation, *output[1:]) if isinstance(output, tuple) else activation


def _read_input(passed: Any, inputs: Inputs) -> Any:
    args, named = passed
    return args[0] if args else next(iter(named.values()), None)


def _write_input(passed: Any, activation: Tensor, inputs: Inputs) -> Any:
    args, named = passed
    if args:
        return (activation, *args[1:]), named
    return args, named | {next(iter(named)): activation}


def _get(payload: Any, key: Key) -> Any:
    try:
        if isinstance(key, str) and not isinstance(payload, Mapping):
            return getattr(payload, key)
        return payload[key]
    except (KeyError, IndexError, TypeError, AttributeError):
        raise ModelError(f"there is no element [{key}] in what passes the module: {_describe(payload)}") from None


def _replace(payload: Any, keys: tuple[Key, ...], activation: Tensor) -> Any:
    """A copy of nested containers with one element replaced."""
    if not keys:
        return activation
    key, rest = keys[0], keys[1:]
    inner = _replace(_get(payload, key), rest, activation)
    if isinstance(payload, Mapping):
        fields = dict(cast(Mapping[str, Any], payload))
        name = list(fields)[key] if isinstance(key, int) else key
        return type(payload)(**(fields | {name: inner}))  # pyright: ignore[reportCallIssue] - a dict or a ModelOutput
    if isinstance(key, str):
        return payload._replace(**{key: inner})
    make: Callable[[list[Any]], Any] = getattr(payload, "_make", type(payload))
    return make([*payload[:key], inner, *payload[key + 1 :]])


def _describe(payload: Any) -> str:
    if isinstance(payload, Mapping):
        return f"{type(payload).__name__} with {', '.join(map(str, cast(Mapping[Any, Any], payload))) or 'nothing'}"
    if isinstance(payload, (tuple, list)):
        return f"{type(payload).__name__} of {len(cast(tuple[Any, ...], payload))}"
    return type(payload).__name__
