"""Attention in tiles, in jnp, with its own backward pass: O(T) memory, and the default on CPU.

Heads are taken a chunk at a time, so that a tile of scores times its heads stays in cache. Within a chunk there are two ways to go:

- `short`: tiles are unrolled, and each row of tiles is one product over all keys within its reach, known before the program runs;
- `long`: nested loops over square tiles, listed while the program runs, with the running softmax of flash attention.

The backward pass is stationary in keys and works on tiles lying on their side, p^T = exp(k.q^T - lse), so that dV = p^T.dO and dK = dS^T.q are plain
products; dQ is summed up transposed, as k^T.dS^T. XLA:CPU runs these forms two to four times as fast as their transposes.

References: Milakov and Gimelshein, arXiv:1805.02867; Dao, arXiv:2307.08691, section 3.1.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp

from pallas_kernels.flash.backends.blockwise import long, short
from pallas_kernels.flash.backends.blockwise.plan import Plan
from pallas_kernels.flash.request import Request, with_float_arrays
from pallas_kernels.flash.tiles import sink_gradients


def supports(request: Request) -> str | None:
    return request.without_tiles


def forward(request: Request) -> tuple[jax.Array, jax.Array]:
    plan = Plan(request)
    q, k, v = plan.rows(request.q * request.scale), plan.keys(request.k), plan.keys(request.v)
    chunk = short.forward if plan.short else long.forward
    o, lse = plan.over_chunks(chunk, q, k, v)
    return plan.rows_back(o).astype(request.q.dtype), lse.reshape(plan.B, plan.N, -1)[..., : plan.T]


def backward(request: Request, o: jax.Array, lse: jax.Array, do: jax.Array, dlse: jax.Array) -> Request:
    plan = Plan(request)
    some = lse > -jnp.inf
    # Row sums by a product with ones: XLA:CPU takes ten times as long over a reduction.
    products = (o.astype(lse.dtype) * do.astype(lse.dtype)).reshape(-1, o.shape[-1])
    sums = (products @ jnp.ones((o.shape[-1], 1), lse.dtype)).reshape(o.shape[:-1])
    delta = jnp.swapaxes(sums, 1, 2) - jnp.where(some, dlse, 0)
    q, k, v, do = plan.rows(request.q * request.scale), plan.keys(request.k), plan.keys(request.v), plan.rows(do)
    # Rows with nothing allowed, and those beyond the end, whatever a score makes of them: p = exp(s - inf) = 0.
    rows = plan.scalars(jnp.where(some, lse, jnp.inf), beyond=jnp.inf), plan.scalars(delta)
    chunk = short.backward if plan.short else long.backward
    (dq, dk, dv), arrays = plan.over_chunks_summing(chunk, q, k, v, do, *rows)
    dq = plan.rows_back(jnp.swapaxes(dq, -1, -2)) * request.scale
    sinks = None if request.sinks is None else sink_gradients(request.sinks, lse, delta)
    gradient = replace(
        request, q=dq.astype(request.q.dtype), k=plan.keys_back(dk).astype(request.k.dtype), v=plan.keys_back(dv).astype(request.v.dtype),
        mask=None, sinks=sinks, dropout=None, q_positions=None, kv_positions=None,
    )  # fmt: skip
    return replace(gradient, score=with_float_arrays(request.score, plan.arrays_back(arrays)))


__all__ = ["backward", "forward", "supports"]
