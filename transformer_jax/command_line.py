"""A config from a file and flags: `train.py configs/char_lm.py --d-model 256 --optimizer lion --optimizer.learning-rate 3e-4`.

The file is Python that defines `def config(*, d_model: int = 128, ...) -> Experiment`, or JSON that `to_json` wrote. Flags take effect in this order,
wherever they stand:

    --d-model 256                           a parameter of that function
    --optimizer lion                        a field's type, by name: any imported type that fits; `RMSNorm` and `rms-norm` are the same
    --model.stack.score alibi,softcap       the types of several, or `none`
    --model.stack.groups.0.repeat 6         any other field, by its path

A new type takes over the fields that it shares with the old one, where those were set; what was left at the old type's default gets the new one's.
"""

import collections
import contextlib
import dataclasses
import functools
import importlib.util
import inspect
import re
import sys
import traceback
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypedDict, TypeVar

import tyro

from transformer_jax.config import Config, _fits, from_json, nearest

C = TypeVar("C", bound=Config)
O = TypeVar("O")
_Import = Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="FILE|MODULE", help="import it before all else")]
_Flat: Any = tyro.conf.OmitArgPrefixes
_MISSING = dataclasses.MISSING


@dataclasses.dataclass(frozen=True)
class NoOptions:
    """The options of a script that has none of its own."""


def load(
    source: str,
    args: Sequence[str],
    *,
    expected: type[C] = Config,  # type: ignore[assignment]
    options: type[O] = NoOptions,  # type: ignore[assignment]
    prog: str,
) -> tuple[C, O]:
    """The config that a file and flags describe, and the script's own options.

    `--help` lists every flag and exits with 0. Anything wrong is said on stderr, without a traceback, and exits with 2.

    Args:
        source: a config file, `.py` or `.json`.
        args: flags, `--import` among them.
        expected: the class that the config must have.
        options: a dataclass of the script's own flags.
        prog: the script's name, for messages.
    """
    args = extract_imports(args, prog=prog)
    words = _words_after_flags(args)
    own = {f.name for f in dataclasses.fields(options)}  # type: ignore[arg-type]
    with _reported(prog, source):
        function = _config_function(source)
        parameters = inspect.signature(function).parameters
        if clash := own.intersection(parameters):
            raise ValueError(f"the parameter {clash.pop()!r} is also an option of {prog}: give it another name")
        for name, hint in typing.get_type_hints(function).items():
            if typing.get_origin(hint) is tuple and words.get(name, "a value").startswith("--"):
                raise ValueError(f"{_flag(name)}: expected at least one value, received none; leave it out for its default")

    # What the config is, and so which other flags there are, depends on the parameters: they are parsed alone first, then again with all the rest.
    values_of = functools.wraps(function)(lambda **values: values)
    incomplete = any(p.default is p.empty and name not in words for name, p in parameters.items())
    about = f"Give the required flags, and --help lists all others of {source} too." if incomplete else None
    values, _ = tyro.cli(values_of, prog=prog, description=about, args=args, add_help=incomplete, return_unknown_args=True)
    with _reported(prog, source):
        config = function(**values)
        if not isinstance(config, expected):
            raise TypeError(f"expected a config of type {expected.__name__}, received {type(config).__name__}")

    taken = own.union(parameters)
    fields = _Fields({name: word for name, word in words.items() if name not in taken}, taken)
    with _reported(prog):
        build = fields.add(config, type(config), "")
    section = type(config).__name__
    hints = {
        "import": _Import,
        prog: _Flat[options],
        source: _Flat[Annotated[Any, tyro.conf.arg(constructor=values_of)]],
        section: _Flat[_dict_type(fields.hints)],
    }
    defaults = {"import": (), prog: tyro.MISSING_NONPROP, source: tyro.MISSING_NONPROP, section: fields.defaults}
    parsed, unknown = tyro.cli(_dict_type(hints), prog=prog, args=args, default=defaults, return_unknown_args=True)
    with _reported(prog):
        if unknown:
            raise ValueError(_complaint(unknown, {"import", *taken, *fields.hints}))
        return build(parsed[section]), parsed[prog]


def extract_imports(args: Sequence[str], *, prog: str) -> list[str]:
    """Imports what each `--import FILE|MODULE` names; returns the other arguments."""
    parsed, rest = tyro.cli(_dict_type({"import": _Import}), prog=prog, args=args, default={"import": ()}, add_help=False, return_unknown_args=True)
    with _reported(prog):
        for name in parsed["import"]:
            import_module(name)
    return rest


