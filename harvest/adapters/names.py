"""Names of hook points: how they are written, what globs stand for, what to say when nothing fits.

    vision.3                     a named place of a tower
    module:encoder.layers.3.mlp  the output of any module, by its path in the model; its first element when it is a tuple
    module:...@in  ...@out       what goes into the module (its first argument), what comes out
    module:...@in[hidden_states] an argument by name; @in[1], @out[0] by place, @out[last_hidden_state] by field; repeatable
    NAME/heads=12                twelve hook points, one for each equal part of the width
    NAME/heads                   the same by the model's own number of heads, where it is known (vision.3.z)
    NAME/head=5/12               one of them, counted from 0

Globs stand for names: `*`, `?` and `[01]` within one part of a dotted name, `**` across dots. `vision.*` is every block's
output and what else has two parts, `vision.*.attn` the attention of every block. `*` alone is every name of two parts.
"""

import difflib
import re
from collections.abc import Iterable
from typing import Literal, NamedTuple

from thresher.errors import ModelError

MODULE = "module:"
"""Prefix of a hook point that names a module by its path."""

_GLOB = re.compile(r"(\*\*|\*|\?|\[[^\]]*\])")
_STARS = {"**": ".*", "*": "[^.]*", "?": "[^.]"}
_HEADS = re.compile(r"heads(?:=(?P<all>\d+))?|head=(?P<one>\d+)/(?P<of>\d+)")
_ELEMENTS = re.compile(r"(?:\[[^\[\]]+\])*")


class Heads(NamedTuple):
    """A split of an activation into equal parts."""

    n_heads: int | None
    """Parts; None for as many as the model has."""
    part: int | None
    """The one part meant, counted from 0; None for each of them."""


class Place(NamedTuple):
    """A place at a module."""

    path: str
    side: Literal["in", "out"]
    elements: tuple[int | str, ...]
    """Which element of what passes there, outermost first; empty for the first one."""


def split_heads(name: str) -> tuple[str, Heads | None]:
    """A name without its `/heads` or `/head=`, and what that says. Raises ModelError when it is malformed."""
    base, slash, suffix = name.partition("/")
    if not slash:
        return base, None
    found = _HEADS.fullmatch(suffix)
    if found is None:
        raise ModelError(
            f"hook point {name}: {suffix!r} is no split; write /heads=12 for all parts, /head=5/12 for one, or /heads"
        )
    counts = {key: int(value) for key, value in found.groupdict().items() if value is not None}
    n_heads, index = counts.get("all", counts.get("of")), counts.get("one")
    if n_heads == 0 or (index is not None and n_heads is not None and index >= n_heads):
        raise ModelError(f"hook point {name}: there is no such part; of n heads, name /head=0/n to /head=n-1/n")
    return base, Heads(n_heads, index)


def name_head(base: str, index: int, n_heads: int) -> str:
    """The name of one part."""
    return f"{base}/head={index}/{n_heads}"


def parse_module(name: str) -> Place:
    """The place that a name with the prefix `module:` stands for, or a glob of it. Raises ModelError when it is malformed."""
    path, at, rest = name.removeprefix(MODULE).partition("@")
    side, bracket, tail = rest.partition("[")
    elements = bracket + tail
    if at and (side not in ("in", "out") or not _ELEMENTS.fullmatch(elements)):
        raise ModelError(
            f"hook point {name}: {at + rest!r} is no side of a module; write @in or @out, then an element if need be: @out[0]"
        )
    keys = tuple(int(key) if key.isdigit() else key for key in re.findall(r"\[([^\[\]]+)\]", elements))
    return Place(path, "in" if side == "in" else "out", keys)


def is_glob(name: str) -> bool:
    """Whether a name (without a module's side and elements) stands for others."""
    return any(sign in name for sign in "*?[")


def match_glob(pattern: str, known: Iterable[str]) -> list[str]:
    """The known names that a glob stands for, in their order."""
    parts = _GLOB.split("*.*" if pattern == "*" else pattern)
    expression = re.compile("".join(_translate(part) if place % 2 else re.escape(part) for place, part in enumerate(parts)))
    return [name for name in known if expression.fullmatch(name)]


def find_nearest(name: str, known: Iterable[str]) -> str:
    """The known names most like one, as the end of an error message."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.3)
    if near:
        return f"nearest: {', '.join(near)}"
    return f"known: {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"


def _translate(sign: str) -> str:
    if sign in _STARS:
        return _STARS[sign]
    inside = sign[1:-1]
    return f"[^{re.escape(inside[1:])}]" if inside.startswith("!") else f"[{inside.replace('^', '')}]"
