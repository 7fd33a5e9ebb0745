"""Imported by conftest.py: functions that name no arrays are checked by beartype alone.

jaxtyping's hook puts three functions around each one that it finds, for the shapes that it remembers over a call. Most of this
package names no shapes, and is imported and called more often than it computes here.
"""

import inspect
from collections.abc import Callable
from typing import Any, ForwardRef, Literal, get_args, get_origin

import jaxtyping
from beartype import BeartypeConf, beartype

check_plainly: Any = beartype(conf=BeartypeConf(violation_type=jaxtyping.TypeCheckError))
jaxtyped = jaxtyping.jaxtyped


def names_arrays(annotation: Any) -> bool:
    """Whether there is an array in a type, or may be: in what is written as text or has a name of its own."""
    if isinstance(annotation, (str, ForwardRef)) or hasattr(annotation, "__value__"):
        return True
    if get_origin(annotation) is Literal:
        return False
    parts = annotation if isinstance(annotation, list) else get_args(annotation)
    return type(annotation).__module__.startswith("jaxtyping") or any(map(names_arrays, parts))


def is_plain(function: Any) -> bool:
    """Whether beartype alone sees of a function what jaxtyping would; it looks at generators in another way."""
    if not inspect.isfunction(function) or inspect.isgeneratorfunction(function) or inspect.iscoroutinefunction(function):
        return False
    return not hasattr(function, "__wrapped__") and not any(map(names_arrays, function.__annotations__.values()))


def check(function: Any = None, **settings: Any) -> Any:
    """Stands in for `jaxtyping.jaxtyped`."""
    if function is not None:
        return jaxtyped(function, **settings)
    decorate: Callable[[Any], Any] = jaxtyped(**settings)
    return lambda found: check_plainly(found) if is_plain(found) else decorate(found)


jaxtyping.jaxtyped = check
