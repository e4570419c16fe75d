"""Backward: two kernels that rebuild p from lse, each stationary in what it sums up, so that the sums stay on the chip and their order is fixed.

    kernel     grid                                     a warpgroup's tile      sums up, over its list
    dQ         (tiles of 128 queries, heads, batch)     64 queries x bk keys    dQ = scale * dS.K
    dK, dV     (tiles of 128 keys, kv heads, batch)     64 keys x bq queries    dK = scale * dS^T.Q, dV = P^T.dO, over the group's query heads too

    dS = score'(S) * P * (dropout(dO.V^T) - delta)      delta = rowsum(dO * O) - dlse

Warpgroups 0 and 1 compute and 2 copies, as forward. In shared memory lie what is stationary, `stages` of what is visited, and sums of the gradients of scores'
arrays (arrays.py); dQ, dK and dV leave through the places of q, k and v. A warpgroup that has no registers for dK and dV at a time makes one of them: the
kernel then runs twice.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.flash.backends.hopper.arrays import add_to, as_leaf, clear, sum_buffers, sum_outputs
from pallas_kernels.flash.backends.hopper.launch import At, Launch, buffer, staged
from pallas_kernels.flash.backends.hopper.rules import loaded
from pallas_kernels.flash.backends.hopper.tile import Stages, accumulate, fetched, gradients, product, turned, visited, zeros
from pallas_kernels.flash.backends.hopper.tiling import COMPUTING, CONSUMERS, COPYING, ROWS, for_a_gpu
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
        return still | passing | _room({"ds": (ROWS, bk)}, dtype) | sum_buffers(launch, mine)

    stages, smem = staged(memory)
    barriers = {"q": plgpu.Barrier(num_barriers=CONSUMERS), "do": plgpu.Barrier(num_barriers=CONSUMERS), **Stages.made(stages, ("k", "v"))}
    outputs = [jax.ShapeDtypeStruct(q.shape, dtype), *sum_outputs(launch, mine, launch.counts[0] * bq)]
    body = partial(attention_dq, launch, launch.listed(lists, launch.counts[0]), lists.order.shape[-1], stages, mine)
    grid = {"row": launch.counts[0], "head": launch.N, "batch": launch.B}
    dq, *sums = launch.run(body, "attention_dq", grid, launch.scalars(lists), [*rows, k, v], outputs, smem, barriers)
    return dq, {n: as_leaf(launch, part, n, T_AXIS) for n, part in zip(mine, sums)}


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
        own = pl.ds(first, ROWS)
        queries, above = fetched({name: ref.at[batch, own, head] for name, ref in (("q", q), ("do", do))}, smem, barriers, warpgroup)
        scalar_rows = [loaded(ref.at[batch, head, own], (0,)) for ref in (lse, delta)]
        sums = [smem[f"sum {n}"].at[warpgroup] for n in mine]
        clear(sums)

        def visit(masked: bool, step: Any, acc: Any) -> Any:
            keys = stages.use("k", step)
            s = product(queries, turned(keys))
            values = stages.use("v", step)
            at = At(batch, head, first, first_key(step))
            (ds,), arrays = gradients(launch, scalars, leaves, at, masked, ["ds"], mine, s, lambda: product(above, turned(values)), *scalar_rows)
            stages.release("v", step)
            add_to(sums, arrays)
            acc = accumulate(acc, ds.astype(k.dtype), keys, _of(smem, "ds", warpgroup))
            stages.release("k", step)
            return acc

        acc = visited(launch, visit, whole, count, zeros(ROWS, q.shape[-1]))
        queries[...] = (acc * launch.request.scale).astype(q.dtype)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(queries, outputs[0].at[batch, own, head])
        for part, out in zip(sums, outputs[1:]):
            plgpu.copy_smem_to_gmem(part, out.at[batch, head, :, own])
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
        return still | passing | _room(dict.fromkeys(("ds", "p"), (ROWS, bq)), dtype) | sum_buffers(launch, mine)

    stages, smem = staged(memory)
    barriers = {"k": plgpu.Barrier(num_barriers=CONSUMERS), "v": plgpu.Barrier(num_barriers=CONSUMERS), **Stages.made(stages, ("q", "do"))}
    outputs = [jax.ShapeDtypeStruct(a.shape, dtype) for name, a in (("dk", k), ("dv", v)) if name in wanted]
    outputs += sum_outputs(launch, mine, launch.counts[1] * bk)
    body = partial(attention_dkv, launch, launch.listed(lists, launch.counts[1]), lists.order.shape[-1], stages, mine, wanted)
    grid = {"column": launch.counts[1], "group": launch.K, "batch": launch.B}
    found = launch.run(body, f"attention_{'_'.join(wanted)}", grid, launch.scalars(lists), [*rows, k, v], outputs, smem, barriers)
    sums = found[len(wanted) :]
    return found[: len(wanted)], {n: as_leaf(launch, part, n, S_AXIS) for n, part in zip(mine, sums)}


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
        own = pl.ds(first, ROWS)
        keys, values = fetched({name: ref.at[batch, own, group] for name, ref in (("k", k), ("v", v))}, smem, barriers, warpgroup)
        sums = [smem[f"sum {n}"].at[warpgroup] for n in mine]

        def over_head(g: Any, carry: Any) -> Any:
            head, whole, count, first_query = of_head(g)
            clear(sums)

            def visit(masked: bool, step: Any, carry: Any) -> Any:
                before, *accs = carry
                queries, above = stages.use("q", before + step), stages.use("do", before + step)
                s = product(keys, turned(queries))
                at = At(batch, head, first_query(step), first)
                scalar_rows = [loaded(ref.at[batch, head, pl.ds(at.query, bq)], (1,)) for ref in (lse, delta)]
                names = [{"dk": "ds", "dv": "p"}[name] for name in wanted]
                found, arrays = gradients(launch, scalars, leaves, at, masked, names, mine, s, lambda: product(values, turned(above)), *scalar_rows)
                add_to(sums, arrays)
                factors = [queries if name == "dk" else above for name in wanted]
                summed = [
                    accumulate(acc, a.astype(k.dtype), b, _of(smem, room, warpgroup)) for acc, a, b, room in zip(accs, found, factors, names)
                ]
                stages.release("q", before + step)
                stages.release("do", before + step)
                return before, *summed

            before, *accs = visited(launch, visit, whole, count, carry)
            if mine:
                plgpu.commit_smem()
                for part, out in zip(sums, outputs[len(wanted) :]):
                    plgpu.copy_smem_to_gmem(part, out.at[batch, head, :, own])
                plgpu.wait_smem_to_gmem(0)
            return before + count, *accs

        widths = {"dk": k.shape[-1], "dv": v.shape[-1]}
        _, *accs = jax.lax.fori_loop(0, launch.G, over_head, (jnp.int32(0), *(zeros(ROWS, widths[name]) for name in wanted)))
        for name, acc, out in zip(wanted, accs, outputs):
            place_ = keys if name == "dk" else values
            place_[...] = (acc * launch.request.scale if name == "dk" else acc).astype(k.dtype)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(place_, out.at[batch, own, group])
        plgpu.wait_smem_to_gmem(0)


def _room(shapes: dict[str, tuple[int, int]], dtype: Any) -> dict[str, Any]:
    """What `accumulate` needs where the kernel is interpreted."""
    return {} if for_a_gpu() else {name: buffer(CONSUMERS, *shape, dtype, min(shape)) for name, shape in shapes.items()}


def _of(smem: Any, name: str, warpgroup: Any) -> Any:
    return smem[name].at[warpgroup] if name in smem else None
