"""Tile sizes: the largest that fit on the chip, counted from what the kernels keep there.

    blocks      a tile of q, k, v, dO, dQ, dK, dV and of every array of masks and scores, twice, so that the next is copied while this one is worked on
    sums        float32: the largest of (acc), (dQ), (dK and dV)
    values      what lives at one time in the elementwise part of a tile: s, dp, p, and whatever a user's function makes of them, forward and back

On-chip memory is given out in registers' worth of 8 x 128 words, so the last two axes of everything are rounded up to those.
"""

import math
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.flash.lists import judge
from pallas_kernels.flash.platform import made_for
from pallas_kernels.flash.request import Request
from pallas_kernels.flash.tiles import Operands, by_group, flow_back, operand_shapes

SIDES = ((512, 1024), (512, 512), (256, 512), (256, 256), (128, 256), (128, 128))
# Chips are asked for half of their memory, the rest is XLA's. Where there is no chip, as on a v5p.
ELSEWHERE = 2**25
# Of lists of tiles, in the megabyte of scalar memory that all chips have.
ENTRIES = 2**17


def choose(request: Request) -> tuple[int, int]:
    """Queries and keys to a tile: what was asked for, or the largest of `SIDES` that fits."""
    if request.tile is not None:
        return request.tile
    shortened = [(min(q, _up(request.sizes["T"], 128)), min(k, _up(request.sizes["S"], 128))) for q, k in SIDES]
    return next((tile for tile in shortened if needs(request, tile) <= limit()), shortened[-1])


def misfit(request: Request) -> str | None:
    """Why the tile that was asked for, or even the smallest, cannot be had."""
    tile = choose(request)
    if tile[0] % 128 or tile[1] % 128:
        return f"takes tiles of multiples of 128, received {tile}"
    if (bytes_ := needs(request, tile)) > limit():
        return f"tiles of {tile[0]} x {tile[1]} need {bytes_ / 2**20:.1f} MiB of on-chip memory, of {limit() / 2**20:.0f} that it may take here"
    if (entries := _entries(request, tile)) > ENTRIES:
        return f"the lists of tiles of {tile[0]} x {tile[1]} to visit have {entries:,} entries, of {ENTRIES:,} that fit; take larger tiles or fewer batch rows"
    return None


def for_a_tpu() -> bool:
    """Whether the program is being made for a TPU, be it here or not."""
    return made_for() == "tpu"


def limit() -> int:
    """Bytes of on-chip memory that a kernel may take."""
    return int(pltpu.get_tpu_info().vmem_capacity_bytes) // 2 if for_a_tpu() else ELSEWHERE


def needs(request: Request, tile: tuple[int, int]) -> int:
    """Bytes of on-chip memory that the largest of the kernels takes at most."""
    (bq, bk), H, Hv, short = tile, request.sizes["H"], request.sizes["Hv"], request.q.dtype.itemsize
    leaves = jax.tree.leaves((request.mask, request.score, request.q_positions, request.kv_positions))
    arrays = sum(_bytes(_sides(jnp.shape(a), tile), 4) for a in leaves if jnp.ndim(a) > 2)
    blocks = _bytes((bq, H), short) * 2 + _bytes((bq, Hv), short) + 2 * (_bytes((bk, H), short) + _bytes((bk, Hv), short)) + 4 * _bytes((1, bq), 4)
    sums = max(_bytes((bq, max(H, Hv)), 4), _bytes((bk, H), 4) + _bytes((bk, Hv), 4))
    return 2 * (blocks + 2 * arrays) + 3 * sums + _values(request, tile)


def _entries(request: Request, tile: tuple[int, int]) -> int:
    """How many tiles the lists of a kernel hold: those of one head, times the heads and batch rows that the mask tells apart."""
    sizes = request.sizes
    counts = -(-sizes["T"] // tile[0]), -(-sizes["S"] // tile[1])
    if request.mask is None or sizes["B"] * sizes["N"] * math.prod(counts) <= ENTRIES:
        return math.prod(counts)

    def judged(request: Request) -> Any:
        return judge(by_group(Operands(request.index(), request.mask), sizes["N"]), (sizes["T"], sizes["S"]), tile)

    verdict = jax.eval_shape(judged, request)
    return math.prod(np.broadcast_shapes(verdict.never.shape, verdict.always.shape))


def _values(request: Request, tile: tuple[int, int]) -> int:
    """Bytes that live at one time while a tile flows back."""
    operands = operand_shapes(request, tile)
    square, column = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (tile, (tile[0], 1)))
    closed = jax.make_jaxpr(lambda *a: flow_back(a[0], None, True, *a[1:]))(operands, square, square, column, column)
    return _most_alive(closed.jaxpr)


def _most_alive(jaxpr: Any) -> int:
    """The most bytes that a program's values take at one time, those of the programs within it included."""
    last = {v: n for n, eqn in enumerate(jaxpr.eqns) for v in eqn.invars if not isinstance(v, jax.extend.core.Literal)}
    last |= {v: len(jaxpr.eqns) for v in jaxpr.outvars if not isinstance(v, jax.extend.core.Literal)}
    alive, most = {v: _bytes(v.aval.shape, v.aval.dtype.itemsize) for v in jaxpr.invars}, 0
    for n, eqn in enumerate(jaxpr.eqns):
        alive |= {v: _bytes(v.aval.shape, v.aval.dtype.itemsize) for v in eqn.outvars if v in last}
        programs = (getattr(x, "jaxpr", x) for x in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")))
        inside = max((_most_alive(p) for p in programs if hasattr(p, "eqns")), default=0)
        most = max(most, sum(alive.values()) + inside)
        alive = {v: size for v, size in alive.items() if last.get(v, -1) > n}
    return most


def _sides(shape: tuple[int, ...], tile: tuple[int, int]) -> tuple[int, ...]:
    """The part `[1|bq, 1|bk, *features]` of an array `[B|1, N|1, T|1, S|1, *features]` that a tile reads; positions are as long as it is."""
    sides = (size if n > 1 else 1 for n, size in zip(shape[2:4], tile))
    return (*sides, *shape[4:])


def _bytes(shape: tuple[int, ...], size: int) -> int:
    *lead, rows, columns = (1, 1, *shape)
    return math.prod(lead) * _up(rows, 8) * _up(columns, 128) * max(size, 1)


def _up(n: int, step: int) -> int:
    return -(-n // step) * step
