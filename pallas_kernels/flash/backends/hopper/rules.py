"""Users' functions on a Hopper chip, where a tile is a matrix in registers and the compiler knows no `[bq, 1]`.

The function is traced on the tile's shapes as everywhere, and its program is replayed on pieces: what varies over neither axis of the tile is a number,
what varies over one a vector lying as the matrix's rows or columns do, and the two meet in a matrix where an equation needs both. Features are not
axes of registers: an array with features is as many pieces.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.flash.backends.hopper.elementwise import PLAIN, REWRITTEN
from pallas_kernels.flash.tables import body, deposit_p, lookup_p, needed

LAYOUTS: dict[tuple[int, ...], Any] = {(0,): plgpu.Layout.WGMMA.reduce(1), (1,): plgpu.Layout.WGMMA.reduce(0), (0, 1): plgpu.Layout.WGMMA}


@dataclass(frozen=True)
class Piece:
    """A number, vector or matrix in registers, and the axes of the tile, 0 and 1, that it varies over."""

    value: Any
    axes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Value:
    """A value of a traced function: an array of pieces, of length 1 along the tile's axes.

    `tile` tells for each of its dimensions which axis of the tile it is, None for a feature.
    """

    pieces: np.ndarray
    tile: tuple[int | None, ...]

    @property
    def one(self) -> Piece:
        return self.pieces.reshape(-1)[0]


def of_tile(value: Any, axes: tuple[int, ...] = ()) -> Value:
    """A value without features."""
    return Value(_filled((1, 1), Piece(value, axes)), (0, 1))


def of_features(pieces: Sequence[Piece], features: tuple[int, ...]) -> Value:
    """A value with them, from its pieces in order."""
    array = np.empty(len(pieces), object)
    array[:] = pieces
    return Value(array.reshape(1, 1, *features), (0, 1, *(None for _ in features)))


def spread(piece: Piece, tile: tuple[int, ...], axes: tuple[int, ...] = (0, 1)) -> Any:
    """A piece in registers as a vector or matrix over the given axes of the tile."""
    if piece.axes == axes or not axes:
        return piece.value
    shape = tuple(tile[axis] for axis in axes)
    places = [axes.index(axis) for axis in piece.axes]
    return plgpu.layout_cast(jax.lax.broadcast_in_dim(piece.value, shape, places), LAYOUTS[axes])


def loaded(place: Any, axes: tuple[int, ...]) -> Any:
    """What lies there, in registers over these axes of the tile."""
    load: Any = plgpu.load  # older versions of jax want an index beside the reference
    return load(place, layout=LAYOUTS[axes], optimized=False)


class Replay:
    """Replays programs on pieces of a tile of that shape."""

    def __init__(self, tile: tuple[int, int]) -> None:
        self.tile = tile

    def __call__(self, fn: Callable[..., Any], avals: Any, values: Sequence[Callable[[], Value]]) -> list[Any]:
        """The leaves of `fn`'s result, each a `Value` or `Deposited`.

        Args:
            avals: `fn`'s arguments as shapes and dtypes.
            values: for each of their leaves, what makes its value. Called when first read: the compiler fails at registers that nothing reads.
        """
        closed = jax.make_jaxpr(fn)(*avals)
        return self._run(closed.jaxpr, [_constant(c) for c in closed.consts], [Later(v) for v in values])

    def _run(self, jaxpr: Any, consts: Sequence[Value], args: Sequence[Any]) -> list[Any]:
        values: dict[Any, Any] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args]))

        def found(v: Any) -> Any:
            value = _constant(v.val) if isinstance(v, jax.extend.core.Literal) else values[v]
            return value.made if isinstance(value, Later) else value

        def read(v: Any) -> Value:
            value = found(v)
            return value.value() if isinstance(value, Deposited) else value

        for eqn in needed(jaxpr):
            if inner := body(eqn):
                outputs = self._run(inner.jaxpr, [_constant(c) for c in inner.consts], [Later(partial(found, v)) for v in eqn.invars])
            else:
                outputs = self._equation(eqn, [read(v) for v in eqn.invars])
            values.update(zip(eqn.outvars, outputs))
        return [found(v) for v in jaxpr.outvars]

    def _equation(self, eqn: Any, inputs: list[Value]) -> list[Any]:
        if rule := STRUCTURAL.get(eqn.primitive.name):
            outputs = rule(self, eqn, *inputs)
            return outputs if isinstance(outputs, list) else [outputs]
        rule = REWRITTEN.get(eqn.primitive.name, lambda *values: eqn.primitive.bind(*values, **eqn.params))
        return [self.elementwise(rule, *inputs)]

    def elementwise(self, fn: Callable[..., Any], *inputs: Value) -> Value:
        """`fn` piece by piece, each spread over the axes that the others vary over."""
        rank = max(len(v.tile) for v in inputs)
        inputs = tuple(v if v.tile else Value(v.pieces.reshape((1,) * rank), (None,) * rank) for v in inputs)
        tile = _merged(*(v.tile for v in inputs))
        columns = [p.reshape(-1) for p in np.broadcast_arrays(*(v.pieces for v in inputs))]
        shape = np.broadcast_shapes(*(v.pieces.shape for v in inputs))
        pieces = np.empty(columns[0].shape, object)
        pieces[:] = [self.combined(fn, *row) for row in zip(*columns)]
        return Value(pieces.reshape(shape), tile)

    def combined(self, fn: Callable[..., Any], *pieces: Piece) -> Piece:
        axes = tuple(sorted({axis for piece in pieces for axis in piece.axes}))
        return Piece(fn(*(spread(piece, self.tile, axes) for piece in pieces)), axes)

    def summed(self, piece: Piece, axes: Iterable[int], to: Callable[..., Any] = jnp.sum) -> Piece:
        """Over axes of the tile; what does not vary over one is as often there as it is long."""
        value, left = piece.value, list(piece.axes)
        for axis in sorted(axes, reverse=True):
            if axis in left:
                value = to(value, axis=left.index(axis))
                left.remove(axis)
            elif to is jnp.sum:
                value = value * jnp.asarray(self.tile[axis], value.dtype)
        return Piece(value, tuple(left))


class Later:
    """A value made when it is first read."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make, self._made = make, None

    @property
    def made(self) -> Any:
        self._made = self._made or self._make()
        return self._made


