"""Tile arithmetic that backends share: cutting arrays, judging tiles, listing those worth a visit.

Everything a mask or score reads, the index included, is a pytree of arrays `[B|1, K|1, G|1, T|1, S|1, *features]` (query heads split into K groups of G).
Cutting a tile, or turning it on its side, is one `tree.map` over it.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.flash.functions import Index
from pallas_kernels.flash.masks import Mask, Range, Verdict
from pallas_kernels.flash.scores import Score

ROWS, KEYS = 3, 4


class Operands(NamedTuple):
    """What the elementwise functions of a tile read."""

    i: Index
    mask: Mask | None
    scores: tuple[Score, ...] = ()
    sinks: Any = None


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


def judge(operands: Operands, lengths: tuple[int, int], tile: tuple[int, int], static: bool = False) -> Verdict:
    """The mask's verdict on every tile: booleans broadcastable to `[B, K, G, query tiles, key tiles]`; numpy if `static`."""
    counts = -(-lengths[0] // tile[0]), -(-lengths[1] // tile[1])
    if operands.mask is None:
        return Verdict(np.zeros((1, 1, 1, *counts), bool), np.ones((1, 1, 1, *counts), bool))

    def extremes(a: Any) -> Range:
        xp: Any = np if isinstance(a, np.ndarray) else jnp
        low = high = a
        for axis, length, size in ((ROWS, lengths[0], tile[0]), (KEYS, lengths[1], tile[1])):
            if a.shape[axis] == 1:
                continue
            padded = -(-length // size) * size
            low, high = (
                xp.moveaxis(x, axis, -1).reshape(*np.delete(x.shape, axis), padded // size, size) for x in pad((low, high), axis, padded)
            )
            low, high = xp.moveaxis(low.min(-1), -1, axis), xp.moveaxis(high.max(-1), -1, axis)
        return Range(low, high)

    i, mask = jax.tree.map(extremes, (operands.i, operands.mask))
    never, always = mask.verdict(i, static)
    return Verdict(*(_five_axes(x, counts) for x in (never, always)))


def _five_axes(x: Any, counts: tuple[int, int]) -> Any:
    xp: Any = np if isinstance(x, (np.ndarray, np.generic)) else jnp
    x = xp.reshape(x, (1,) * (5 - x.ndim) + x.shape)
    return xp.broadcast_to(x, (*x.shape[:3], *counts))


class Visits(NamedTuple):
    """For each row of tiles: which to visit, first those where all is allowed, then those where some is.

    order `[rows, columns]`, full `[rows]`, partial `[rows]`: int32.
    """

    order: Any
    full: Any
    partial: Any


def visits(verdict: Verdict) -> Visits:
    """The lists of one chunk of heads, `[..., rows, columns]` booleans reduced over all leading axes."""
    lead = tuple(range(verdict.never.ndim - 2))
    never, always = jnp.all(verdict.never, lead), jnp.all(verdict.always, lead)
    rank = jnp.where(never, 2, jnp.where(always, 0, 1)).astype(jnp.int32)
    order = jnp.argsort(rank, axis=-1, stable=True).astype(jnp.int32)
    return Visits(order, (rank == 0).sum(-1, dtype=jnp.int32), (rank == 1).sum(-1, dtype=jnp.int32))


def reach(never: np.ndarray) -> list[tuple[int, int]]:
    """For each row of tiles `[..., rows, columns]` the first and one past the last tile worth a visit; (0, 0) where there is none."""
    some = np.logical_not(never.reshape(-1, *never.shape[-2:])).any(axis=0, keepdims=True)[0]
    return [(int(row.argmax()), len(row) - int(row[::-1].argmax())) if row.any() else (0, 0) for row in some]
