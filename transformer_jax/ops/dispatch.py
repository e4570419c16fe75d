"""Rows on their way to their experts and back, in arrays of static shapes, without a scatter.

M rows of which each goes to k of E experts: R = M * k copies, in the order of the rows. An expert number E stands for none.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Order(NamedTuple):
    """The copies in the order of their experts, those of one expert in the order of the rows.

    Attributes:
        copies: `[R]`, the number of the copy in each place.
        places: `[R]`, the place of each copy.
        sizes: `[E]`, how many each expert has; those that go nowhere are last in the order and not counted.
    """

    copies: jax.Array
    places: jax.Array
    sizes: jax.Array


def by_expert(experts: jax.Array, num_experts: int) -> Order:
    """The order of copies whose experts are `[R]`."""
    copies = jnp.argsort(experts, stable=True)
    ends = jnp.searchsorted(experts[copies], jnp.arange(num_experts, dtype=experts.dtype), side="right").astype(jnp.int32)
    return Order(copies, jnp.argsort(copies), jnp.diff(ends, prepend=0))


def within_capacity(experts: jax.Array, order: Order, capacity: int) -> tuple[jax.Array, jax.Array]:
    """Room for `capacity` copies in each expert, which the first ones take.

    Returns:
        The copy in each of the E * capacity rooms, R in an empty one; and the room of each copy, E * capacity where it got none.
    """
    R, E = experts.shape[0], order.sizes.shape[0]
    starts = jnp.cumsum(order.sizes) - order.sizes
    rank = jnp.arange(capacity, dtype=jnp.int32)
    taken = rank < order.sizes[:, None]
    copies = jnp.where(taken, order.copies[jnp.minimum(starts[:, None] + rank, R - 1)], R).reshape(-1)
    mine = order.places - starts[jnp.minimum(experts, E - 1)]
    fits = (experts < E) & (mine < capacity)
    return copies, jnp.where(fits, experts * capacity + mine, E * capacity)


@jax.custom_vjp
def move(rows: jax.Array, source: jax.Array, target: jax.Array) -> jax.Array:
    """y[i] = rows[source[i]], 0 where `source[i]` is beyond the rows; the backward pass is the same with source and target exchanged.

    Args:
        rows: `[P, D]`.
        source: `[Q]`, no row twice.
        target: `[P]`, its inverse: where in y each row is, Q or more where nowhere.

    Returns:
        `[Q, D]`.
    """
    return rows.at[source].get(mode="fill", fill_value=0)


def _move_forward(rows: jax.Array, source: jax.Array, target: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return move(rows, source, target), (source, target)


def _move_backward(kept: tuple[jax.Array, jax.Array], dy: jax.Array) -> tuple[jax.Array, None, None]:
    source, target = kept
    return move(dy, target, source), None, None


move.defvjp(_move_forward, _move_backward)