@dataclass(frozen=True)
class Deposited:
    """The sums that `deposit` makes. All at a time are too many for the registers: whoever adds them up may ask for one after the other."""

    replay: Replay
    g: Piece
    index: Piece
    shape: tuple[int, ...]
    over: tuple[int, ...]

    def entry(self, n: Any) -> Piece:
        """The n-th sum; n may be known to the chip alone."""
        mine = self.replay.combined(lambda index, g: jnp.where(index == n, g, jnp.zeros_like(g)), self.index, self.g)
        return self.replay.summed(mine, self.over)

    def value(self) -> Value:
        return of_features([self.entry(n) for n in range(self.shape[-1])], self.shape[2:])


def unknown(jaxpr: Any) -> str | None:
    """The first primitive of a program that cannot be replayed, or None."""
    for eqn in needed(jaxpr):
        inner, name = body(eqn), eqn.primitive.name
        if inner:
            if found := unknown(inner.jaxpr):
                return found
        elif name not in STRUCTURAL and name not in REWRITTEN and name not in PLAIN:
            return name
    return None


def _constant(value: Any) -> Value:
    value = np.asarray(value)
    pieces = np.empty(value.shape, object)
    for place in np.ndindex(value.shape):
        pieces[place] = Piece(jnp.asarray(value[place]))
    return Value(pieces, (None,) * value.ndim)


def _merged(*tiles: tuple[int | None, ...]) -> tuple[int | None, ...]:
    return tuple(next((axis for axis in places if axis is not None), None) for places in zip(*tiles))


def _filled(shape: tuple[int, ...], piece: Piece) -> np.ndarray:
    pieces = np.empty(shape, object)
    pieces.reshape(-1)[:] = [piece] * pieces.size
    return pieces


def _broadcast_in_dim(replay: Replay, eqn: Any, value: Value) -> Value:
    shape, dims = eqn.params["shape"], eqn.params["broadcast_dimensions"]
    tile: list[int | None] = [place if place < 2 <= len(shape) else None for place in range(len(shape))]
    lengths = [1] * len(shape)
    for old, new in enumerate(dims):
        lengths[new] = value.pieces.shape[old]
        if value.tile[old] is not None:
            tile[new] = value.tile[old]
    full = [1 if axis is not None else length for axis, length in zip(tile, shape)]
    return Value(np.broadcast_to(value.pieces.reshape(lengths), full), tuple(tile))


def _reshape(replay: Replay, eqn: Any, value: Value) -> Value:
    """Axes of length 1 come and go, or features are grouped anew; the tile's axes stay what they are."""
    before, after = eqn.invars[0].aval.shape, eqn.params["new_sizes"]
    old, new = ([d for d, n in enumerate(shape) if n > 1] for shape in (before, after))
    if [before[d] for d in old] != [after[d] for d in new]:
        return Value(value.pieces.reshape(1, 1, *after[2:]), (0, 1, *(None for _ in after[2:])))
    tile: list[int | None] = [d if d < 2 <= len(after) else None for d in range(len(after))]
    for was, now in zip(old, new):
        tile[now] = value.tile[was]
    return Value(value.pieces.reshape([1 if axis is not None else n for axis, n in zip(tile, after)]), tuple(tile))


def _iota(replay: Replay, eqn: Any) -> Value:
    return _constant(np.indices(eqn.params["shape"])[eqn.params["dimension"]].astype(eqn.params["dtype"]))


def _squeeze(replay: Replay, eqn: Any, value: Value) -> Value:
    gone = {d % len(value.tile) for d in eqn.params["dimensions"]}
    return Value(np.squeeze(value.pieces, tuple(gone)), tuple(axis for d, axis in enumerate(value.tile) if d not in gone))


