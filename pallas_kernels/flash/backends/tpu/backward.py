"""Backward: three kernels that rebuild p from lse, each stationary in what it sums up, so that the sums stay on the chip and their order is fixed.

    kernel      grid                                        sums up, over its last axis
    dQ          (B, N, query tiles, visits)                 dQ = scale * dS.K; the gradients of arrays that do not vary over keys
    dK, dV      (B, K, key tiles, G * visits)               dK = scale * dS^T.Q, dV = P^T.dO; the gradients of arrays that vary over keys alone
    dA          (B|1, N|1, query tiles, key tiles, the rest of B * N)   the gradient of an array that varies over both

    dS = score'(S) * P * (dropout(dO.V^T) - delta)          delta = rowsum(dO * O) - dlse

An array's gradient is summed over the axes that it lacks: over T and S here, over B and N after the kernel, except in dA, where that would take B * N
times the memory of the array.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels.flash.backends.tpu.launch import At, Launch
from pallas_kernels.flash.backends.tpu.tile import gradients, product
from pallas_kernels.flash.request import float_arrays
from pallas_kernels.flash.tiled import S_AXIS, T_AXIS, Scalars

Rows = tuple[jax.Array, ...]


def backward(launch: Launch, rows: Rows, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, list[jax.Array]]:
    """dQ `[B, N, T, H]`, dK and dV `[B, K, S, .]`, and the gradients of the scores' float arrays in their own shapes, float32.

    Args:
        rows: q, dO `[B, N, T, .]`, lse and delta `[B, N, 1, query tiles * bq]`.
    """
    arrays = [a.shape for a in float_arrays(launch.request.score)]
    sums: dict[int, jax.Array] = {}
    dq = _over_queries(launch, rows, k, v, arrays, sums)
    dk, dv = _over_keys(launch, rows, k, v, arrays, sums)
    for n, shape in enumerate(arrays):
        if shape[T_AXIS] > 1 and shape[S_AXIS] > 1:
            sums[n] = _over_heads(launch, rows, k, v, shape, n)
    return dq, dk, dv, [sums[n] for n in range(len(arrays))]


def _over_queries(launch: Launch, rows: Rows, k: jax.Array, v: jax.Array, arrays: Any, sums: dict[int, jax.Array]) -> jax.Array:
    lists, most = launch.lists()
    find = launch.found(lists, launch.counts[0])

    def where(scalars: Scalars, batch: Any, head: Any, row: Any, step: Any) -> At:
        return At(batch, head, row, find(scalars, batch, head, row, step)[0])

    mine = [n for n, shape in enumerate(arrays) if shape[S_AXIS] == 1]
    outputs = [(rows[0].shape, rows[0].dtype, launch.queries(where, rows[0].shape[-1]))]
    outputs += [_sum_of(launch, arrays[n], where) for n in mine]
    body = partial(attention_dq, launch, find, mine, [arrays[n][T_AXIS] == 1 for n in mine])
    grid = (launch.B, launch.N, launch.counts[0], most)
    # A sum over all queries of a head goes on from one row of tiles to the next.
    parallel = 2 if any(arrays[n][T_AXIS] == 1 for n in mine) else 3
    dq, *parts = launch.run(body, grid, parallel, lists, _inputs(launch, rows, k, v, where), outputs, where, [(launch.tile[0], rows[0].shape[-1])])
    sums.update({n: _over_absent(launch, part, arrays[n]) for n, part in zip(mine, parts)})
    return dq


def attention_dq(
    launch: Launch, find: Any, mine: list[int], over_rows: list[bool], scalars: Scalars, inputs: Any, leaves: Any, outputs: Any, scratch: Any
) -> None:
    (dq, *sums), (acc,) = outputs, scratch
    batch, head, row, step = (pl.program_id(axis) for axis in range(4))
    column, full, count = find(scalars, batch, head, row, step)
    pl.when(step == 0)(lambda: _clear(acc))
    for out, over in zip(sums, over_rows):
        pl.when((step == 0) & ((row == 0) if over else True))(partial(_clear, out))

    def visit(masked: bool) -> None:
        ds, _, _, keys, _, arrays = gradients(launch, scalars, inputs, leaves, At(batch, head, row, column), masked, mine)
        acc[...] += product(ds.astype(keys.dtype), keys, (1, 0))
        for out, array in zip(sums, arrays):
            _add(out, array)

    _visit(launch, visit, step, full, count)

    @pl.when(step == pl.num_programs(3) - 1)
    def _finish() -> None:
        dq[...] = (acc[...] * launch.request.scale).astype(dq.dtype)


def _over_keys(launch: Launch, rows: Rows, k: jax.Array, v: jax.Array, arrays: Any, sums: dict[int, jax.Array]) -> tuple[jax.Array, jax.Array]:
    lists, most = launch.lists(sideways=True)
    find = launch.found(lists, launch.counts[1])

    def where(scalars: Scalars, batch: Any, group: Any, column: Any, step: Any) -> At:
        head = group * launch.G + step // most
        return At(batch, head, find(scalars, batch, head, column, step % most)[0], column)

    mine = [n for n, shape in enumerate(arrays) if shape[S_AXIS] > 1 and shape[T_AXIS] == 1]
    widths = k.shape[-1], v.shape[-1]
    outputs = [(a.shape, a.dtype, launch.keys(where, width)) for a, width in zip((k, v), widths)]
    outputs += [_sum_of(launch, arrays[n], where) for n in mine]
    grid = (launch.B, launch.K, launch.counts[1], launch.G * most)
    body, scratch = partial(attention_dkv, launch, find, most, mine), [(launch.tile[1], width) for width in widths]
    dk, dv, *parts = launch.run(body, grid, 3, lists, _inputs(launch, rows, k, v, where), outputs, where, scratch)
    sums.update({n: _over_absent(launch, part, arrays[n]) for n, part in zip(mine, parts)})
    return dk, dv


def attention_dkv(launch: Launch, find: Any, most: int, mine: list[int], scalars: Scalars, inputs: Any, leaves: Any, outputs: Any, scratch: Any) -> None:
    (dk, dv, *sums), accs = outputs, scratch
    batch, group, column, number = (pl.program_id(axis) for axis in range(4))
    head, step = group * launch.G + number // most, number % most
    row, full, count = find(scalars, batch, head, column, step)
    for acc in accs:
        pl.when(number == 0)(partial(_clear, acc))
    for out in sums:
        pl.when(step == 0)(partial(_clear, out))

    def visit(masked: bool) -> None:
        ds, p, queries, _, above, arrays = gradients(launch, scalars, inputs, leaves, At(batch, head, row, column), masked, mine)
        accs[0][...] += product(ds.astype(queries.dtype), queries, (0, 0))
        accs[1][...] += product(p.astype(above.dtype), above, (0, 0))
        for out, array in zip(sums, arrays):
            _add(out, array)

    _visit(launch, visit, step, full, count)

    @pl.when(number == pl.num_programs(3) - 1)
    def _finish() -> None:
        dk[...] = (accs[0][...] * launch.request.scale).astype(dk.dtype)
        dv[...] = accs[1][...].astype(dv.dtype)


def _over_heads(launch: Launch, rows: Rows, k: jax.Array, v: jax.Array, shape: tuple[int, ...], n: int) -> jax.Array:
    """The gradient of the n-th array, which varies over queries and keys. It has a place for every tile, so that empty ones are written too, as zeros."""
    lists, _ = launch.lists()
    verdict, heads = launch.verdict, (launch.B if shape[0] > 1 else 1, launch.N if shape[1] > 1 else 1)
    others = launch.B // heads[0], launch.N // heads[1]
    b, h = verdict.never.shape[:2]
    rank = jnp.where(verdict.never, 2, jnp.where(verdict.always, 0, 1)).astype(jnp.int32)
    lists = lists._replace(order=rank)

    def where(scalars: Scalars, batch: Any, head: Any, row: Any, column: Any, other: Any) -> At:
        return At(batch + other // others[1], head + other % others[1], row, column)

    def find(scalars: Scalars, at: At) -> Any:
        first = (at.batch if b > 1 else 0) * h + (at.head if h > 1 else 0)
        return scalars.order[(first * launch.counts[0] + at.row) * launch.counts[1] + at.column]

    sides = [*launch.tile, *shape[4:]]
    place = pl.BlockSpec((None, None, *sides), lambda *ids: (*ids[:4], *(0 for _ in shape[4:])))
    outputs = [((*heads, *shape[2:]), jnp.float32, place)]
    grid = (*heads, *launch.counts, others[0] * others[1])
    body = partial(attention_da, launch, find, where, n)
    return launch.run(body, grid, 4, lists, _inputs(launch, rows, k, v, where), outputs, where)[0]


def attention_da(launch: Launch, find: Any, where: Any, n: int, scalars: Scalars, inputs: Any, leaves: Any, outputs: Any, scratch: Any) -> None:
    (out,) = outputs
    at = where(scalars, *(pl.program_id(axis) for axis in range(5)))
    rank = find(scalars, at)
    pl.when(pl.program_id(4) == 0)(partial(_clear, out))

    def visit(masked: bool) -> None:
        _add(out, gradients(launch, scalars, inputs, leaves, at, masked, [n])[-1][0])

    _visit(launch, visit, rank, 1, 2)


def _visit(launch: Launch, visit: Callable[[bool], None], step: Any, full: Any, count: Any) -> None:
    """Nothing is masked before `full`, and nothing is there from `count` on."""
    pl.when(step < full)(lambda: visit(False))
    if launch.mask is not None:
        pl.when((step >= full) & (step < count))(lambda: visit(True))


def _inputs(launch: Launch, rows: Rows, k: jax.Array, v: jax.Array, where: Any) -> list[tuple[Any, pl.BlockSpec]]:
    q, do, lse, delta = rows
    queries = [(a, launch.queries(where, a.shape[-1])) for a in (q, do)]
    scalars = [(a, launch.query_scalars(where)) for a in (lse, delta)]
    return [*queries, *scalars, *((a, launch.keys(where, a.shape[-1])) for a in (k, v))]


def _sum_of(launch: Launch, shape: tuple[int, ...], where: Any) -> tuple[tuple[int, ...], Any, pl.BlockSpec]:
    """The output for an array's gradient, one for each head of the batch: as the array lies in memory, lengthened to whole tiles."""
    t, s, *features = shape[2:]
    lengths = [count * size if n > 1 else 1 for n, count, size in zip((t, s), launch.counts, launch.tile)]
    return launch.leaf_output((launch.B, launch.N, *lengths, *features), where)


def _over_absent(launch: Launch, part: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Summed over the batch and the heads where the array lacks them, and cut to its own lengths."""
    absent = tuple(axis for axis in (0, 1) if shape[axis] == 1)
    part = launch.as_placed(part, shape).sum(absent, keepdims=True)
    return part[:, :, : shape[T_AXIS], : shape[S_AXIS]]


def _clear(ref: Any) -> None:
    ref[...] = jnp.zeros(ref.shape, ref.dtype)


def _add(ref: Any, part: jax.Array) -> None:
    """The gradient of an array that varies over queries alone is kept as a row."""
    ref[...] += part.T if part.shape != ref.shape else part
