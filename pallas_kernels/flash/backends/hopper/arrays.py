"""The gradients of the scores' arrays: sums that other kernels keep beside their own, and a kernel for an array that varies over queries and keys.

    kernel     grid                                           a warpgroup's tile      sums up, over its list
    dA         (heads|1, batch|1, tiles of queries and keys)  64 queries x bk keys    the array's gradient, over the rest of B * N

An array without a key axis is summed along dQ, one with a key axis and no query axis along dK: a sum for each row of a warpgroup's tile, `[features, 64]` in
shared memory. They leave as `[B, N, features, T or S]`, and what the array lacks of that is summed afterwards.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.flash.backends.hopper.launch import At, Launch, buffer
from pallas_kernels.flash.backends.hopper.rules import Deposited, Piece, Value, loaded, spread
from pallas_kernels.flash.backends.hopper.tile import Stages, fetched, full, gradients, product, turned, visited, zeros
from pallas_kernels.flash.backends.hopper.tiling import COMPUTING, CONSUMERS, COPYING, ROWS
from pallas_kernels.flash.lists import visits
from pallas_kernels.flash.masks import Verdict
from pallas_kernels.flash.request import float_arrays
from pallas_kernels.flash.tiled import T_AXIS, Scalars


def sum_buffers(launch: Launch, mine: list[int]) -> dict[str, Any]:
    """Shared memory for the sums of the scores' float arrays of these numbers."""
    arrays = float_arrays(launch.request.score)
    return {f"sum {n}": plgpu.SMEM((CONSUMERS, int(np.prod(arrays[n].shape[4:])), ROWS), jnp.float32) for n in mine}


def sum_outputs(launch: Launch, mine: list[int], length: int) -> list[Any]:
    arrays = float_arrays(launch.request.score)
    return [jax.ShapeDtypeStruct((launch.B, launch.N, int(np.prod(arrays[n].shape[4:])), length), jnp.float32) for n in mine]


def clear(sums: Sequence[Any]) -> None:
    def clear_entry(ref: Any, n: Any) -> None:
        ref.at[n][...] = full(ROWS, 0.0)

    for ref in sums:
        pl.loop(0, ref.shape[0])(partial(clear_entry, ref))


def add_to(sums: Sequence[Any], arrays: Sequence[Value | Deposited]) -> None:
    def add(place: Any, piece: Piece) -> None:
        place[...] = loaded(place, (0,)) + spread(piece, (ROWS, 0), (0,))

    def add_entry(ref: Any, array: Deposited, n: Any) -> None:
        add(ref.at[n], array.entry(n))

    for ref, array in zip(sums, arrays):
        if isinstance(array, Deposited):
            pl.loop(0, array.shape[-1])(partial(add_entry, ref, array))
        else:
            for n, piece in enumerate(array.pieces.reshape(-1)):
                add(ref.at[n], piece)


def as_leaf(launch: Launch, part: jax.Array, n: int, axis: int) -> jax.Array:
    """`[B, N, features, length]` in the shape of the array whose gradient it is, summed over what that lacks."""
    shape = float_arrays(launch.request.score)[n].shape
    part = part[..., : (launch.T, launch.S)[axis - T_AXIS]]
    absent = tuple(d for d, own in zip((0, 1, 3), (0, 1, axis)) if shape[own] == 1)
    part = jnp.moveaxis(part.sum(absent, keepdims=True), 2, -1)
    return part.reshape(shape)


