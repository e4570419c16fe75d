"""Forward: for each tile of queries, a running softmax over the tiles of keys that it visits.

    grid        (B, N, query tiles, visits)     the last in order, the rest in any
    VMEM        q, o: one tile for all its visits; k, v: the tile visited; m, l `[bq, 1]`, acc `[bq, Hv]`: the softmax so far, float32
    SMEM        the lists of tiles

    s = score(scale * q.k^T)    m' = max(m, rowmax s)    p = exp(s - m')    l' = l * exp(m - m') + rowsum p    acc' = acc * exp(m - m') + dropout(p).v
    o = acc / l    lse = m + log l
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels.flash.backends.tpu.launch import At, Launch
from pallas_kernels.flash.backends.tpu.rules import RULES
from pallas_kernels.flash.backends.tpu.tile import inside, product
from pallas_kernels.flash.tables import replayed
from pallas_kernels.flash.tiled import Scalars
from pallas_kernels.flash.tiles import Operands, kept, scored


def forward(launch: Launch, q: jax.Array, k: jax.Array, v: jax.Array, sinks: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """o `[B, N, T, Hv]` in q's dtype and lse `[B, N, T]`, from q `[B, N, T, H]`, k `[B, K, S, H]`, v `[B, K, S, Hv]`."""
    lists, most = launch.lists()
    find = launch.found(lists, launch.counts[0])
    bq, H, Hv = launch.tile[0], q.shape[-1], v.shape[-1]

    def where(scalars: Scalars, batch: Any, head: Any, row: Any, step: Any) -> At:
        return At(batch, head, row, find(scalars, batch, head, row, step)[0])

    inputs = [(q, launch.queries(where, H)), (k, launch.keys(where, H)), (v, launch.keys(where, Hv))]
    if sinks is not None:
        inputs.append((sinks.astype(jnp.float32).reshape(-1, 1, 1), pl.BlockSpec((None, 1, 1), lambda *ids: (ids[1], 0, 0))))
    grid = (launch.B, launch.N, launch.counts[0], most)
    outputs = [((*q.shape[:3], Hv), q.dtype, launch.queries(where, Hv)), ((*q.shape[:2], 1, launch.T), jnp.float32, launch.query_scalars(where))]
    body = partial(attention_forward, launch, find)
    o, lse = launch.run(body, grid, 3, lists, inputs, outputs, where, scratch=[(bq, 1), (bq, 1), (bq, Hv)])
    return o, lse[:, :, 0]


def attention_forward(launch: Launch, find: Any, scalars: Scalars, inputs: Any, leaves: Any, outputs: Any, scratch: Any) -> None:
    (q, k, v, *sinks), (o, lse), (m, l, acc) = inputs, outputs, scratch
    batch, head, row, step = (pl.program_id(axis) for axis in range(4))
    column, full, count = find(scalars, batch, head, row, step)
    at = At(batch, head, row, column)

    @pl.when(step == 0)
    def _start() -> None:
        m[...] = jnp.broadcast_to(sinks[0][...], m.shape) if sinks else jnp.full(m.shape, -jnp.inf, m.dtype)
        l[...] = jnp.full(l.shape, 1.0 if sinks else 0.0, l.dtype)
        acc[...] = jnp.zeros(acc.shape, acc.dtype)

    def visit(partial: bool) -> None:
        keys, values = (inside(launch, ref[...], column, 1) if partial else ref[...] for ref in (k, v))
        s = product(inside(launch, q[...], row, 0), keys, (1, 1)) * launch.request.scale
        before = m[...]

        def weights(operands: Operands, s: Any, before: Any) -> Any:
            s = scored(operands, s, partial)
            highest = jnp.maximum(before, s.max(1, keepdims=True))
            # A row that has seen nothing yet has no highest score: any number will do.
            base = jnp.where(highest == -jnp.inf, 0, highest)
            p = jnp.exp(s - base)
            return p.sum(1, keepdims=True), *kept(operands, launch.dropout(scalars), p), highest, jnp.exp(before - base)

        total, p, highest, shrink = replayed(weights, RULES)(launch.operands(scalars, leaves, at), s, before)
        l[...] = l[...] * shrink + total
        acc[...] = acc[...] * shrink + product(p.astype(values.dtype), values, (1, 0))
        m[...] = highest

    pl.when(step < full)(lambda: visit(False))
    if launch.mask is not None:
        pl.when((step >= full) & (step < count))(lambda: visit(True))

    @pl.when(step == pl.num_programs(3) - 1)
    def _finish() -> None:
        some = l[...] > 0
        total = jnp.where(some, l[...], 1)
        o[...] = (acc[...] / total).astype(o.dtype)
        lse[...] = jnp.where(some, m[...] + jnp.log(total), -jnp.inf).T
