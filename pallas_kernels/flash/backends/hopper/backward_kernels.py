"""Backward: three kernels that rebuild p from lse, each stationary in what it sums up, so that the sums stay on the chip and their order is fixed.

    kernel     grid                                         a warpgroup's tile      sums up, over its list
    dQ         (heads, tiles of 128 queries, batch)         64 queries x bk keys    dQ = scale * dS.K; gradients of arrays that do not vary over keys
    dK, dV     (kv heads, tiles of 128 keys, batch)         64 keys x bq queries    dK = scale * dS^T.Q, dV = P^T.dO, over the group's query heads too;
                                                                                    gradients of arrays that vary over keys alone
    dA         (heads|1, tiles of queries and keys, batch|1)  64 queries x bk keys  the gradient of an array that varies over both, over the rest of B * N

    dS = score'(S) * P * (dropout(dO.V^T) - delta)          delta = rowsum(dO * O) - dlse

Warpgroups 0 and 1 compute and 2 copies, as forward. In shared memory lie what is stationary, `stages` of what is visited, and the sums of arrays' gradients,
`[features, 64]` for each warpgroup; dQ, dK and dV leave through the places of q, k and v. A warpgroup that has no registers for dK and dV at a time makes
one of them: the kernel then runs twice.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.flash.backends.hopper.launch import At, Launch, buffer, staged
from pallas_kernels.flash.backends.hopper.rules import LAYOUTS, Deposited, Piece, Value, loaded, spread
from pallas_kernels.flash.backends.hopper.tile import Stages, accumulate, gradients, product, turned, zeros
from pallas_kernels.flash.backends.hopper.tiling import COMPUTING, CONSUMERS, COPYING, ROWS, for_a_gpu
from pallas_kernels.flash.lists import visits
from pallas_kernels.flash.masks import Verdict
from pallas_kernels.flash.request import float_arrays
from pallas_kernels.flash.tiled import S_AXIS, T_AXIS, Scalars

Rows = tuple[jax.Array, ...]


def over_queries(launch: Launch, rows: Rows, k: jax.Array, v: jax.Array) -> tuple[jax.Array, dict[int, jax.Array]]:
    """dQ like q, and the gradients of the scores' float arrays that do not vary over keys, by number.

    Args:
        rows: q, dO `[B, T, N, .]`, lse and delta `[B, N, whole tiles of T]` float32.
    """
    q, do, dtype = rows[0], rows[1], rows[0].dtype
    (lists, _), (bq, bk), H, Hv = launch.lists(), launch.tile, q.shape[-1], do.shape[-1]
    mine = [n for n, a in enumerate(float_arrays(launch.request.score)) if a.shape[S_AXIS] == 1]

    def memory(stages: int) -> dict[str, Any]:
        still = {"q": buffer(CONSUMERS, ROWS, H, dtype, bk), "do": buffer(CONSUMERS, ROWS, Hv, dtype, bk)}
        passing = {"k": buffer(stages, bk, H, dtype, bk), "v": buffer(stages, bk, Hv, dtype, bk)}
        return still | passing | _room({"ds": (ROWS, bk)}, dtype) | _sums(launch, mine)

    stages, smem = staged(memory)
    barriers = {"q": plgpu.Barrier(num_barriers=CONSUMERS), "do": plgpu.Barrier(num_barriers=CONSUMERS), **Stages.made(stages, ("k", "v"))}
    outputs = [jax.ShapeDtypeStruct(q.shape, dtype), *_sum_outputs(launch, mine, launch.counts[0] * bq)]
    body = partial(attention_dq, launch, launch.listed(lists, launch.counts[0]), lists.order.shape[-1], stages, mine)
    grid = {"head": launch.N, "row": launch.counts[0], "batch": launch.B}
    dq, *sums = launch.run(body, "attention_dq", grid, launch.scalars(lists), [*rows, k, v], outputs, smem, barriers)
    return dq, {n: _as_leaf(launch, part, n, T_AXIS) for n, part in zip(mine, sums)}


def attention_dq(
    launch: Launch, place: Callable[..., Any], columns: int, number: int, mine: list[int], scalars: Scalars, inputs: Any, leaves: Any, outputs: Any, smem: Any,
    barriers: Any,
) -> None:  # fmt: skip
    (q, do, lse, delta, k, v), bk = inputs, launch.tile[1]
    batch, head, row = jax.lax.axis_index("batch"), jax.lax.axis_index("head"), launch.counts[0] - 1 - jax.lax.axis_index("row")
    listed, warpgroup = place(batch, head, row), jax.lax.axis_index("warpgroup")
    stages = Stages(number, ("k", "v"), smem, barriers)
    whole = scalars.full[listed]
    count = whole + scalars.partial[listed]

    def first_key(step: Any) -> Any:
        return scalars.order[listed * columns + step] * bk

    @pl.when(warpgroup == CONSUMERS)
    def _copy() -> None:
        plgpu.set_max_registers(COPYING, action="decrease")
        group = jax.lax.div(head, jnp.int32(launch.G))

        def tile_of(ref: Any, step: Any) -> Any:
            return ref.at[batch, pl.ds(first_key(step), bk), group]

        stages.copy(0, count, [partial(tile_of, a) for a in (k, v)])
        stages.drain(count)

    @pl.when(warpgroup < CONSUMERS)
    def _compute() -> None:
        plgpu.set_max_registers(COMPUTING, action="increase")
        first = row * launch.tile[0] + warpgroup * ROWS
        queries, above = (smem[name].at[warpgroup] for name in ("q", "do"))
        for ref, to, came in ((q, queries, barriers["q"]), (do, above, barriers["do"])):
            plgpu.copy_gmem_to_smem(ref.at[batch, pl.ds(first, ROWS), head], to, came.at[warpgroup])
        sums = [smem[f"sum {n}"].at[warpgroup] for n in mine]
        _clear(sums)
        for came in (barriers["q"], barriers["do"]):
            plgpu.barrier_wait(came.at[warpgroup])
        mine_of = batch, head, pl.ds(first, ROWS)
        scalar_rows = [loaded(ref.at[mine_of], (0,)) for ref in (lse, delta)]

        def visit(masked: bool, step: Any, acc: Any) -> Any:
            keys = stages.use("k", step)
            s = product(queries, turned(keys))

            def dp() -> jax.Array:
                found = product(above, turned(stages.use("v", step)))
                stages.release("v", step)
                return found

            at = At(batch, head, first, first_key(step))
            (ds,), arrays = gradients(launch, scalars, leaves, at, masked, ["ds"], mine, s, dp, *scalar_rows)
            _add(sums, arrays)
            acc = accumulate(acc, ds.astype(k.dtype), keys, _of(smem, "ds", warpgroup))
            stages.release("k", step)
            return acc

        acc = _visits(launch, visit, whole, count, zeros(ROWS, q.shape[-1]))
        queries[...] = (acc * launch.request.scale).astype(q.dtype)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(queries, outputs[0].at[batch, pl.ds(first, ROWS), head])
        for n, out in zip(mine, outputs[1:]):
            plgpu.copy_smem_to_gmem(smem[f"sum {n}"].at[warpgroup], out.at[batch, head, :, pl.ds(first, ROWS)])
        plgpu.wait_smem_to_gmem(0)


def over_keys(
    launch: Launch, rows: Rows, k: jax.Array, v: jax.Array, wanted: Sequence[str]
) -> tuple[list[jax.Array], dict[int, jax.Array]]:  # fmt: skip
    """Of dK like k and dV like v those wanted, and with dK the gradients of the scores' float arrays that vary over keys alone."""
    (lists, _), (bq, bk), H, Hv, dtype = launch.lists(sideways=True), launch.tile, k.shape[-1], v.shape[-1], k.dtype
    arrays = float_arrays(launch.request.score)
    mine = [n for n, a in enumerate(arrays) if a.shape[S_AXIS] > 1 and a.shape[T_AXIS] == 1 and "dk" in wanted]

    def memory(stages: int) -> dict[str, Any]:
        still = {"k": buffer(CONSUMERS, ROWS, H, dtype, bq), "v": buffer(CONSUMERS, ROWS, Hv, dtype, bq)}
        passing = {"q": buffer(stages, bq, H, dtype, bq), "do": buffer(stages, bq, Hv, dtype, bq)}
        return still | passing | _room(dict.fromkeys(("ds", "p"), (ROWS, bq)), dtype) | _sums(launch, mine)

    stages, smem = staged(memory)
    barriers = {"k": plgpu.Barrier(num_barriers=CONSUMERS), "v": plgpu.Barrier(num_barriers=CONSUMERS), **Stages.made(stages, ("q", "do"))}
    outputs = [jax.ShapeDtypeStruct(a.shape, dtype) for name, a in (("dk", k), ("dv", v)) if name in wanted]
    outputs += _sum_outputs(launch, mine, launch.counts[1] * bk)
    body = partial(attention_dkv, launch, launch.listed(lists, launch.counts[1]), lists.order.shape[-1], stages, mine, wanted)
    grid = {"group": launch.K, "column": launch.counts[1], "batch": launch.B}
    found = launch.run(body, f"attention_{'_'.join(wanted)}", grid, launch.scalars(lists), [*rows, k, v], outputs, smem, barriers)
    sums = found[len(wanted) :]
    return found[: len(wanted)], {n: _as_leaf(launch, part, n, S_AXIS) for n, part in zip(mine, sums)}