def over_heads(launch: Launch, rows: tuple[jax.Array, ...], k: jax.Array, v: jax.Array, n: int) -> jax.Array:
    """The gradient of the n-th float array, which varies over queries and keys. Every tile has a place, so that empty ones are written too, as zeros."""
    q, do, dtype = rows[0], rows[1], rows[0].dtype
    shape, bk, H, Hv = float_arrays(launch.request.score)[n].shape, launch.tile[1], q.shape[-1], do.shape[-1]
    b, h = launch.B if shape[0] > 1 else 1, launch.N if shape[1] > 1 else 1
    others = launch.B // b, launch.N // h

    def of_others(a: Any) -> Any:
        a = (jnp if isinstance(a, jax.Array) else np).broadcast_to(a, (launch.B, launch.N, *launch.counts))
        a = a.reshape(b, others[0], h, others[1], *launch.counts)
        return a.transpose(0, 2, 4, 5, 1, 3).reshape(b, h, *launch.counts, -1)

    lists = visits(Verdict(*map(of_others, launch.verdict)))
    smem = {"q": buffer(CONSUMERS, ROWS, H, dtype, bk), "do": buffer(CONSUMERS, ROWS, Hv, dtype, bk)}
    smem |= {"k": buffer(1, bk, H, dtype, bk), "v": buffer(1, bk, Hv, dtype, bk), "out": plgpu.SMEM((CONSUMERS, ROWS, bk), jnp.float32)}
    barriers = {"q": plgpu.Barrier(num_barriers=CONSUMERS), "do": plgpu.Barrier(num_barriers=CONSUMERS), **Stages.made(1, ("k", "v"))}
    lengths = [count * size for count, size in zip(launch.counts, launch.tile)]
    body = partial(attention_da, launch, h, others, n)
    grid = {"head": h, "batch": b, "tile": launch.counts[0] * launch.counts[1]}
    output = jax.ShapeDtypeStruct((b, h, *lengths), jnp.float32)
    (da,) = launch.run(body, "attention_da", grid, launch.scalars(lists), [*rows, k, v], [output], smem, barriers)
    return da[:, :, : launch.T, : launch.S]


def attention_da(
    launch: Launch, heads: int, others: tuple[int, int], n: int, scalars: Scalars, inputs: Any, leaves: Any, outputs: Any, smem: Any, barriers: Any
) -> None:
    (q, do, lse, delta, k, v), (bq, bk) = inputs, launch.tile
    own_batch, own_head, tile = (jax.lax.axis_index(name) for name in ("batch", "head", "tile"))
    row, column = jax.lax.div(tile, jnp.int32(launch.counts[1])), jax.lax.rem(tile, jnp.int32(launch.counts[1]))
    listed = (own_batch * heads + own_head) * (launch.counts[0] * launch.counts[1]) + tile
    warpgroup, stages = jax.lax.axis_index("warpgroup"), Stages(1, ("k", "v"), smem, barriers)
    whole = scalars.full[listed]
    count = whole + scalars.partial[listed]

    def other(step: Any) -> tuple[Any, Any]:
        number = scalars.order[listed * (others[0] * others[1]) + step]
        return own_batch + jax.lax.div(number, jnp.int32(others[1])), own_head + jax.lax.rem(number, jnp.int32(others[1]))

    @pl.when(warpgroup == CONSUMERS)
    def _copy() -> None:
        plgpu.set_max_registers(COPYING, action="decrease")

        def tile_of(ref: Any, step: Any) -> Any:
            batch, head = other(step)
            return ref.at[batch, pl.ds(column * bk, bk), jax.lax.div(head, jnp.int32(launch.G))]

        stages.copy(0, count, [partial(tile_of, a) for a in (k, v)])
        stages.drain(count)

    @pl.when(warpgroup < CONSUMERS)
    def _compute() -> None:
        plgpu.set_max_registers(COMPUTING, action="increase")
        first = row * bq + warpgroup * ROWS
        own = pl.ds(first, ROWS)

        def visit(masked: bool, step: Any, acc: Any) -> Any:
            batch, head = other(step)
            queries, above = fetched({name: ref.at[batch, own, head] for name, ref in (("q", q), ("do", do))}, smem, barriers, warpgroup)
            s = product(queries, turned(stages.use("k", step)))
            stages.release("k", step)
            values = stages.use("v", step)
            scalar_rows = [loaded(ref.at[batch, head, own], (0,)) for ref in (lse, delta)]
            at = At(batch, head, first, column * bk)
            _, (array,) = gradients(launch, scalars, leaves, at, masked, [], [n], s, lambda: product(above, turned(values)), *scalar_rows)
            stages.release("v", step)
            return acc + spread(array.one, s.shape)

        out = smem["out"].at[warpgroup]
        out[...] = visited(launch, visit, whole, count, zeros(ROWS, bk))
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(out, outputs[0].at[own_batch, own_head, own, pl.ds(column * bk, bk)])
        plgpu.wait_smem_to_gmem(0)
