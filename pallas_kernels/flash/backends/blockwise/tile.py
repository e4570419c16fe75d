"""One tile: scores, probabilities, and the gradients that flow back through them.

Products see rows `[R, G * T, F]` and keys `[R, S, F]`; masks, scores and dropout see the five axes `[B, K, G, T, S]`, or `[B, K, S, G, T]` on its side.
"""

from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.flash.backends.blockwise.plan import Chunk
from pallas_kernels.flash.request import accumulator
from pallas_kernels.flash.tiles import KEYS, ROWS, Operands, cut, flow_back, kept, on_its_side, scored, upright


def dot(a: jax.Array, b: jax.Array) -> jax.Array:
    """`[R, M, F]`, `[R, F, L]` -> `[R, M, L]`, accumulated in float32 (float64)."""
    return jnp.matmul(a, b, preferred_element_type=accumulator(a.dtype))


def nt(a: jax.Array, b: jax.Array) -> jax.Array:
    """`[R, M, F]`, `[R, L, F]` -> `[R, M, L]`."""
    return dot(a, jnp.swapaxes(b, -1, -2))


def fold(a: jax.Array) -> jax.Array:
    """`[R, G, T, F]` to `[R, G * T, F]`."""
    return a.reshape(a.shape[0], -1, a.shape[-1])


def share(chunk: Chunk, rows: tuple[Any, int], keys: tuple[Any, int]) -> Operands:
    """What masks and scores read in a tile, given the first place and the number of rows and of keys."""
    return cut(cut(chunk.operands, ROWS, *rows), KEYS, *keys)


def five_axes(operands: Operands, R: int, G: int, T: int, S: int) -> tuple[int, ...]:
    B = operands.i.batch.shape[0]
    return (B, R // B, G, T, S)


def weights(chunk: Chunk, operands: Operands, q: jax.Array, k: jax.Array, highest: jax.Array | None, partial: bool) -> tuple[jax.Array, ...]:
    """exp(s - highest) of a tile `[R, G * T, S]`, and the rows' highest scores so far `[R, G * T, 1]`, 0 where there is none yet."""
    R, G, T, _ = q.shape
    shape = five_axes(operands, R, G, T, k.shape[1])
    s = nt(fold(q), k)
    flat = s.shape
    s = scored(operands, s.reshape(shape), partial).reshape(flat)
    own = s.max(-1, keepdims=True)
    highest = own if highest is None else jnp.maximum(highest, own)
    return jnp.exp(s - jnp.where(highest == -jnp.inf, 0, highest)), highest


def weighted(chunk: Chunk, operands: Operands, e: jax.Array, v: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """dropout(e).v with the sums of e behind, `[R, G * T, Hv + 1]`; `v` has a column of ones behind, which yields the sums where nothing is dropped."""
    if chunk.dropout is None:
        return dot(e.astype(v.dtype), v)
    (some,) = kept(operands, chunk.dropout, e.reshape(shape))
    return jnp.concatenate([dot(some.reshape(e.shape).astype(v.dtype), v[..., :-1]), e.sum(-1, keepdims=True)], -1)


def normalised(o: jax.Array, highest: jax.Array) -> tuple[jax.Array, jax.Array]:
    """o and lse from `weighted` and the rows' highest scores."""
    total = o[..., -1:]
    some = total > 0
    total = jnp.where(some, total, 1)
    return o[..., :-1] / total, jnp.where(some, highest + jnp.log(total), -jnp.inf)[..., 0]


def sink_rows(operands: Operands, R: int, G: int, T: int) -> jax.Array | None:
    """The sinks as scores of rows `[R, G * T, 1]`."""
    if operands.sinks is None:
        return None
    return jnp.broadcast_to(operands.sinks, five_axes(operands, R, G, T, 1)).reshape(R, G * T, 1)


def gradients(chunk: Chunk, operands: Operands, k: jax.Array, v: jax.Array, rows: tuple[jax.Array, ...], partial: bool) -> Any:
    """A tile's share of dQ `[R, G, H, T]`, dK and dV `[R, S, .]`, and of the gradients of the scores' arrays.

    Args:
        rows: q, dO `[R, G, T, .]`, lse and delta = rowsum(dO * O) - dlse `[R, G, T]`.
        partial: whether the mask has anything to say.
    """
    q, do, lse, delta = rows
    R, G, T, H = q.shape
    S, side = k.shape[1], on_its_side(operands)
    shape = (*five_axes(operands, R, G, T, S)[:2], S, G, T)
    q, do = fold(q), fold(do)
    # Everything of five axes, B, K, S, G, T.
    s, dp = (a.reshape(shape) for a in (nt(k, q), nt(v, do)))
    lse, delta = (a.reshape(*shape[:2], 1, G, T) for a in (lse, delta))
    ds, p, arrays = flow_back(side, chunk.dropout, partial, s, dp, lse, delta)
    ds, p = ds.reshape(R, S, G * T).astype(q.dtype), p.reshape(R, S, G * T).astype(do.dtype)
    dq = dot(jnp.swapaxes(k, 1, 2), ds).reshape(R, H, G, T)
    return (jnp.swapaxes(dq, 1, 2), dot(ds, q), dot(p, do)), [upright(a) for a in arrays]
