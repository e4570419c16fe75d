"""The passes as launches of kernels."""

from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.flash.backends.triton.launch import Launch
from pallas_kernels.flash.backends.triton.shapes import shape
from pallas_kernels.flash.request import Request
from pallas_kernels.flash.tiled import S_AXIS, T_AXIS


def forward(request: Request) -> tuple[jax.Array, jax.Array]:
    from pallas_kernels.flash.backends.triton.kernels import attention_forward

    launch = Launch(request, shape(request, "forward"))
    q, k, v = request.q, request.k, request.v
    sinks = jnp.zeros(1, jnp.float32) if request.sinks is None else request.sinks.astype(jnp.float32)
    out = {"o": jax.ShapeDtypeStruct((*q.shape[:3], v.shape[-1]), q.dtype), "lse": jax.ShapeDtypeStruct((launch.B, launch.N, launch.T), jnp.float32)}
    arrays = {"q": q, "k": k, "v": v, "sinks": sinks}
    o, lse = launch.run(
        attention_forward, launch.B * launch.N * launch.counts[0], launch.lists()[0], arrays, out, SINKS=request.sinks is not None
    )  # fmt: skip
    return o, lse


def backward(request: Request, arrays: dict[str, jax.Array], learned: list[tuple[int, tuple[int, ...]]]) -> tuple[Any, Any, Any, list[jax.Array]]:
    """dQ, dK, dV like q, k, v, and the gradients of the scores' float arrays, float32.

    Args:
        arrays: q, k, v, do `[B, T|S, N|K, .]`, lse (in base 2) and delta `[B, N, T]`.
        learned: the number of the score and the shape `[B|1, N|1, T|1, S|1]` of each of those arrays.
    """
    from pallas_kernels.flash.backends.triton.kernels import attention_dkv, attention_dq

    over_keys, over_queries = Launch(request, shape(request, "dq")), Launch(request, shape(request, "dkv"))
    like = {name: jax.ShapeDtypeStruct(arrays[name].shape, arrays[name].dtype) for name in "qkv"}
    B, N, K = over_keys.B, over_keys.N, over_keys.K
    (dq,) = over_keys.run(attention_dq, B * N * over_keys.counts[0], over_keys.lists()[0], arrays, {"dq": like["q"]})
    sideways = over_queries.lists(sideways=True)[0]
    dk, dv = over_queries.run(attention_dkv, B * K * over_queries.counts[1], sideways, arrays, {"dk": like["k"], "dv": like["v"]})
    if not learned:
        return dq, dk, dv, []
    launch = Launch(request, shape(request, "sums"))
    return dq, dk, dv, [_array(launch, arrays, score, extent) for score, extent in learned]


def _array(launch: Launch, arrays: dict[str, jax.Array], score: int, extent: tuple[int, ...]) -> jax.Array:
    """The gradient of a score's array of that shape."""
    from pallas_kernels.flash.backends.triton import sums

    B, N, (rows, columns) = launch.B, launch.N, launch.counts
    more = {"WANTED": score}
    if extent[T_AXIS] > 1 and extent[S_AXIS] > 1:
        rank = jnp.where(launch.verdict.never, 2, jnp.where(launch.verdict.always, 0, 1)).astype(jnp.int32)
        lists = launch.lists()[0]._replace(order=rank)
        out = {"out": jax.ShapeDtypeStruct(extent, jnp.float32)}
        count = extent[0] * extent[1] * rows * columns
        # A varying axis of one place is looped over at no cost.
        axes = extent[0] > 1, extent[1] > 1
        return launch.run(sums.attention_dtiles, count, lists, arrays, out, B=B, AXES=axes, **more)[0]
    if extent[S_AXIS] > 1:
        out = {"out": jax.ShapeDtypeStruct((B, N, launch.S), jnp.float32)}
        found = launch.run(sums.attention_dcolumns, B * N * columns, launch.lists(sideways=True)[0], arrays, out, **more)[0][:, :, None]
    else:
        out = {"out": jax.ShapeDtypeStruct((B, N, launch.T), jnp.float32)}
        found = launch.run(sums.attention_drows, B * N * rows, launch.lists()[0], arrays, out, **more)[0][..., None]
    absent = tuple(axis for axis in range(4) if extent[axis] == 1 and found.shape[axis] > 1)
    return found.sum(absent, keepdims=True)
