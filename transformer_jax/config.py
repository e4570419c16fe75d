"""Configs: frozen, hashable dataclasses that check themselves and survive a trip through JSON.

A choice is a type, not a string: `position=Rope(theta=1e4)`. A field is annotated with an open base class, so a type defined anywhere fits:

    @dataclass(frozen=True)
    class Sinusoid(Position):
        period: float = 1e4

A type is written down as `module:Class`. Reading one back takes only classes of modules that are imported already: a file of settings runs no code.
"""

import dataclasses
import difflib
import functools
import json
import sys
import types
import typing
from collections.abc import Iterator
from typing import Any, Self, TypeVar, Union

C = TypeVar("C", bound="Config")


class Config:
    """Base of every config. Subclasses are `@dataclass(frozen=True)`, with fields by name from the second on.

    Values are checked against the annotations on construction; a subclass that checks more calls `super().__post_init__()` first.

    Raises:
        TypeError: a field holds something that its annotation does not allow.
    """

    def __post_init__(self) -> None:
        hints = _hints(type(self))  # type: ignore[arg-type]  # classes are hashable
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if not _fits(value, hints[field.name]):
                expected = _describe(hints[field.name])
                raise TypeError(f"{type(self).__name__}.{field.name}: expected {expected}, received {value!r}{_way_out(value, hints[field.name])}")

    def replace(self, **changes: Any) -> Self:
        """The same config with some fields changed; `replace(d_model=64)`."""
        unknown = set(changes) - {f.name for f in dataclasses.fields(self)}  # type: ignore[arg-type]
        if unknown:
            raise TypeError(f"{type(self).__name__} has no field {unknown.pop()!r}; it has {', '.join(f.name for f in dataclasses.fields(self))}")  # type: ignore[arg-type]
        return dataclasses.replace(self, **changes)  # type: ignore[type-var]

    def walk(self) -> Iterator["Config"]:
        """This config and all that are nested in it, outermost first."""
        yield self
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            for item in value if isinstance(value, tuple) else (value,):
                if isinstance(item, Config):
                    yield from item.walk()


def to_json(config: Config) -> str:
    """A config as indented JSON, each type named `module:Class`."""
    return json.dumps(_encode(config), indent=2) + "\n"


def from_json(text: str, expected: type[C]) -> C:
    """The config that `to_json` wrote.

    Args:
        text: JSON.
        expected: the class, or a base class, that the outermost value must have.

    Raises:
        ValueError: not JSON, a class that is not imported, an unknown field (the nearest is named) or one that is missing.
        TypeError: a value of the wrong type.
    """
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from None
    config = _decode(data, where="")
    if not isinstance(config, expected):
        raise TypeError(f"expected a {expected.__name__}, received {type(config).__name__}")
    return config


def nearest(word: str, among: typing.Iterable[str]) -> str:
    """` (nearest: ...)` for an error message, or nothing where no candidate is near."""
    found = difflib.get_close_matches(word, list(among), n=1)
    return f" (nearest: {found[0]})" if found else ""


def differences(a: Config, b: Config) -> list[str]:
    """The paths at which two configs differ, as `run.seed: 1 -> 2`."""
    return list(_differences(_encode(a), _encode(b), ""))


def _encode(value: Any) -> Any:
    if isinstance(value, Config):
        kind = type(value)
        fields = {f.name: _encode(getattr(value, f.name)) for f in dataclasses.fields(value)}  # type: ignore[arg-type]
        return {"type": f"{kind.__module__}:{kind.__qualname__}", **fields}
    if isinstance(value, tuple):
        return [_encode(v) for v in value]
    return value


def _decode(data: Any, where: str) -> Any:
    if isinstance(data, list):
        return tuple(_decode(item, f"{where}.{n}") for n, item in enumerate(data))
    if not isinstance(data, dict):
        return data
    place = where.lstrip(".") or "the outermost value"
    if "type" not in data:
        raise ValueError(f"{place}: expected an object with a field 'type', received one with {', '.join(data) or 'no fields'}")
    kind = _find_class(data["type"], place)
    known = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    values = {name: _decode(item, f"{where}.{name}") for name, item in data.items() if name != "type"}
    for name in values:
        if name not in known:
            raise ValueError(f"{place}: {kind.__name__} has no field {name!r}{nearest(name, known)}")
    for name, field in known.items():
        if name not in values and field.default is field.default_factory is dataclasses.MISSING:
            raise ValueError(f"{place}: {kind.__name__} needs a field {name!r}")
    try:
        return kind(**values)
    except TypeError as error:
        raise TypeError(f"{place}: {error}") from None


def _find_class(name: str, where: str) -> type[Config]:
    module, _, qualname = str(name).partition(":")
    try:
        # Not getattr: a module's own __getattr__ may import, and so run, something.
        kind = functools.reduce(lambda outer, part: vars(outer)[part], qualname.split("."), sys.modules[module])
    except (KeyError, TypeError):
        way_out = "import the module that defines it first (scripts: --import FILE|MODULE)"
        raise ValueError(f"{where}: expected a class of an imported module, received {name!r}; {way_out}") from None
    if not (isinstance(kind, type) and issubclass(kind, Config) and dataclasses.is_dataclass(kind)):
        raise ValueError(f"{where}: expected the name of a config class, received {name!r}, which is not one")
    return kind


def _differences(a: Any, b: Any, where: str) -> Iterator[str]:
    if isinstance(a, dict) and isinstance(b, dict) and a.get("type") == b.get("type"):
        for name in a:
            yield from _differences(a[name], b.get(name), f"{where}.{name}" if where else name)
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for n, (x, y) in enumerate(zip(a, b)):
            yield from _differences(x, y, f"{where}.{n}")
    elif a != b:
        short = [v["type"].partition(":")[2] if isinstance(v, dict) else json.dumps(v) for v in (a, b)]
        yield f"{where}: {short[0]} -> {short[1]}"


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _fits(value: Any, hint: Any) -> bool:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(_fits(value, a) for a in args)
    if origin is typing.Literal:
        return value in args
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if len(args) == 2 and args[1] is Ellipsis:
            return all(_fits(v, args[0]) for v in value)
        return len(value) == len(args) and all(_fits(v, a) for v, a in zip(value, args))
    if hint in (int, float) and isinstance(value, bool):
        return False
    if hint is float:
        return isinstance(value, (int, float))
    return isinstance(value, origin or hint)


def _describe(hint: Any) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(a) for a in args)
    if origin is typing.Literal:
        return "one of " + ", ".join(map(repr, args))
    if origin is tuple:
        return f"a tuple of {_describe(args[0])}"
    if hint is type(None):
        return "None"
    name: str = getattr(hint, "__name__", str(hint))
    return f"a {name} config" if isinstance(hint, type) and issubclass(hint, Config) else name


def _way_out(value: Any, hint: Any) -> str:
    if isinstance(value, type) and isinstance(hint, type) and issubclass(value, hint):
        return f"; give an instance: {value.__name__}(...)"
    if typing.get_origin(hint) is tuple and not isinstance(value, tuple):
        return "; put it in a tuple: (..., )"
    return ""
