"""Tile arithmetic that backends share: cutting arrays, and what happens to the scores in a tile.

Everything a mask or score reads, the index included, is a pytree of arrays `[B|1, K|1, G|1, T|1, S|1, *features]` (query heads split into K groups of G).
Cutting a tile, or turning it on its side, is one `tree.map` over it.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.flash.functions import Index
from pallas_kernels.flash.masks import Mask
from pallas_kernels.flash.request import Dropout, Request, float_arrays, with_float_arrays
from pallas_kernels.flash.scores import Score

ROWS, KEYS = 3, 4


class Operands(NamedTuple):
    """What the elementwise functions of a tile read."""

    i: Index
    mask: Mask | None
    scores: tuple[Score, ...] = ()
    sinks: Any = None


def scored(operands: Operands, s: jax.Array, partial: bool) -> jax.Array:
    """The scores of a tile, changed in order, and -inf where the mask forbids; a tile that is not partial needs no mask."""
    for score in operands.scores:
        s = jnp.broadcast_to(score(s, operands.i), s.shape)
    if partial and operands.mask is not None:
        s = jnp.where(operands.mask.allowed(operands.i), s, -jnp.inf)
    return s


def kept(operands: Operands, dropout: Dropout | None, *tiles: jax.Array) -> tuple[jax.Array, ...]:
    """Each tile where dropout keeps its element, divided by 1 - rate, and 0 elsewhere."""
    if dropout is None:
        return tiles
    keep = dropout.keep(operands.i)
    return tuple(jnp.where(keep, a / (1 - dropout.rate), 0) for a in tiles)


def flow_back(
    operands: Operands, dropout: Dropout | None, partial: bool, s: jax.Array, dp: jax.Array, lse: jax.Array, delta: jax.Array
) -> tuple[jax.Array, jax.Array, list[jax.Array]]:
    """The backward pass within a tile, all of it elementwise but for sums over the axes that an array of a score lacks.

        p = exp(score(s) - lse)    dscore = p * (dropout(dp) - delta)    ds, darrays = vjp of score

    Args:
        s: scale * q.k.
        dp: dO.v.
        lse, delta: of the rows, delta = rowsum(dO * O) - dlse.

    Returns:
        ds, dropout(p), and the gradients of the scores' float arrays.
    """

    def score(s: jax.Array, arrays: list[jax.Array]) -> jax.Array:
        return scored(operands._replace(scores=with_float_arrays(operands.scores, arrays)), s, partial=False)

    changed, back = jax.vjp(score, s, float_arrays(operands.scores))
    p = jnp.exp(scored(operands._replace(scores=()), changed, partial) - lse)
    dp, p_kept = kept(operands, dropout, dp, p)
    ds, arrays = back(p * (dp - delta))
    return ds, p_kept, arrays


def sink_gradients(sinks: jax.Array, lse: jax.Array, delta: jax.Array) -> jax.Array:
    """The gradient of sinks `[N]` from lse and delta `[B, N, T]`; a row without keys or sink has no part in it."""
    p = jnp.where(lse > -jnp.inf, jnp.exp(sinks.astype(lse.dtype)[:, None] - lse), 0)
    return -(p * delta).sum((0, 2)).astype(sinks.dtype)


def operand_shapes(request: Request, tile: tuple[int, int], upright: bool = True) -> Operands:
    """The shapes and dtypes of what the functions of one head's tile read, `[1|bq, 1|bk, *features]`, or with the keys first.

    Floats are float32, as kernels read them.
    """

    def turned(rows: int, columns: int) -> tuple[int, int]:
        return (rows, columns) if upright else (columns, rows)

    def shape(a: Any) -> Any:
        sides = turned(*(size if n > 1 else 1 for n, size in zip(jnp.shape(a)[2:4], tile)))
        dtype = jnp.result_type(a)
        return jax.ShapeDtypeStruct((*sides, *jnp.shape(a)[4:]), jnp.float32 if jnp.issubdtype(dtype, jnp.floating) else dtype)

    one, q, k = (jax.ShapeDtypeStruct(turned(*sides), jnp.int32) for sides in ((1, 1), (tile[0], 1), (1, tile[1])))
    return Operands(Index(one, one, q, k, q, k), *jax.tree.map(shape, (request.mask, request.score)))


def by_group(tree: Any, num_kv_heads: int) -> Any:
    """`[B|1, N|1, ...]` to `[B|1, K|1, G|1, ...]`."""

    def split(a: Any) -> Any:
        heads = (1, 1) if a.shape[1] == 1 else (num_kv_heads, a.shape[1] // num_kv_heads)
        return a.reshape(a.shape[0], *heads, *a.shape[2:])

    return jax.tree.map(split, tree)


def cut(tree: Any, axis: int, start: Any, size: int) -> Any:
    """`size` places from `start` along an axis, of every array that varies along it."""

    def one(a: Any) -> Any:
        if a.shape[axis] == 1:
            return a
        if isinstance(start, int):
            return a[(slice(None),) * axis + (slice(start, start + size),)]
        return jax.lax.dynamic_slice_in_dim(jnp.asarray(a), start, size, axis)

    return jax.tree.map(one, tree)


def pad(tree: Any, axis: int, size: int) -> Any:
    """Lengthened to `size` along an axis by repeating the last place, for every array that varies along it."""

    def one(a: Any) -> Any:
        if a.shape[axis] in (1, size):
            return a
        widths = [(0, 0)] * a.ndim
        widths[axis] = (0, size - a.shape[axis])
        return np.pad(a, widths, mode="edge") if isinstance(a, np.ndarray) else jnp.pad(a, widths, mode="edge")

    return jax.tree.map(one, tree)


def on_its_side(tree: Any) -> Any:
    """For tiles `[B, K, S, G, T]`: keys before the rows of a group."""

    def turn(a: Any) -> Any:
        order = (0, 1, KEYS, 2, ROWS, *range(5, a.ndim))
        return a.transpose(order)

    return jax.tree.map(turn, tree)


def upright(a: jax.Array) -> jax.Array:
    """The reverse of `on_its_side`, for one array."""
    return a.transpose(0, 1, ROWS, KEYS, 2, *range(5, a.ndim))