def import_module(file_or_module: str) -> types.ModuleType:
    """A module by its name, or a file that ends in `.py` under its stem, so that its classes can be named in JSON.

    Raises:
        ImportError: there is no such module or file, or another module has the file's name.
    """
    if not file_or_module.endswith(".py"):
        return importlib.import_module(file_or_module)
    path = Path(file_or_module).resolve()
    if not path.is_file():
        raise ImportError(f"no such file: {file_or_module}")
    if loaded := sys.modules.get(path.stem):
        origin = getattr(loaded, "__file__", None)
        if origin and Path(origin).resolve() == path:
            return loaded
        raise ImportError(f"rename {path}: a module {path.stem!r} is already imported from {origin or 'Python itself'}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[path.stem]
        raise
    return module


class _Fields:
    """The flags that set the fields of a config, entered one by one: the type and the default of each, by its path.

    Args:
        words: what the command line says after each flag; here it decides the types of fields.
        taken: paths that are flags of something else.
    """

    def __init__(self, words: Mapping[str, str], taken: set[str]) -> None:
        self.words, self.taken = words, taken
        self.hints: dict[str, Any] = {}
        self.defaults: dict[str, Any] = {}

    def add(self, value: Any, hint: Any, path: str) -> Callable[[Mapping[str, Any]], Any]:
        """Enters a value and all that is nested in it.

        Returns:
            What makes the value from the parsed flags. It is made once, when all are known: a config checks itself, and half changed it may be wrong.
        """
        if isinstance(value, tuple) and _holds_config(hint):
            value = self._as_many_as_named(value, hint, path)
            items = [self.add(item, _item_hint(hint, n), f"{path}.{n}") for n, item in enumerate(value)]
            return lambda parsed: tuple(item(parsed) for item in items)
        if not _holds_config(hint) or not (value is None or value is _MISSING or isinstance(value, Config)):
            self._enter(path, type(value) if _holds_config(hint) else hint, tyro.MISSING if value is _MISSING else value)
            return lambda parsed: parsed.get(path, value)
        kind = self._kind(value, hint, path)
        if kind is None:
            return lambda parsed: None
        hints = typing.get_type_hints(kind)
        fields = {
            f.name: self.add(_carried(f, value, hints[f.name]), hints[f.name], f"{path}.{f.name}".lstrip("."))
            for f in dataclasses.fields(kind)  # type: ignore[arg-type]
        }
        return lambda parsed: kind(**{name: make(parsed) for name, make in fields.items()})

    def _as_many_as_named(self, value: tuple[Any, ...], hint: Any, path: str) -> tuple[Any, ...]:
        """A tuple of any length is set by the names of its items' types: its items so far, as far as there are names, and what is to be made."""
        choices = _choices(_item_hint(hint, 0))
        if ... not in typing.get_args(hint) or len(choices) < 2:
            return value
        known = {kind: name for name, kind in choices.items()}
        before = ",".join(known.get(type(item), "") for item in value) or "none"
        self._enter(path, Annotated[str, tyro.conf.arg(metavar=f"{{{','.join(choices)}}},...|none")], before)
        if not (word := self.words.get(path)):
            return value
        if word.startswith("--"):
            raise ValueError(f"{_flag(path)}: expected names of types with commas between, out of {', '.join(choices)}, or none")
        names = [] if word == "none" else word.split(",")
        self.words = {**{f"{path}.{n}": name for n, name in enumerate(names)}, **self.words}
        return tuple(value[n] if n < len(value) else _MISSING for n in range(len(names)))

    def _kind(self, value: Any, hint: Any, path: str) -> type[Config] | None:
        kind = None if value is None else type(value)
        choices = _choices(hint)
        if not path or (len(choices) < 2 and value is not _MISSING):
            return kind
        listed = ", ".join(choices) or "no type that a flag can name"
        if word := self.words.get(path):
            folded = {_fold(name): choice for name, choice in choices.items()}
            if _fold(word) not in folded:
                raise ValueError(f"{_flag(path)}: expected one of {listed}; received {word!r}{nearest(_kebab(word), choices)}")
            kind = folded[_fold(word)]
        elif value is _MISSING:
            raise ValueError(f"{_flag(path)} is required: {listed}")
        name = next((name for name, choice in choices.items() if choice is kind), "")
        self._enter(path, Annotated[str, tyro.conf.arg(metavar=f"{{{','.join(choices)}}}")], name)
        return kind

    def _enter(self, path: str, hint: Any, default: Any) -> None:
        if path not in self.taken:
            # Left without help, a flag has tyro look for a comment on it in this file's source: 5 ms for each.
            self.hints[path], self.defaults[path] = Annotated[hint, tyro.conf.arg(help="")], default


def _carried(field: dataclasses.Field[Any], old: Any, hint: Any) -> Any:
    """What a field starts from: what was set in the old config, which may be of another type, or else the default."""
    default = _default(field)
    old_defaults = {f.name: _default(f) for f in dataclasses.fields(old)} if isinstance(old, Config) else {}  # type: ignore[arg-type]
    if field.name not in old_defaults or not _fits(before := getattr(old, field.name), hint):
        return default
    return default if before == old_defaults[field.name] and default is not _MISSING else before


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is _MISSING else field.default_factory()


def _choices(hint: Any) -> dict[str, type[Config] | None]:
    """The types that a field can hold, by name, and None by `none`. Where two have one name, the name includes the module."""
    if hint is types.NoneType:
        return {"none": None}
    if not isinstance(hint, type):
        return {name: kind for member in typing.get_args(hint) for name, kind in _choices(member).items()}
    concrete = {k for k in _family(hint) if "__dataclass_fields__" in vars(k) and not inspect.isabstract(k) and k.__module__ in sys.modules}
    count = collections.Counter(_kebab(k.__name__) for k in concrete)
    names = {_kebab(k.__name__) if count[_kebab(k.__name__)] == 1 else f"{k.__module__}:{k.__qualname__}": k for k in concrete}
    return dict(sorted(names.items()))


def _family(kind: Any) -> Iterator[Any]:
    yield kind
    for child in kind.__subclasses__():
        yield from _family(child)


def _holds_config(hint: Any) -> bool:
    return issubclass(hint, Config) if isinstance(hint, type) else any(map(_holds_config, typing.get_args(hint)))


def _item_hint(hint: Any, n: int) -> Any:
    tuples = [h for h in (hint, *typing.get_args(hint)) if typing.get_origin(h) is tuple]
    first, *rest = typing.get_args(tuples[0])
    return first if n == 0 or rest == [...] else rest[n - 1]


def _config_function(source: str) -> Callable[..., Any]:
    if not Path(source).is_file():
        raise ValueError(f"it is a folder; give {Path(source) / 'config.json'}" if (Path(source) / "config.json").exists() else "no such file")
    if source.endswith(".json"):
        return lambda: from_json(Path(source).read_text(), Config)
    if not source.endswith(".py"):
        raise ValueError("expected a file that ends in .py or .json")
    function = getattr(import_module(source), "config", None)
    if not inspect.isfunction(function):
        raise ValueError(f"expected a function `config`, found {'none' if function is None else repr(function)}")
    for name, hint in typing.get_type_hints(function).items():
        if name != "return" and _holds_config(hint):
            raise ValueError(f"the parameter {name!r} is a config: parameters are plain values; the type of a field has a flag anyway")
    return function


def _words_after_flags(args: Sequence[str]) -> dict[str, str]:
    words = {}
    for arg, following in zip(args, [*args[1:], "--"]):
        if arg.startswith("--"):
            name, _, word = arg[2:].partition("=")
            words[name.replace("-", "_")] = word or following
    return words


def _complaint(unknown: Sequence[str], known: set[str]) -> str:
    word = next((w for w in unknown if w.startswith("--")), unknown[0]).partition("=")[0]
    return f"unknown {'flag' if word.startswith('--') else 'argument'} {word}{nearest(word.replace('_', '-'), sorted(map(_flag, known)))}"


def _dict_type(hints: dict[str, Any]) -> Any:
    return TypedDict("Flags", hints)  # type: ignore[operator]


def _flag(path: str) -> str:
    return "--" + path.replace("_", "-")


def _kebab(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", name).lower()


def _fold(name: str) -> str:
    return re.sub("[-_]", "", name).lower()


@contextlib.contextmanager
def _reported(prog: str, source: str = "") -> Iterator[None]:
    """Turns an error that a user can cause into a message, with the line of `source` that it came by, and exit status 2."""
    try:
        yield
    except (ImportError, TypeError, ValueError) as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if source and Path(f.filename).resolve() == Path(source).resolve()]
        place = f"{source}:{frames[-1].lineno}: " if frames else f"{source}: " if source else ""
        print(f"{prog}: error: {place}{error}", file=sys.stderr)
        sys.exit(2)
