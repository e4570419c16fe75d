"""A model drawn as text."""

from collections.abc import Iterator
from dataclasses import MISSING, fields
from typing import Any

from transformer_jax.analysis.parts import children
from transformer_jax.config import Config
from transformer_jax.layers.masks import And, Not, Or
from transformer_jax.layers.norm import NoNorm, Norm
from transformer_jax.layers.residual import Branch, Parallel, Residual
from transformer_jax.layers.stack import Group, Stack


def brief(value: Any) -> str:
    """A config as its type and the fields that are not at their default: `Attention(8, num_kv_heads=2, mask=Causal & SlidingWindow(64), position=Rope)`."""
    match value:
        case And(a=a, b=b):
            return f"{brief(a)} & {brief(b)}"
        case Or(a=a, b=b):
            return f"({brief(a)} | {brief(b)})"
        case Not(a=a):
            return f"~{brief(a)}"
        case Config():
            given = [f for f in fields(value) if getattr(value, f.name) != _default(f)]  # type: ignore[arg-type]
            shown = [("" if _default(f) is MISSING and f is fields(value)[0] else f"{f.name}=") + brief(getattr(value, f.name)) for f in given]  # type: ignore[arg-type]
            return type(value).__name__ + (f"({', '.join(shown)})" if shown else "")
        case tuple():
            return f"({', '.join(map(brief, value))})"
    return str(value)


def _default(field: Any) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def draw(config: Config) -> str:
    """A model's config as text, in the order in which data flows.

    Each sublayer is a branch off the residual stream on the left, which comes back and is added at the `+`; norms stand where they are applied, and any part,
    a user's own too, is its type with the fields that are not left at their default.
    """
    plain = [f"{f.name}={value}" for f in fields(config) if isinstance(value := getattr(config, f.name), (int, str, float))]  # type: ignore[arg-type]
    lines = [f"{type(config).__name__}: {', '.join(plain)}"]
    for name, part in children(config).items():
        lines += _stack(name, part) if isinstance(part, Stack) else [f"{name}: {brief(part)}"]
    return "\n".join(lines)


def _stack(name: str, stack: Stack) -> Iterator[str]:
    if stack.score:
        yield f"{name}: {', '.join(map(brief, stack.score))} in every self-attention"
    for n, group in enumerate(stack.groups):
        yield f"{name} {n}: {_times(group)}"
        for m, sublayer in enumerate(group.sublayers):
            yield from (f"{'' if line else f'{n}.{m}':>5} {text}" for line, text in enumerate(_residual(sublayer)))
    if not isinstance(stack.final_norm, NoNorm):
        yield f"{name}: {brief(stack.final_norm)}"


def _times(group: Group) -> str:
    times = "once" if group.repeat == 1 else f"{group.repeat} times"
    shared = ", with the same parameters" if group.share else ""
    return times + shared + {"nothing": "", "products": ", all but products computed again", "everything": ", all computed again"}[group.remat]


def _residual(sublayer: Residual) -> list[str]:
    branches = sublayer.layer.branches if isinstance(sublayer.layer, Parallel) else (sublayer.layer,)
    ways = [" → ".join([*_norm(sublayer.pre), *_branch(branch)]) for branch in branches]
    back = " ← ".join([*([f"dropout {sublayer.dropout}"] if sublayer.dropout else []), *_norm(sublayer.post)])
    width = max(*map(len, ways), len(back))
    lines = [f"├→ {f'{way} '.ljust(width + 1, '─')}─{'┤' if n else '┐'}" for n, way in enumerate(ways)]
    lines.append(f"+←{f' {back} ' if back else ''}".ljust(width + 5, "─") + "┘")
    return [*lines, *(f"{norm} of the sum" for norm in _norm(sublayer.after))]


def _branch(layer: Config) -> list[str]:
    return [*_norm(layer.pre), *_branch(layer.layer)] if isinstance(layer, Branch) else [brief(layer)]


def _norm(norm: Norm) -> list[str]:
    return [] if isinstance(norm, NoNorm) else [brief(norm)]
