"""The reference: the formula as it stands, in jnp, holding the whole score array.

    s = score(scale * q.k)    p = softmax(s over allowed keys and the sink)    o = dropout(p).v

Differentiable to any order and in forward mode. The judge of the other backends.
"""

from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.flash.request import Request


def supports(request: Request) -> str | None:
    return None if request.tile is None else "has no tiles to choose"


def forward(request: Request) -> tuple[jax.Array, jax.Array]:
    p, lse = probabilities(request)
    if request.dropout is not None:
        keep = request.dropout.keep(request.index())
        p = jnp.where(keep, p / (1 - request.dropout.rate), 0)
    B, T, S, N, K, G, Hv = (request.sizes[a] for a in ("B", "T", "S", "N", "K", "G", "Hv"))
    grouped = p.astype(request.v.dtype).reshape(B, K, G, T, S)
    o = jnp.einsum("bkgts,bskh->btkgh", grouped, request.v, preferred_element_type=request.accumulator)
    return o.reshape(B, T, N, Hv).astype(request.q.dtype), lse


def probabilities(request: Request) -> tuple[jax.Array, jax.Array]:
    """Softmax over the allowed keys (and the sink) `[B, N, T, S]`, before dropout, and lse `[B, N, T]`."""
    s = _scores(request)
    allowed: Any = True if request.mask is None else request.mask.allowed(request.index())
    s = jnp.where(allowed, s, -jnp.inf)
    highest = s.max(-1, keepdims=True, initial=-jnp.inf)
    sink = None if request.sinks is None else request.sinks.astype(s.dtype)[:, None, None]
    if sink is not None:
        highest = jnp.maximum(highest, sink)
    highest = jax.lax.stop_gradient(jnp.where(jnp.isfinite(highest), highest, 0))
    e = jnp.exp(s - highest)
    total = e.sum(-1, keepdims=True)
    if sink is not None:
        total = total + jnp.exp(sink - highest)
    some = total > 0
    total = jnp.where(some, total, 1)
    lse = jnp.where(some, highest + jnp.log(total), -jnp.inf)
    return e / total, lse[..., 0]


def _scores(request: Request) -> jax.Array:
    B, T, S, N, K, G, H = (request.sizes[a] for a in ("B", "T", "S", "N", "K", "G", "H"))
    q = request.q.reshape(B, T, K, G, H)
    s = jnp.einsum("btkgh,bskh->bkgts", q, request.k, preferred_element_type=request.accumulator).reshape(B, N, T, S)
    s = s * request.scale
    for score in request.score:
        s = jnp.broadcast_to(score(s, request.index()), s.shape)
    return s
