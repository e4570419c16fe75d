"""What happens in a tile on the chip."""

from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.flash.backends.tpu.launch import At, Launch
from pallas_kernels.flash.backends.tpu.rules import RULES
from pallas_kernels.flash.tables import replayed
from pallas_kernels.flash.tiled import Scalars
from pallas_kernels.flash.tiles import flow_back


def product(a: jax.Array, b: jax.Array, axes: tuple[int, int]) -> jax.Array:
    """The matrix product that contracts an axis of each, in float32."""
    return jax.lax.dot_general(a, b, (((axes[0],), (axes[1],)), ((), ())), preferred_element_type=jnp.float32)


def inside(launch: Launch, a: jax.Array, number: Any, axis: int) -> jax.Array:
    """A tile `[bq, .]` of queries (axis 0) or `[bk, .]` of keys (axis 1), zeros beyond the end."""
    if not launch.ragged[axis]:
        return a
    place = number * launch.tile[axis] + jax.lax.broadcasted_iota(jnp.int32, (a.shape[0], 1), 0)
    return jnp.where(place < (launch.T, launch.S)[axis], a, jnp.zeros_like(a))


def gradients(launch: Launch, scalars: Scalars, inputs: Any, leaves: Any, at: At, partial: bool, wanted: list[int]) -> Any:
    """dS and dropout(P) `[bq, bk]`, the tiles of q, k and dO, and the gradients of the scores' arrays that are wanted, `[1|bq, 1|bk, *features]`.

    Args:
        inputs: references to q, dO `[bq, .]`, lse, delta `[1, bq]`, k, v `[bk, .]`.
        partial: whether the mask has anything to say.
    """
    q, do, lse, delta, k, v = inputs
    queries, above = (inside(launch, ref[...], at.row, 0) for ref in (q, do))
    keys, values = (inside(launch, ref[...], at.column, 1) if partial else ref[...] for ref in (k, v))
    s = product(queries, keys, (1, 1)) * launch.request.scale
    dp = product(above, values, (1, 1))

    def flow(operands: Any, *tiles: Any) -> Any:
        ds, p, arrays = flow_back(operands, launch.dropout(scalars), partial, *tiles)
        return ds, p, [arrays[n] for n in wanted]

    ds, p, arrays = replayed(flow, RULES)(launch.operands(scalars, leaves, at), s, dp, lse[...].T, delta[...].T)
    return ds, p, queries, keys, above, arrays
