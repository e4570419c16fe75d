"""Forward: for each tile of queries, a running softmax over the tiles of keys on its list.

    grid                (tiles of 128 queries, heads, batch), the last fastest; under a causal mask the longest lists start first
    warpgroups 0, 1     64 queries each: products, softmax
    warpgroup 2         copies tiles of keys and values, `stages` ahead
    shared memory       q [2, 64, H], k [stages, bk, H], v [stages, bk, Hv], o [2, 64, Hv] (in q's place where H = Hv)
    registers           acc [64, Hv], m, l [64] (the softmax so far), s, p [64, bk], all float32
    device memory       the lists of tiles; what masks and scores read

    warpgroup 2   | k0 v0 | k1 v1 | once k0, v0 are used: k2 v2 | ...
    warpgroup 0   | q.k0      | softmax    | p.v0 q.k1 | softmax    | p.v1 q.k2 | ...
    warpgroup 1               | q.k0       | softmax   | p.v0 q.k1  | softmax   | ...

One computes its softmax while the other has the matrix unit: at each | the two meet at a barrier, which 1 has passed once more before it begins.

Per step, in base 2, c = scale * log2(e):

    t = c * q.k^T    m' = max(m, rowmax t)    p = 2^(t - m')    l' = l * 2^(m - m') + rowsum p    acc' = acc * 2^(m - m') + dropout(p).v
    o = acc / l      lse = (m + log2 l) / log2(e)

Reference: Shah et al., arXiv:2407.08608, section 3.1.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.flash.backends.hopper.launch import At, Launch, buffer, staged
from pallas_kernels.flash.backends.hopper.rules import of_tile, spread
from pallas_kernels.flash.backends.hopper.tile import LOG2E, Stages, accumulate, fetched, full, over, product, turned, visited, zeros
from pallas_kernels.flash.backends.hopper.tiling import COMPUTING, CONSUMERS, COPYING, ROWS, for_a_gpu
from pallas_kernels.flash.tiled import Scalars
from pallas_kernels.flash.tiles import kept, scored


def forward(launch: Launch, q: jax.Array, k: jax.Array, v: jax.Array, sinks: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """o like q with v's width, and lse `[B, N, whole tiles of T]` float32.

    Args:
        q, k, v: `[B, T, N, H]`, `[B, S, K, H]`, `[B, S, K, Hv]`, lengths multiples of 8 and widths of 16.
    """
    lists, _ = launch.lists()
    (bq, bk), H, Hv, dtype = launch.tile, q.shape[-1], v.shape[-1], q.dtype

    def memory(stages: int) -> dict[str, Any]:
        smem = {"q": buffer(CONSUMERS, ROWS, H, dtype, bk), "k": buffer(stages, bk, H, dtype, bk), "v": buffer(stages, bk, Hv, dtype, bk)}
        if Hv != H:
            smem["o"] = buffer(CONSUMERS, ROWS, Hv, dtype)
        if not for_a_gpu():
            smem["p"] = buffer(CONSUMERS, ROWS, bk, dtype, bk)
        return smem | {"lse": plgpu.SMEM((CONSUMERS, ROWS), jnp.float32)}

    stages, smem = staged(memory)
    barriers = {"q": plgpu.Barrier(num_barriers=CONSUMERS), "turn": plgpu.Barrier(num_arrivals=CONSUMERS), **Stages.made(stages, ("k", "v"))}
    body = partial(attention_forward, launch, launch.listed(lists, launch.counts[0]), lists.order.shape[-1], stages)
    grid = {"row": launch.counts[0], "head": launch.N, "batch": launch.B}
    outputs = [jax.ShapeDtypeStruct((*q.shape[:3], Hv), dtype), jax.ShapeDtypeStruct((launch.B, launch.N, launch.counts[0] * bq), jnp.float32)]
    inputs = [q, k, v] if sinks is None else [q, k, v, sinks.astype(jnp.float32)]
    o, lse = launch.run(body, "attention_forward", grid, launch.scalars(lists), inputs, outputs, smem, barriers)
    return o, lse


def attention_forward(
    launch: Launch, place: Callable[..., Any], columns: int, number: int, scalars: Scalars, inputs: Any, leaves: Any, outputs: Any, smem: Any, barriers: Any
) -> None:
    (q, k, v, *sinks), bk = inputs, launch.tile[1]
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
        mine = pl.ds(first, ROWS)
        (queries,) = fetched({"q": q.at[batch, mine, head]}, smem, barriers, warpgroup)
        room = smem["p"].at[warpgroup] if "p" in smem else None

        def turn() -> None:
            plgpu.barrier_arrive(barriers["turn"])
            plgpu.barrier_wait(barriers["turn"])

        def visit(masked: bool, step: Any, carry: Any) -> Any:
            acc, m, l = carry
            s = product(queries, turned(stages.use("k", step)), meanwhile=turn)
            stages.release("k", step)
            t = _logits(launch, scalars, leaves, At(batch, head, first, first_key(step)), masked, s)
            highest = jnp.maximum(m, t.max(axis=1))
            # A row that has seen nothing yet has no highest score: any number will do.
            base = jnp.where(highest == -jnp.inf, 0.0, highest) if masked else highest
            p = jnp.exp2(t - over(base, t.shape))
            shrink = jnp.exp2(m - base)
            l = l * shrink + p.sum(axis=1)
            p = _kept(launch, scalars, leaves, At(batch, head, first, first_key(step)), p)
            acc, p, l = jax.lax.optimization_barrier((acc * over(shrink, acc.shape), p.astype(v.dtype), l))
            values = stages.use("v", step)
            turn()
            acc = accumulate(acc, p, values, room)
            stages.release("v", step)
            return acc, highest, l

        carry = zeros(ROWS, v.shape[-1]), full(ROWS, sinks[0][head] * LOG2E if sinks else -jnp.inf), full(ROWS, 1.0 if sinks else 0.0)
        pl.when(warpgroup == 1)(turn)
        carry = visited(launch, visit, whole, count, carry)
        pl.when(warpgroup == 0)(turn)
        o, lse = smem["o" if "o" in smem else "q"].at[warpgroup], smem["lse"].at[warpgroup]
        _finish(carry, o, lse)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(o, outputs[0].at[batch, mine, head])
        plgpu.copy_smem_to_gmem(lse, outputs[1].at[batch, head, mine])
        plgpu.wait_smem_to_gmem(0)


def _logits(launch: Launch, scalars: Scalars, leaves: Any, at: At, masked: bool, s: jax.Array) -> jax.Array:
    """The scores in base 2, -inf where the mask forbids."""
    masked = masked and launch.mask is not None
    if not launch.request.score and not masked:
        return s * (launch.request.scale * LOG2E)
    square = jax.ShapeDtypeStruct(s.shape, jnp.float32)
    made = [*jax.tree.leaves(launch.values(scalars, leaves, at)), lambda: of_tile(s * launch.request.scale, (0, 1))]
    (value,) = launch.replay(lambda operands, s: scored(operands, s, masked), (launch.operands(), square), made)
    return spread(value.one, launch.part) * LOG2E


def _kept(launch: Launch, scalars: Scalars, leaves: Any, at: At, p: jax.Array) -> jax.Array:
    if launch.request.dropout is None:
        return p
    operands, seed = launch.values(scalars, leaves, at), lambda: of_tile(scalars.seed[0])
    avals = launch.operands(), jax.ShapeDtypeStruct((1, 1), jnp.int32), jax.ShapeDtypeStruct(p.shape, jnp.float32)
    made = [*jax.tree.leaves(operands), seed, lambda: of_tile(p, (0, 1))]
    (value,) = launch.replay(lambda operands, seed, p: kept(operands, launch.seeded(seed), p)[0], avals, made)
    return spread(value.one, launch.part)


def _finish(carry: Any, o: Any, lse: Any) -> None:
    acc, m, l = carry
    some = l > 0
    total = jnp.where(some, l, 1.0)
    o[...] = (acc * over(1.0 / total, acc.shape)).astype(o.dtype)
    lse[...] = jnp.where(some, (m + jnp.log2(total)) * (1 / LOG2E), -jnp.inf)
