"""Stacks as published configs say them, layer by layer, and as ours do, in groups."""

from collections.abc import Iterator, Sequence

from transformer_jax.layers import Group, Residual, Stack
from transformer_jax.zoo.tensors import Place

Layer = tuple[Residual, ...]


def grouped(layers: Sequence[Layer]) -> tuple[Group, ...]:
    """The layers, in order, in groups that repeat: of all ways one that writes down the fewest layers.

    local, local, global, local, local, global, local becomes Group(2, (local, local, global)), Group(1, (local,)).
    """
    kinds: dict[Layer, int] = {}
    ids = [kinds.setdefault(layer, len(kinds)) for layer in layers]
    n = len(ids)
    best: list[tuple[int, int, int]] = [(0, 0, 0)] * (n + 1)  # layers written down from here on, period, repetitions
    for i in reversed(range(n)):
        ways = [(period + best[i + period * times][0], period, times) for period in range(1, n - i + 1) if (times := _repetitions(ids[i:], period))]
        best[i] = min(ways, key=lambda way: way[0])
    groups, i = [], 0
    while i < n:
        _, period, times = best[i]
        groups.append(Group(times, tuple(sublayer for layer in layers[i : i + period] for sublayer in layer)))
        i += period * times
    return tuple(groups)


def _repetitions(ids: Sequence[int], period: int) -> int:
    times = 1
    while ids[times * period : (times + 1) * period] == ids[:period]:
        times += 1
    return times


def sublayers(stack: Stack, name: str = "stack") -> Iterator[tuple[Place, Residual]]:
    """A stack's sublayers, repetitions one after the other, each with the place of its parameters."""
    for n, group in enumerate(stack.groups):
        for repetition in range(group.repeat):
            for m, sublayer in enumerate(group.sublayers):
                place = Place((name, f"groups_{n}", "layers", f"sublayers_{m}"))
                yield (place if group.share else place[repetition]), sublayer


def one_by_one(place: Place) -> Place:
    """The same place in a model whose layers have arrays of their own: see `models.unstacked`."""
    if not place.index or "layers" not in place.path:
        return place
    layer, *index = place.index
    return Place(tuple(f"layers_{layer}" if name == "layers" else name for name in place.path), tuple(index))


def places(stack: Stack, each: int = 2, name: str = "stack") -> Iterator[tuple[Place, ...]]:
    """The places of the parameters of each layer's sublayers, of which a layer has `each`."""
    found = [place for place, _ in sublayers(stack, name)]
    return (tuple(found[n : n + each]) for n in range(0, len(found), each))


def layers(stack: Stack, each: int = 2) -> list[Layer]:
    """Each layer's sublayers, of which it has `each`; none where they do not come out even, or are shared."""
    found = tuple(sublayer for _, sublayer in sublayers(stack))
    if len(found) % each or any(group.share for group in stack.groups):
        return []
    return [found[n : n + each] for n in range(0, len(found), each)]


def flat(stack: Stack) -> Stack:
    """The same stack, however it was grouped."""
    one_by_one = tuple(Group(1, (sublayer,)) for group in stack.groups for _ in range(group.repeat) for sublayer in group.sublayers)
    return stack if any(group.share for group in stack.groups) else stack.replace(groups=one_by_one)
