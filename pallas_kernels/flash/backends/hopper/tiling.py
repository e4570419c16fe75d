"""Tile sizes, by what the compiler keeps in registers and what fits in shared memory; and what cannot be had.

A warpgroup's tile has 64 rows and as many columns as are named here. Each of its 128 threads holds a 128th of every matrix that is alive: of the sums, 64 x
head dimension, and of s, p, dP, dS and whatever a user's function makes of them, 64 x columns. 240 registers a thread is all there is. The limits below are
those at which scripts/compile_kernels.py finds no register spilled.
"""

import math
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.flash.masks import Leaf, Mask
from pallas_kernels.flash.platform import made_for
from pallas_kernels.flash.request import Request, float_arrays
from pallas_kernels.flash.scores import Score
from pallas_kernels.flash.tiles import flow_back, operand_shapes

CONSUMERS, ROWS = 2, 64
# Registers of a thread that computes and of one that copies: (2 * 240 + 24) * 128 are all that a block of threads has.
COMPUTING, COPYING = 240, 24
# Bytes that a block of threads may have of a Hopper chip's shared memory, less what the compiler takes for barriers and to align buffers.
SHARED = 232_448 - 4096
# Features of an array: each is a number, or vector, of its own in registers.
FEATURES = 64
# By name only where a program is made for a chip that is not here; those that are here tell their compute capability.
CHIPS = ("H100", "H200", "H20", "H800", "GH200")


class Tiles(NamedTuple):
    """Queries and keys to a step of each kernel, and whether dK and dV are made one after the other, by a kernel for each."""

    forward: tuple[int, int]
    dq: tuple[int, int]
    dkv: tuple[int, int]
    da: tuple[int, int]
    separate: bool


def choose(request: Request) -> Tiles:
    """The tiles that keep everything on the chip; `request.tile` replaces those of queries.

    Widths are those of heads. `busy`: scores or dropout keep more matrices alive. `crowded`: masks' arrays take registers too. `table`: a lookup takes most.
    """
    wide = _up(max(request.sizes["H"], request.sizes["Hv"]), 16)
    busy = bool(request.score) or request.dropout is not None
    crowded = busy or bool(jax.tree.leaves((request.mask, request.q_positions, request.kv_positions)))
    table = any(len(jnp.shape(a)) > 4 for a in jax.tree.leaves((request.score, request.mask)))
    if wide <= 64:
        forward, dq, dkv, da = 64 if busy else 128, 64, 64, 64
    elif wide <= 128:
        forward, dq, dkv, da = 64 if busy else 128, 64, 32, 32
    elif wide <= 192:
        forward, dq, dkv, da = 64, 32, 32, 32
    else:
        forward, dq, dkv, da = 32 if busy else 64, 16 if crowded else 32, 32, 16
    if table:
        dq, dkv = dq if wide <= 64 else min(dq, 32), dkv // 2
    rows, separate = CONSUMERS * ROWS, wide > 128
    if request.tile is not None:
        return Tiles(request.tile, request.tile, (min(dkv, request.tile[1]), rows), request.tile, separate)
    return Tiles((rows, forward), (rows, dq), (dkv, rows), (rows, da), separate)


def misfit(request: Request) -> str | None:
    """Why the kernels cannot be had for this request."""
    if (tile := request.tile) is not None and (tile[0] != CONSUMERS * ROWS or tile[1] not in (16, 32, 64, 128)):
        return f"takes tiles of {CONSUMERS * ROWS} queries and 16, 32, 64 or 128 keys, received {tile}"
    if (wide := max(request.sizes["H"], request.sizes["Hv"])) > 256:
        return f"takes head dimensions up to 256, received {wide}"
    for a in jax.tree.leaves((request.mask, request.score)):
        if math.prod(jnp.shape(a)[4:]) > FEATURES:
            return f"takes arrays with up to {FEATURES} features, received {math.prod(jnp.shape(a)[4:])}"
        if jnp.ndim(a) > 4 and min(jnp.shape(a)[2:4]) > 1:
            return f"takes no features of arrays that vary over queries and keys, received features {jnp.shape(a)[4:]}"
    if reason := next(filter(None, map(partial(_unknown, request), _functions(request))), None):
        return reason
    if (bytes_ := needs(request)) > SHARED:
        how = "take narrower tiles, such as tile=(128, 32)" if request.tile else "the sums of the gradients of arrays with features take much of it"
        return f"needs {bytes_:,} bytes of shared memory, of {SHARED:,} that a block of threads may have; {how}"
    return None