def attention_dkv(
    launch: Launch, place: Callable[..., Any], columns: int, number: int, mine: list[int], wanted: Sequence[str], scalars: Scalars, inputs: Any, leaves: Any,
    outputs: Any, smem: Any, barriers: Any,
) -> None:  # fmt: skip
    (q, do, lse, delta, k, v), bq = inputs, launch.tile[0]
    batch, group, column = (jax.lax.axis_index(name) for name in ("batch", "group", "column"))
    warpgroup, stages = jax.lax.axis_index("warpgroup"), Stages(number, ("q", "do"), smem, barriers)

    def of_head(g: Any) -> tuple[Any, Any, Any, Callable[[Any], Any]]:
        """A query head of the group, its full and all visits, and the first query of each."""
        head = group * launch.G + g
        listed = place(batch, head, column)
        whole = scalars.full[listed]
        return head, whole, whole + scalars.partial[listed], lambda step: scalars.order[listed * columns + step] * bq

    @pl.when(warpgroup == CONSUMERS)
    def _copy() -> None:
        plgpu.set_max_registers(COPYING, action="decrease")

        def copy(g: Any, before: Any) -> Any:
            head, _, count, first_query = of_head(g)

            def tile_of(ref: Any, step: Any) -> Any:
                return ref.at[batch, pl.ds(first_query(step), bq), head]

            return stages.copy(before, count, [partial(tile_of, a) for a in (q, do)])

        stages.drain(jax.lax.fori_loop(0, launch.G, copy, jnp.int32(0)))

    @pl.when(warpgroup < CONSUMERS)
    def _compute() -> None:
        plgpu.set_max_registers(COMPUTING, action="increase")
        first = column * launch.tile[1] + warpgroup * ROWS
        keys, values = (smem[name].at[warpgroup] for name in ("k", "v"))
        for ref, to, came in ((k, keys, barriers["k"]), (v, values, barriers["v"])):
            plgpu.copy_gmem_to_smem(ref.at[batch, pl.ds(first, ROWS), group], to, came.at[warpgroup])
        for came in (barriers["k"], barriers["v"]):
            plgpu.barrier_wait(came.at[warpgroup])
        sums = [smem[f"sum {n}"].at[warpgroup] for n in mine]

        def over_head(g: Any, carry: Any) -> Any:
            head, whole, count, first_query = of_head(g)
            _clear(sums)

            def visit(masked: bool, step: Any, carry: Any) -> Any:
                before, *accs = carry
                queries, above = stages.use("q", before + step), stages.use("do", before + step)
                s = product(keys, turned(queries))
                at = At(batch, head, first_query(step), first)
                scalar_rows = [loaded(ref.at[batch, head, pl.ds(at.query, bq)], (1,)) for ref in (lse, delta)]
                names = [{"dk": "ds", "dv": "p"}[name] for name in wanted]
                found, arrays = gradients(launch, scalars, leaves, at, masked, names, mine, s, lambda: product(values, turned(above)), *scalar_rows)
                _add(sums, arrays)
                factors = [queries if name == "dk" else above for name in wanted]
                summed = [
                    accumulate(acc, a.astype(k.dtype), b, _of(smem, room, warpgroup)) for acc, a, b, room in zip(accs, found, factors, names)
                ]
                stages.release("q", before + step)
                stages.release("do", before + step)
                return before, *summed

            before, *accs = _visits(launch, visit, whole, count, carry)
            if mine:
                plgpu.commit_smem()
                for n, out in zip(mine, outputs[len(wanted) :]):
                    plgpu.copy_smem_to_gmem(smem[f"sum {n}"].at[warpgroup], out.at[batch, head, :, pl.ds(first, ROWS)])
                plgpu.wait_smem_to_gmem(0)
            return before + count, *accs

        widths = {"dk": k.shape[-1], "dv": v.shape[-1]}
        _, *accs = jax.lax.fori_loop(0, launch.G, over_head, (jnp.int32(0), *(zeros(ROWS, widths[name]) for name in wanted)))
        for name, acc, out in zip(wanted, accs, outputs):
            place_ = keys if name == "dk" else values
            place_[...] = (acc * launch.request.scale if name == "dk" else acc).astype(k.dtype)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(place_, out.at[batch, pl.ds(first, ROWS), group])
        plgpu.wait_smem_to_gmem(0)


