"""Attention on TPUs, in Pallas: tiles in VMEM, lists of tiles in scalar memory, users' functions and their derivatives inside the tile.

On other machines the kernels are interpreted: slow, for tests.

References: Dao et al., arXiv:2205.14135, algorithms 1 and 4; Dao, arXiv:2307.08691, section 3.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp

from pallas_kernels.flash.backends.tpu import backward as _backward
from pallas_kernels.flash.backends.tpu import forward as _forward
from pallas_kernels.flash.backends.tpu.launch import Launch
from pallas_kernels.flash.backends.tpu.tiling import choose, misfit
from pallas_kernels.flash.request import Request, float_arrays, with_float_arrays
from pallas_kernels.flash.tiles import sink_gradients


def supports(request: Request) -> str | None:
    if request.without_tiles:
        return request.without_tiles
    if request.q.dtype not in (jnp.float32, jnp.bfloat16):
        return f"takes float32 and bfloat16, received {request.q.dtype}"
    return misfit(request)


def forward(request: Request) -> tuple[jax.Array, jax.Array]:
    launch = Launch(request, choose(request))
    q, k, v = (jnp.swapaxes(a, 1, 2) for a in (request.q, request.k, request.v))
    o, lse = _forward.forward(launch, q, k, v, request.sinks)
    return jnp.swapaxes(o, 1, 2), lse


def backward(request: Request, o: jax.Array, lse: jax.Array, do: jax.Array, dlse: jax.Array) -> Request:
    launch = Launch(request, choose(request))
    some = lse > -jnp.inf
    delta = jnp.einsum("btnh,btnh->bnt", o, do, preferred_element_type=jnp.float32) - jnp.where(some, dlse, 0)
    q, do, k, v = (jnp.swapaxes(a, 1, 2) for a in (request.q, do, request.k, request.v))
    # Rows with nothing allowed, and those beyond the end, whatever a score makes of them: p = exp(s - inf) = 0.
    beyond = [(0, 0), (0, 0), (0, launch.counts[0] * launch.tile[0] - launch.T)]
    scalars = jnp.pad(jnp.where(some, lse, jnp.inf), beyond, constant_values=jnp.inf), jnp.pad(delta, beyond)
    dq, dk, dv, arrays = _backward.backward(launch, (q, do, *(a[:, :, None] for a in scalars)), k, v)
    arrays = [g.astype(a.dtype) for g, a in zip(arrays, float_arrays(request.score))]
    sinks = None if request.sinks is None else sink_gradients(request.sinks, lse, delta)
    gradient = replace(
        request, q=jnp.swapaxes(dq, 1, 2), k=jnp.swapaxes(dk, 1, 2), v=jnp.swapaxes(dv, 1, 2),
        mask=None, sinks=sinks, dropout=None, q_positions=None, kv_positions=None,
    )  # fmt: skip
    return replace(gradient, score=with_float_arrays(request.score, arrays))


__all__ = ["backward", "forward", "supports"]