def needs(request: Request) -> int:
    """Bytes of shared memory that the largest of the kernels takes at least, with one tile visited at a time."""
    H, Hv = (_up(request.sizes[name], 16) for name in ("H", "Hv"))
    tiles, rows = choose(request), CONSUMERS * ROWS
    entries = [math.prod(a.shape[4:]) for a in float_arrays(request.score) if min(a.shape[2:4]) == 1]
    forward = 2 * (rows * (H + (Hv if Hv != H else 0)) + tiles.forward[1] * (H + Hv)) + 4 * rows
    backward = 2 * (rows + max(tiles.dq[1], tiles.dkv[0])) * (H + Hv) + 4 * rows * sum(entries)
    da = 2 * (rows + tiles.da[1]) * (H + Hv) + 4 * rows * tiles.da[1]
    return max(forward, backward, da if len(entries) < len(float_arrays(request.score)) else 0)


def _functions(request: Request) -> list[tuple[str, Mask | None, tuple[Score, ...]]]:
    """Each mask and score by itself, with its name."""
    leaves = jax.tree.leaves(request.mask, is_leaf=lambda x: isinstance(x, Leaf))
    return [(f"mask {m.function.name}", m, ()) for m in leaves] + [(f"score {x.function.name}", None, (x,)) for x in request.score]


def _unknown(request: Request, function: tuple[str, Mask | None, tuple[Score, ...]]) -> str | None:
    """Why the kernels cannot do what a function, or its derivative, does."""
    from pallas_kernels.flash.backends.hopper.rules import unknown

    name, mask, score = function
    tile = (ROWS, 32)
    operands = operand_shapes(replace(request, mask=mask, score=score), tile)
    square, rows = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (tile, (ROWS, 1)))
    try:
        closed = jax.make_jaxpr(lambda *a: flow_back(a[0], None, True, *a[1:]))(operands, square, square, rows, rows)
    except Exception as error:  # whatever a user's function raises when it is differentiated
        return f"cannot differentiate {name}: {str(error).partition(chr(10))[0]}"
    primitive = unknown(closed.jaxpr)
    hint = "; pallas_kernels.lookup picks from an array" if primitive in ("gather", "dynamic_slice", "scatter-add") else ""
    return primitive and f"has no rule for '{primitive}', which {name} or its derivative uses{hint}"


def for_a_gpu() -> bool:
    """Whether the program is being made for a GPU, be it here or not."""
    return made_for() == "gpu"


def other_chip() -> str | None:
    """The name of the GPU for which the program is being made, if it is none of Hopper's."""
    if not for_a_gpu():
        return None
    device: Any = jax.sharding.get_abstract_mesh().abstract_device or jax.local_devices()[0]
    capability = getattr(device, "compute_capability", None)
    hopper = capability == "9.0" if capability else any(name in device.device_kind for name in CHIPS)
    return None if hopper else device.device_kind


def swizzle(rows: int, width: int) -> int:
    """Bytes by which rows of 16-bit numbers are interleaved: the most that divides a row, and a column, which may be what a product sums over."""
    return next(n for n in (128, 64, 32) if width * 2 % n == 0 and rows * 2 % n == 0)


def _up(n: int, step: int) -> int:
    return -(-n // step) * step
