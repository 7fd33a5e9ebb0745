"""Configurations: frozen dataclasses, read from YAML with `key=value` overrides, all mistakes reported together."""

import ast
import copy
import dataclasses
import difflib
import functools
import inspect
import itertools
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, dataclass_transform, get_args, get_origin

import pydantic
import yaml

from thresher.errors import ConfigError

T = TypeVar("T")

SAID_PLAINLY = {
    "Input should be a valid tuple": "expected a list: [a, b]",
    "Input should be a valid dictionary or object to extract fields from": "expected a group of fields (`name: value`)",
}
"""What pydantic says -> the same in words of YAML."""


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(dataclasses.field,))
def config(cls: type[T]) -> type[T]:
    """Make a class a frozen keyword-only dataclass that pydantic validates, unknown fields refused.

    The docstring under each field becomes its help. A `__post_init__` that finds nonsense raises `ConfigError`.
    """
    made = dataclass(frozen=True, kw_only=True)(cls)
    settings = pydantic.ConfigDict(extra="forbid", allow_inf_nan=False)
    setattr(made, "__pydantic_config__", settings)  # noqa: B010 - a plain assignment is a type error
    return made


def load_config(cls: type[T], path: Path, overrides: Sequence[str] = ()) -> T:
    """Read `path`, apply `key=value` overrides (dotted keys, values in YAML) and validate.

    Raises ConfigError: unreadable file, bad YAML, malformed override, and every invalid field in one message.
    """
    return validate(cls, read_values(path, overrides), str(path))


def read_values(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The plain values of a YAML file with `key=value` overrides applied, not validated yet. Raises ConfigError."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the configuration ({error.strerror}); give the path of a YAML file") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a text file in UTF-8 ({error.reason}); give the path of a YAML file") from error
    values = parse_yaml(text, str(path))
    for override in overrides:
        _apply(values, override)
    return values


