"""Attention on Hopper GPUs, in Pallas: warpgroups that copy and warpgroups that compute, lists of tiles, users' functions and their derivatives in registers.

On other machines the kernels are interpreted: slow, for tests.

References: Shah et al., arXiv:2407.08608; Dao, arXiv:2307.08691, section 3.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp

from pallas_kernels.flash.backends.hopper import tiling
from pallas_kernels.flash.request import Request, float_arrays, with_float_arrays
from pallas_kernels.flash.tiles import sink_gradients

# The kernels' own files are imported when they are asked for: older versions of jax lack what they are made of.
NEEDED = (0, 11, 2)


def supports(request: Request) -> str | None:
    if jax.__version_info__ < NEEDED:
        return f"needs jax {'.'.join(map(str, NEEDED))} or later, which needs Python 3.12; this is jax {jax.__version__}"
    if chip := tiling.other_chip():
        return f"needs a GPU of the Hopper generation, this is {chip}"
    if request.without_tiles:
        return request.without_tiles
    if request.q.dtype not in (jnp.float16, jnp.bfloat16):
        return f"takes float16 and bfloat16, received {request.q.dtype}"
    return tiling.misfit(request)


def remark(request: Request) -> str | None:
    """What is copied before the kernels run: the copy engine wants rows of 32 bytes, in eights."""
    lengths = {"T": (8, request.sizes["T"]), "S": (8, request.sizes["S"]), "H": (16, request.sizes["H"]), "Hv": (16, request.sizes["Hv"])}
    longer = [f"{name} = {n} to {n + -n % step}" for name, (step, n) in lengths.items() if n % step]
    return f"lengthens {', '.join(longer)} in memory" if longer else None


def forward(request: Request) -> tuple[jax.Array, jax.Array]:
    from pallas_kernels.flash.backends.hopper import forward_kernel
    from pallas_kernels.flash.backends.hopper.launch import Launch, padded

    launch = Launch(request, tiling.choose(request).forward)
    o, lse = forward_kernel.forward(launch, padded(request.q), padded(request.k), padded(request.v), request.sinks)
    return o[:, : launch.T, :, : request.sizes["Hv"]], lse[..., : launch.T]


def backward(request: Request, o: jax.Array, lse: jax.Array, do: jax.Array, dlse: jax.Array) -> Request:
    from pallas_kernels.flash.backends.hopper import arrays as of_arrays
    from pallas_kernels.flash.backends.hopper import backward_kernels as kernels
    from pallas_kernels.flash.backends.hopper.launch import Launch, padded, whole_tiles

    some = lse > -jnp.inf
    delta = jnp.einsum("btnh,btnh->bnt", o, do, preferred_element_type=jnp.float32) - jnp.where(some, dlse, 0)
    q, k, v, above = (padded(a) for a in (request.q, request.k, request.v, do))

    def rows(launch: Launch) -> tuple[jax.Array, ...]:
        # Rows with nothing allowed, and those beyond the end, whatever a score makes of them: p = exp(s - inf) = 0.
        return q, above, whole_tiles(launch, jnp.where(some, lse, jnp.inf), jnp.inf), whole_tiles(launch, delta, 0.0)

    tiles, scores = tiling.choose(request), float_arrays(request.score)
    upright, on_its_side = Launch(request, tiles.dq), Launch(request, tiles.dkv, upright=False)
    dq, arrays = kernels.over_queries(upright, rows(upright), k, v)
    sums: dict[str, jax.Array] = {}
    for wanted in (("dk",), ("dv",)) if tiles.separate else (("dk", "dv"),):
        found, more = kernels.over_keys(on_its_side, rows(on_its_side), k, v, wanted)
        sums |= zip(wanted, found)
        arrays |= more
    for n in range(len(scores)):
        if n not in arrays:
            launch = Launch(request, tiles.da)
            arrays[n] = of_arrays.over_heads(launch, rows(launch), k, v, n)
    (_, T, _, H), (_, S, _, Hv) = request.q.shape, request.v.shape
    gradient = replace(
        request, q=dq[:, :T, :, :H], k=sums["dk"][:, :S, :, :H], v=sums["dv"][:, :S, :, :Hv], mask=None, dropout=None, q_positions=None, kv_positions=None,
        sinks=None if request.sinks is None else sink_gradients(request.sinks, lse, delta),
    )  # fmt: skip
    return replace(gradient, score=with_float_arrays(request.score, [arrays[n].astype(a.dtype) for n, a in enumerate(scores)]))


__all__ = ["backward", "forward", "remark", "supports"]