def _reduction(to: Callable[..., Any], of_two: Callable[..., Any]) -> Callable[..., Value]:
    def reduce(replay: Replay, eqn: Any, value: Value) -> Value:
        axes = eqn.params["axes"]
        over = [value.tile[d] for d in axes if value.tile[d] is not None and eqn.invars[0].aval.shape[d] > 1]
        pieces = np.moveaxis(value.pieces, axes, range(len(axes))).reshape(-1, *(n for d, n in enumerate(value.pieces.shape) if d not in axes))
        found = np.empty(pieces.shape[1:], object)
        for place in np.ndindex(found.shape):
            total = pieces[(0, *place)]
            for other in pieces[(slice(1, None), *place)]:
                total = replay.combined(of_two, total, other)
            found[place] = replay.summed(total, over, to)
        return Value(found, tuple(axis for d, axis in enumerate(value.tile) if d not in axes))

    return reduce


def _slice(replay: Replay, eqn: Any, value: Value) -> Value:
    start, stop = eqn.params["start_indices"], eqn.params["limit_indices"]
    steps = eqn.params["strides"] or (1,) * len(start)
    places = tuple(slice(None) if axis is not None else slice(*of) for axis, *of in zip(value.tile, start, stop, steps))
    return Value(value.pieces[places], value.tile)


def _pad(replay: Replay, eqn: Any, value: Value, padding: Value) -> Value:
    """Of features: what the derivative of a slice is made of."""
    widths = [(low, high) for low, high, _ in eqn.params["padding_config"]]
    pieces = _filled(tuple(low + n + high for (low, high), n in zip(widths, value.pieces.shape)), padding.one)
    pieces[tuple(slice(low, low + n) for (low, _), n in zip(widths, value.pieces.shape))] = value.pieces
    return Value(pieces, value.tile)


def _stack(replay: Replay, eqn: Any, *values: Value) -> Value:
    axis, tile = eqn.params["axis"], _merged(*(v.tile for v in values))
    return Value(np.stack([v.pieces for v in values], axis), (*tile[:axis], None, *tile[axis:]))


def _unstack(replay: Replay, eqn: Any, value: Value) -> list[Value]:
    axis = eqn.params["axis"]
    tile = value.tile[:axis] + value.tile[axis + 1 :]
    return [Value(pieces, tile) for pieces in np.moveaxis(value.pieces, axis, 0)]


def _integer_pow(replay: Replay, eqn: Any, value: Value) -> Value:
    power = eqn.params["y"]
    return replay.elementwise(lambda a: jax.lax.integer_pow(a, power) if power >= 0 else 1.0 / jax.lax.integer_pow(a, -power), value)


def _split(replay: Replay, eqn: Any, value: Value) -> list[Value]:
    ends = np.cumsum(eqn.params["sizes"])[:-1]
    return [Value(pieces, value.tile) for pieces in np.split(value.pieces, ends, eqn.params["axis"])]


def _concatenate(replay: Replay, eqn: Any, *values: Value) -> Value:
    return Value(np.concatenate([v.pieces for v in values], eqn.params["dimension"]), values[0].tile)


def _lookup(replay: Replay, eqn: Any, table: Value, index: Value) -> Value:
    """A chain of selects by the values of the index. One by its bits has half the instructions, and too many matrices alive for the registers."""

    def pick(index: Any, pieces: Any) -> Piece:
        picked = pieces[0]
        for n, piece in enumerate(pieces[1:], 1):
            picked = replay.combined(partial(_where_equal, n), index, piece, picked)
        return picked

    shape = np.broadcast_shapes(table.pieces.shape[:-1], index.pieces.shape)
    rows = np.broadcast_to(table.pieces, (*shape, table.pieces.shape[-1]))
    indices, found = np.broadcast_to(index.pieces, shape), np.empty(shape, object)
    for place in np.ndindex(shape):
        found[place] = pick(indices[place], rows[place])
    return Value(found, _merged(table.tile[:-1], index.tile))


def _where_equal(n: int, index: Any, new: Any, old: Any) -> Any:
    """By lax: jnp wraps each of these in a program of its own, and there are many."""
    return jax.lax.select(jax.lax.eq(index, jax.lax.full_like(index, n)), new, old)


def _deposit(replay: Replay, eqn: Any, g: Value, index: Value) -> Deposited:
    shape = eqn.params["shape"]
    over = tuple(axis for axis in (0, 1) if shape[axis] == 1 and eqn.invars[0].aval.shape[axis] > 1)
    return Deposited(replay, g.one, index.one, shape, over)


STRUCTURAL: dict[str, Callable[..., Any]] = {
    "broadcast_in_dim": _broadcast_in_dim,
    "reshape": _reshape,
    "squeeze": _squeeze,
    "slice": _slice,
    "pad": _pad,
    "concatenate": _concatenate,
    "split": _split,
    "stack": _stack,
    "unstack": _unstack,
    "integer_pow": _integer_pow,
    "reduce_sum": _reduction(jnp.sum, jnp.add),
    "reduce_max": _reduction(jnp.max, jnp.maximum),
    "reduce_min": _reduction(jnp.min, jnp.minimum),
    "iota": _iota,
    lookup_p.name: _lookup,
    deposit_p.name: _deposit,
}