def override_values(values: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of plain values with `key=value` overrides applied, not validated yet. Raises ConfigError."""
    changed = copy.deepcopy(dict(values))
    for override in overrides:
        _apply(changed, override)
    return changed


def parse_yaml(text: str, where: str) -> dict[str, Any]:
    """A YAML mapping with string keys; `where` names it in errors. Raises ConfigError."""
    try:
        values = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: not valid YAML: {error}") from error
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: expected a mapping of fields (`name: value`), found {_name_yaml(values)}")
    for key in values:
        if not isinstance(key, str):
            raise ConfigError(f"{where}: the name of a field is text, found {key!r}; put it in quotes if it is meant as one")
    return typing.cast(dict[str, Any], values)


class _Loader(yaml.SafeLoader):
    """YAML in which a name stands once in a group."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        """A mapping. Raises YAMLError for a name that is there already."""
        names = [self.construct_object(key, deep=deep) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        if twice := [name for place, name in enumerate(names) if name in names[:place]]:
            raise yaml.constructor.ConstructorError(None, None, f"{twice[0]!r} is there twice", node.start_mark)
        return super().construct_mapping(node, deep=deep)


def _name_yaml(value: Any) -> str:
    return "a list" if isinstance(value, list) else f"only {value!r}"


def validate(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Build `cls` from plain values. Raises ConfigError that lists every mistake with its dotted path."""
    try:
        return _adapt(cls).validate_python(_expand_home(values))
    except pydantic.ValidationError as error:
        lines = [f"{where}: {error.error_count()} mistake(s) in the configuration"]
        lines += [f"  {_explain(cls, found)}" for found in error.errors(include_url=False)]
        raise ConfigError("\n".join(lines)) from error


def _expand_home(value: Any) -> Any:
    """Values in which a text that begins with ~/ is a path below the home folder, as a shell would have it."""
    if isinstance(value, Mapping):
        return {key: _expand_home(part) for key, part in typing.cast(Mapping[str, Any], value).items()}
    if isinstance(value, list):
        return [_expand_home(part) for part in typing.cast(list[Any], value)]
    return str(Path(value).expanduser()) if isinstance(value, str) and value.startswith("~/") else value


@functools.cache
def _adapt(cls: type[Any]) -> Any:
    """Made once for a class: 12 ms for a training with all its architectures, on one core of an AMD EPYC."""
    return pydantic.TypeAdapter(cls)


def to_dict(value: Any) -> dict[str, Any]:
    """A config as plain values that YAML and JSON can hold; `load_config` of it gives an equal config."""
    return _adapt(type(value)).dump_python(value, mode="json")


def dump_config(value: Any) -> str:
    """A config as YAML, fields in the order of their definition."""
    return yaml.safe_dump(to_dict(value), sort_keys=False, allow_unicode=True)


class FieldDoc(typing.NamedTuple):
    """One line of `--help`."""

    path: str
    """Dotted path; `[kind=...]` marks the member of a tagged union it belongs to."""
    type: str
    default: str
    """Empty when the field is required."""
    doc: str


def describe(cls: type[Any], prefix: str = "") -> Iterator[FieldDoc]:
    """Every field of a config class with its docstring, nested configs and union members included."""
    hints = typing.get_type_hints(cls, include_extras=True)
    docs = _docs(cls)
    for field in dataclasses.fields(cls):
        path, hint = f"{prefix}{field.name}", hints[field.name]
        members = [member for member in _members(hint) if dataclasses.is_dataclass(member)]
        doc = docs.get(field.name, "")
        if not members or field.name == "kind":
            yield FieldDoc(path, _type_name(hint), _default(field), doc)
            continue
        names = " | ".join(_type_name(member) for member in _members(hint) if member is not type(None))
        yield FieldDoc(path, names, _default(field), doc)
        key = "<name>." if get_origin(hint) is dict else ""
        for member in members:
            kind = _kind(member)
            tag = f"[kind={kind}]" if kind and len(members) > 1 else ""
            yield from describe(typing.cast(type[Any], member), f"{path}{tag}.{key}")


def _docs(cls: type[Any]) -> dict[str, str]:
    """The docstring under each field of the class and of the config classes it inherits from."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if "__pydantic_config__" in vars(base):
            body = typing.cast(ast.ClassDef, ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]).body
            for field, doc in itertools.pairwise(body):
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(doc, ast.Expr):
                    docs[field.target.id] = " ".join(str(typing.cast(ast.Constant, doc.value).value).split())
    return docs


def _members(hint: Any) -> list[Any]:
    """The classes inside Optional, Annotated, Union, list, tuple and dict."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is typing.Annotated:
        return _members(args[0])
    if origin in (typing.Union, types.UnionType, list, tuple, Sequence):
        return [member for arg in args for member in _members(arg)]
    if origin is dict:
        return _members(args[1])
    return [hint]


def _kind(cls: Any) -> str | None:
    hint = typing.get_type_hints(cls).get("kind")
    return str(get_args(hint)[0]) if hint is not None else None


def _type_name(hint: Any) -> str:
    if get_origin(hint) is typing.Annotated:
        return _type_name(get_args(hint)[0])
    if get_origin(hint) is typing.Literal:
        return " | ".join(repr(value) for value in get_args(hint))
    if get_origin(hint) in (typing.Union, types.UnionType):
        return " | ".join("None" if member is type(None) else _type_name(member) for member in get_args(hint))
    if get_origin(hint) is not None:
        return str(hint).replace("typing.", "").replace("pathlib._local.", "").replace("pathlib.", "")
    return getattr(hint, "__name__", str(hint))


def _default(field: "dataclasses.Field[Any]") -> str:
    if field.default is not dataclasses.MISSING:
        value = field.default
        return type(value).__name__ if dataclasses.is_dataclass(value) else repr(value)
    if field.default_factory is not dataclasses.MISSING:
        return repr(field.default_factory())
    return ""


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, raw = override.partition("=")
    if not equals or not all(part for part in key.split(".")):
        raise ConfigError(f"override {override!r}: expected key=value, for instance seed=1 or train.mp.sae.k=16")
    try:
        value = yaml.safe_load(raw)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: the value is not valid YAML: {error}") from error
    *parents, last = key.split(".")
    node: Any = values
    for part in parents:
        node = _child(node, part, override)
    if isinstance(node, list):
        node[_index(node, last, override)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise ConfigError(f"override {override!r}: {'.'.join(parents)} is {node!r}, not a group of fields")


def _child(node: Any, part: str, override: str) -> Any:
    if isinstance(node, list):
        return node[_index(node, part, override)]
    if not isinstance(node, dict):
        raise ConfigError(f"override {override!r}: the part before {part!r} is {node!r}, not a group of fields")
    if node.get(part) is None:
        node[part] = {}
    return node[part]


def _index(node: list[Any], part: str, override: str) -> int:
    if not part.isdigit() or int(part) >= len(node):
        raise ConfigError(f"override {override!r}: {part!r} is not an index of a list of {len(node)}")
    return int(part)


def _explain(cls: type[Any], found: Any) -> str:
    """One pydantic error as `dotted.path: what was found, what was expected, nearest valid name`."""
    location = [str(part) for part in found["loc"]]
    path, known = _locate(cls, location)
    if found["type"] == "unexpected_keyword_argument":
        name = location[-1]
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known))}"
        return f"{path}: unknown field; {hint}"
    if found["type"] == "missing":
        return f"{path}: required field is missing"
    if found["type"] == "union_tag_invalid":
        context = found["ctx"]
        tag, expected = str(context["tag"]), str(context["expected_tags"])
        near = difflib.get_close_matches(tag, [part.strip(" '") for part in expected.split(",")], n=1, cutoff=0.4)
        return f"{path}.kind: unknown kind {tag!r}; expected one of {expected}" + (
            f"; did you mean {near[0]!r}?" if near else ""
        )
    if found["type"] == "union_tag_not_found":
        return f"{path}.kind: required field is missing; it says which of the kinds this is"
    message = str(found["msg"]).removeprefix("Value error, ")
    message = SAID_PLAINLY.get(message, message[0].lower() + message[1:])
    given = found.get("input")
    shown = (
        f", found {given!r}" if isinstance(given, (str, int, float, bool, type(None))) and repr(given) not in message else ""
    )
    return f"{path}: {message}{shown}" if path else f"{message}{shown}"


def _locate(cls: type[Any], location: Sequence[str]) -> tuple[str, list[str]]:
    """The dotted path a user would write for a pydantic location, and the field names known at its end."""
    path: list[str] = []
    current: list[Any] = [cls]
    known: list[str] = []
    for part in location:
        classes = [item for item in current if dataclasses.is_dataclass(item)]
        tagged = [item for item in classes if _kind(item) == part]
        if tagged and len(classes) > 1:
            current = tagged
            continue
        path.append(part)
        fields = {name: hint for item in classes for name, hint in typing.get_type_hints(item).items()}
        known = sorted(fields)
        current = _members(fields[part]) if part in fields else current
    return ".".join(path), known
