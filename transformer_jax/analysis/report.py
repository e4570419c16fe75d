"""What a model is made of and costs, as text."""

from collections.abc import Mapping, Sequence
from typing import Any

from transformer_jax.analysis.costs import Complexity, Cost, Growth, costs, crossings, peak
from transformer_jax.analysis.draw import draw
from transformer_jax.analysis.parts import Part
from transformer_jax.analysis.sizes import CacheBytes, cache_bytes
from transformer_jax.layers.mixers.cross_attention import CrossAttention
from transformer_jax.training.objective import NextToken, Objective


def describe(model: Any, grows: Mapping[Part, Complexity], *, batch: int, length: int, objective: Objective = NextToken()) -> str:
    """A model drawn, and tables of what it costs: by part, for the cache, and as a function of the length.

    Args:
        model: of `config.make(...)`.
        grows: its `complexity`.
        batch: sequences.
        length: tokens of each, at most the config's max_length.
        objective: what is minimised in training.
    """
    each = costs(model, batch=batch, length=length, objective=objective)
    most = peak(model, batch=batch, length=length, objective=objective)
    at_once = f"At once, beside parameters (predicted): {_bytes(most.forward)} in the forward pass, {_bytes(most.training)} in loss and gradients"
    tables = (_cost_table(each, batch, length), at_once, _cache_table(cache_bytes(model), batch, model.config.max_length), _complexity_table(grows))
    notes = [f"T^2 products cost as much as {name} at T = {at:,.0f}" for name, at in crossings(grows).items()]
    if any(isinstance(part.config, CrossAttention) for part in grows):
        notes.insert(0, "A sequence is a source and its target, of T tokens each, so cross-attention's S x T is T^2")
    return "\n\n".join([draw(model.config), *tables, "\n".join(notes)]).rstrip() + "\n"


def _cost_table(each: Mapping[Part, Cost], batch: int, length: int) -> str:
    def row(name: str, cost: Cost) -> list[str]:
        forward, training = (_si(n / (batch * length)) for n in (cost.forward, cost.training))
        return [name, f"{cost.parameters:,}", forward, training, _bytes(cost.kept)]

    header = [f"{batch} sequences of {length} tokens", "parameters", "FLOPs a token", "in training", "kept for backward"]
    return _table([header, *(row(part.name, cost) for part, cost in each.items()), row("total", sum(each.values(), Cost()))])


def _cache_table(each: Mapping[str, CacheBytes], batch: int, length: int) -> str:
    if not each:
        return "No cache"

    total = CacheBytes(*(sum(column) for column in zip(*(vars(cache).values() for cache in each.values()))))

    def row(name: str, cache: CacheBytes) -> list[str]:
        source = [f"{cache.per_source:,}"] if total.per_source else []
        return [name, f"{cache.per_token:,}", *source, f"{cache.fixed:,}", _bytes(batch * (cache.fixed + length * (cache.per_token + cache.per_source)))]

    header = ["cache, bytes of a sequence", "per token", *(["per source token"] if total.per_source else []), "fixed", f"{batch} x {length} tokens"]
    return _table([header, *(row(name, cache) for name, cache in each.items() if cache != CacheBytes(0, 0)), row("total", total)])


def _complexity_table(grows: Mapping[Part, Complexity]) -> str:
    def row(name: str, grow: Complexity) -> list[str]:
        orders = [text for n, text in ((grow.compute.square, "T^2 d"), (grow.compute.linear, "T d^2")) if n]
        time = "O(T^2)" if grow.compute.square or grow.plain.square else "O(T)"
        return [name, time, f"O({' + '.join(orders) or 'T d'})", *map(_growth, (grow.compute, grow.plain, grow.tiled))]

    layers = [grow for part, grow in grows.items() if part.group]
    header = ["growth with T, loss apart", "time", "compute, d = d_model", "FLOPs, forward", "bytes kept, plain", "bytes kept, tiled"]
    rows = [row(part.name, grow) for part, grow in grows.items()]
    return _table([header, *rows, row("all layers", sum(layers[1:], layers[0]))])


def _growth(growth: Growth) -> str:
    return " + ".join(f"{_si(n)}{power}" for n, power in ((growth.square, " T^2"), (growth.linear, " T"), (growth.fixed, "")) if n) or "0"


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Columns: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))]) for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _bytes(n: float) -> str:
    return f"{_si(n)}B" if n >= 999.5 else f"{n:.0f} B"


def _si(n: float) -> str:
    for unit in ("", " k", " M", " G", " T"):
        if abs(n) < 999.5:
            return f"{n:.3g}{unit}"
        n /= 1000
    return f"{n:.3g} P"
