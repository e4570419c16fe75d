"""How a TPU's vector unit looks up: it has a gather along the 128 lanes of a register and no scatter."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive

from pallas_kernels.flash.tables import deposit_p, lookup_p

LANES = 128


def lookup(table: jax.Array, index: jax.Array) -> jax.Array:
    """table `[1|bq, 1|bk, F]`, index of the tile's shape."""
    if table.dtype == jnp.bool_:
        return lookup(table.astype(jnp.int32), index) != 0
    index = jnp.broadcast_to(index, jnp.broadcast_shapes(index.shape, table.shape[:-1]))
    if table.shape[:-1] != (1, 1):
        return _select(table, index)
    count = -(-table.shape[-1] // LANES)
    row = table.reshape(1, -1)
    if row.shape[1] < count * LANES:
        row = jnp.concatenate([row, jnp.zeros((1, count * LANES - row.shape[1]), row.dtype)], 1)
    if count == 1:
        return _along_lanes(row, index)
    rows = row.reshape(count, LANES)
    number = jax.lax.broadcasted_iota(jnp.int32, (count, 1), 0)

    def pick(n: Any, picked: jax.Array) -> jax.Array:
        here = jnp.where(number == n, rows, 0).sum(0, keepdims=True, dtype=rows.dtype)
        return jnp.where(index // LANES == n, _along_lanes(here, index), picked)

    return jax.lax.fori_loop(0, count, pick, jnp.zeros(index.shape, table.dtype))


def _along_lanes(row: jax.Array, index: jax.Array) -> jax.Array:
    """row[index % 128], 128 columns of the tile at a time."""
    rows = jnp.broadcast_to(row, (index.shape[0], LANES))
    parts = [index[:, start : start + LANES] & (LANES - 1) for start in range(0, index.shape[1], LANES)]
    return jnp.concatenate([jnp.take_along_axis(rows, part, 1, mode="promise_in_bounds") for part in parts], 1)


def _select(table: jax.Array, index: jax.Array) -> jax.Array:
    picked = jnp.zeros(index.shape, table.dtype)
    for n in range(table.shape[-1]):
        picked = jnp.where(index == n, table[..., n], picked)
    return picked


def deposit(g: jax.Array, index: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """A sum for each entry of the table, `[1|bq, 1|bk, F]`."""
    axes = tuple(axis for axis, n in enumerate(shape[:-1]) if n == 1 and g.shape[axis] > 1)
    feature = jax.lax.broadcasted_iota(jnp.int32, shape, len(shape) - 1)

    def add(n: Any, sums: jax.Array) -> jax.Array:
        mine = jnp.where(index == n, g, 0).sum(axes, keepdims=True)
        return jnp.where(feature == n, mine[..., None], sums)

    return jax.lax.fori_loop(0, shape[-1], add, jnp.zeros(shape, g.dtype))


RULES: dict[Primitive, Callable[..., Any]] = {lookup_p: lookup, deposit_p: deposit}