def over_heads(launch: Launch, rows: Rows, k: jax.Array, v: jax.Array, n: int) -> jax.Array:
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
    grid = {"head": h, "tile": launch.counts[0] * launch.counts[1], "batch": b}
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
        queries, above = (smem[name].at[warpgroup] for name in ("q", "do"))

        def visit(masked: bool, step: Any, acc: Any) -> Any:
            batch, head = other(step)
            for ref, to, came in ((q, queries, barriers["q"]), (do, above, barriers["do"])):
                plgpu.copy_gmem_to_smem(ref.at[batch, pl.ds(first, ROWS), head], to, came.at[warpgroup])
            for came in (barriers["q"], barriers["do"]):
                plgpu.barrier_wait(came.at[warpgroup])
            s = product(queries, turned(stages.use("k", step)))
            stages.release("k", step)

            def dp() -> jax.Array:
                found = product(above, turned(stages.use("v", step)))
                stages.release("v", step)
                return found

            scalar_rows = [loaded(ref.at[batch, head, pl.ds(first, ROWS)], (0,)) for ref in (lse, delta)]
            at = At(batch, head, first, column * bk)
            _, (array,) = gradients(launch, scalars, leaves, at, masked, [], [n], s, dp, *scalar_rows)
            return acc + spread(array.one, s.shape)

        out = smem["out"].at[warpgroup]
        out[...] = _visits(launch, visit, whole, count, zeros(ROWS, bk))
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(out, outputs[0].at[own_batch, own_head, pl.ds(first, ROWS), pl.ds(column * bk, bk)])
        plgpu.wait_smem_to_gmem(0)


