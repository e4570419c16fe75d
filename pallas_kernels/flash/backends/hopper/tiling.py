"""Tile sizes, by what the compiler keeps in registers and what fits in shared memory; and what cannot be had.

A warpgroup's tile has 64 rows and as many columns as are named here. Each of its 128 threads holds a 128th of every matrix that is alive: of the sums, 64 x
head dimension, and of s, p, dP, dS and whatever a user's function makes of them, 64 x columns. 240 registers a thread is all there is. The limits below are
those at which scripts/compile_kernels.py finds no register spilled.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.flash.platform import made_for
from pallas_kernels.flash.request import Request
from pallas_kernels.flash.tiles import flow_back, operand_shapes

CONSUMERS, ROWS = 2, 64
# Registers of a thread that computes and of one that copies: (2 * 240 + 24) * 128 are all that a block of threads has.
COMPUTING, COPYING = 240, 24
# Bytes that a block of threads may have of a Hopper chip's shared memory, less what the compiler takes for barriers and to align buffers.
SHARED = 232_448 - 4096
# Features of an array: each is a number, or vector, of its own in registers.
FEATURES = 64
CHIPS = ("H100", "H200", "H20", "H800", "GH200")


class Tiles(NamedTuple):
    """Queries and keys to a step of each kernel, and whether dK and dV are made one after the other, by a kernel for each."""

    forward: tuple[int, int]
    dq: tuple[int, int]
    dkv: tuple[int, int]
    da: tuple[int, int]
    separate: bool


def choose(request: Request) -> Tiles:
    """The tiles that keep everything on the chip; `request.tile` replaces those of queries."""
    wide = _up(max(request.sizes["H"], request.sizes["Hv"]), 16)
    busy = bool(request.score) or request.dropout is not None
    table = any(len(jnp.shape(a)) > 4 for a in jax.tree.leaves((request.score, request.mask)))
    forward = (64 if wide <= 192 else 32) if busy else (128 if wide <= 128 else 64)
    crowded = busy or bool(jax.tree.leaves((request.mask, request.q_positions, request.kv_positions)))
    dq = 64 if wide <= 128 else 16 if wide > 192 and crowded else 32
    dkv = (64 if wide <= 64 else 32) // (2 if table else 1)
    rows = CONSUMERS * ROWS
    if request.tile is not None:
        return Tiles(request.tile, request.tile, (min(dkv, request.tile[1]), rows), request.tile, wide > 128)
    return Tiles((rows, forward), (rows, dq), (dkv, rows), (rows, dq if wide <= 64 else min(dq, 32)), wide > 128)


def misfit(request: Request) -> str | None:
    """Why the kernels cannot be had for this request."""
    if (tile := request.tile) is not None and (tile[0] != CONSUMERS * ROWS or tile[1] not in (16, 32, 64, 128)):
        return f"takes tiles of {CONSUMERS * ROWS} queries and 16, 32, 64 or 128 keys, received {tile}"
    if (wide := max(request.sizes["H"], request.sizes["Hv"])) > 256:
        return f"takes head dimensions up to 256, received {wide}"
    for a in jax.tree.leaves((request.mask, request.score)):
        shape, features = jnp.shape(a), int(jnp.size(a) and jnp.size(jnp.zeros(jnp.shape(a)[4:], bool)))
        if features > FEATURES:
            return f"takes arrays with up to {FEATURES} features, received {features} in shape {shape}"
        if len(shape) > 4 and min(shape[2:4]) > 1:
            return f"takes no features of arrays that vary over queries and keys, received shape {shape}"
    if name := _unknown(request):
        return f"has no rule for '{name}', which a function of a mask or score uses"
    return None


def _unknown(request: Request) -> str | None:
    """The first operation of the request's functions and their derivatives that the kernels cannot do."""
    from pallas_kernels.flash.backends.hopper.rules import unknown

    tile = (ROWS, 32)
    operands = operand_shapes(request, tile)
    square, rows = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (tile, (ROWS, 1)))
    closed = jax.make_jaxpr(lambda *a: flow_back(a[0], None, True, *a[1:]))(operands, square, square, rows, rows)
    return unknown(closed.jaxpr)


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
