"""Tiles, warps and stages of the kernels, by what is known of a call before the program runs: the largest tried that no compiler spills."""

import jax
import jax.numpy as jnp

from pallas_kernels.flash.backends.triton.launch import Shape, padded
from pallas_kernels.flash.request import Request


def shape(request: Request, kernel: str) -> Shape:
    """For "forward", "dq", "dkv" or "sums"."""
    width, wide = padded(max(request.sizes["H"], request.sizes["Hv"])), request.q.dtype.itemsize == 4
    chosen = (_WIDE if wide else _SHORT)[kernel][max(64, width)]
    if request.tile is not None:
        return chosen._replace(queries=request.tile[0], keys=request.tile[1])
    # The addresses of an array over queries and keys take many registers where its rows begin anywhere.
    if request.sizes["S"] % 128 and not wide and any(min(jnp.shape(a)[2:4]) > 1 for a in jax.tree.leaves(request.score)):
        side = "queries" if chosen.queries >= chosen.keys else "keys"
        return chosen._replace(**{side: getattr(chosen, side) // 2})
    return chosen


def misfit(request: Request) -> str | None:
    """Why the tile that was asked for cannot be had."""
    if request.tile is None or all(16 <= n <= 128 and n & (n - 1) == 0 for n in request.tile):
        return None
    return f"takes tiles whose sides are powers of two from 16 to 128, received {request.tile}"


_SHORT = {
    "forward": {64: Shape(128, 64, 8, 3), 128: Shape(128, 64, 8, 2), 256: Shape(64, 64, 8, 2)},
    "dq": {64: Shape(64, 64, 4, 2), 128: Shape(64, 64, 8, 2), 256: Shape(64, 32, 8, 2)},
    "dkv": {64: Shape(32, 128, 8, 2), 128: Shape(32, 64, 8, 2), 256: Shape(32, 32, 8, 1)},
    "sums": {64: Shape(64, 32, 4, 2), 128: Shape(64, 32, 8, 2), 256: Shape(64, 16, 8, 2)},
}
_WIDE = {
    "forward": {64: Shape(32, 32, 4, 1), 128: Shape(32, 16, 8, 1), 256: Shape(32, 16, 8, 1)},
    "dq": {64: Shape(32, 32, 4, 2), 128: Shape(32, 16, 8, 1), 256: Shape(16, 32, 8, 1)},
    "dkv": {64: Shape(32, 32, 4, 2), 128: Shape(32, 32, 8, 1), 256: Shape(16, 32, 8, 1)},
    "sums": {64: Shape(32, 32, 4, 2), 128: Shape(32, 16, 8, 1), 256: Shape(16, 32, 8, 1)},
}