def _visits(launch: Launch, visit: Callable[..., Any], whole: Any, count: Any, carry: Any) -> Any:
    """Nothing is masked before `whole`, and nothing is there from `count` on."""
    carry = jax.lax.fori_loop(0, whole, partial(visit, False), carry)
    return carry if launch.mask is None else jax.lax.fori_loop(whole, count, partial(visit, True), carry)


def _room(shapes: dict[str, tuple[int, int]], dtype: Any) -> dict[str, Any]:
    """What `accumulate` needs where the kernel is interpreted."""
    return {} if for_a_gpu() else {name: buffer(CONSUMERS, *shape, dtype, min(shape)) for name, shape in shapes.items()}


def _of(smem: Any, name: str, warpgroup: Any) -> Any:
    return smem[name].at[warpgroup] if name in smem else None


def _sums(launch: Launch, mine: list[int]) -> dict[str, Any]:
    arrays = float_arrays(launch.request.score)
    return {f"sum {n}": plgpu.SMEM((CONSUMERS, int(np.prod(arrays[n].shape[4:])), ROWS), jnp.float32) for n in mine}


def _sum_outputs(launch: Launch, mine: list[int], length: int) -> list[Any]:
    arrays = float_arrays(launch.request.score)
    return [jax.ShapeDtypeStruct((launch.B, launch.N, int(np.prod(arrays[n].shape[4:])), length), jnp.float32) for n in mine]


def _clear(sums: Sequence[Any]) -> None:
    for ref in sums:
        for n in range(ref.shape[0]):
            ref.at[n][...] = plgpu.layout_cast(jnp.zeros((ROWS,), jnp.float32), LAYOUTS[0,])


def _add(sums: Sequence[Any], arrays: Sequence[Value | Deposited]) -> None:
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


def _as_leaf(launch: Launch, part: jax.Array, n: int, axis: int) -> jax.Array:
    """`[B, N, features, length]` in the shape of the array whose gradient it is, summed over what that lacks."""
    shape = float_arrays(launch.request.score)[n].shape
    part = part[..., : (launch.T, launch.S)[axis - T_AXIS]]
    absent = tuple(d for d, own in zip((0, 1, 3), (0, 1, axis)) if shape[own] == 1)
    part = jnp.moveaxis(part.sum(absent, keepdims=True), 2, -1)
    return part.reshape(shape)
