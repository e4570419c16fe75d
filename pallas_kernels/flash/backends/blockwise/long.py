"""A chunk of heads of any length: loops over the tiles that are worth a visit."""

from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.flash.backends.blockwise.plan import Chunk, deposit
from pallas_kernels.flash.backends.blockwise.tile import five_axes, gradients, normalised, share, sink_rows, weighted, weights
from pallas_kernels.flash.lists import Visits, together, visits
from pallas_kernels.flash.masks import Verdict
from pallas_kernels.flash.request import accumulator, float_arrays
from pallas_kernels.flash.tiles import KEYS, ROWS


def forward(chunk: Chunk, q: jax.Array, k: jax.Array, v: jax.Array) -> Any:
    """o `[R, G, T, Hv]` and lse `[R, G, T]`: for each row of tiles a running softmax over those that it visits."""
    R, G, T, _ = q.shape
    bq, bk = chunk.tile
    lists, acc = _lists(chunk.verdict), accumulator(q.dtype)
    v = jnp.concatenate([v, jnp.ones_like(v[..., :1])], -1)

    def row(n: Any, state: Any) -> Any:
        queries = _at(q, n * bq, bq, 2)

        def visit(m: Any, running: Any, partial: bool) -> Any:
            o, before = running
            start = lists.order[n, m] * bk
            operands = share(chunk, (n * bq, bq), (start, bk))
            e, highest = weights(chunk, operands, queries, _at(k, start, bk, 1), before, partial)
            o = o * jnp.exp(before - jnp.where(highest == -jnp.inf, 0, highest))
            return o + weighted(chunk, operands, e, _at(v, start, bk, 1), five_axes(operands, R, G, bq, bk)), highest

        sinks = sink_rows(share(chunk, (n * bq, bq), (0, bk)), R, G, bq)
        o = jnp.zeros((R, G * bq, v.shape[-1]), acc)
        running = (o, jnp.full((R, G * bq, 1), -jnp.inf, acc)) if sinks is None else (o.at[..., -1].set(1), sinks.astype(acc))
        o, lse = normalised(*_each(lists, n, visit, running))
        os = jax.lax.dynamic_update_slice_in_dim(state[0], o.reshape(R, G, bq, -1), n * bq, 2)
        return os, jax.lax.dynamic_update_slice_in_dim(state[1], lse.reshape(R, G, bq), n * bq, 2)

    return jax.lax.fori_loop(0, T // bq, row, (jnp.zeros((R, G, T, v.shape[-1] - 1), acc), jnp.zeros((R, G, T), acc)))


def backward(chunk: Chunk, q: jax.Array, k: jax.Array, v: jax.Array, *rest: jax.Array) -> Any:
    """dQ `[R, G, H, T]`, dK, dV `[R, S, .]`, and the gradients of the scores' arrays: for each column of tiles the rows that visit it."""
    R, G, T, H = q.shape
    (bq, bk), S = chunk.tile, k.shape[1]
    lists, acc = _lists(Verdict(*(jnp.swapaxes(x, -1, -2) for x in chunk.verdict))), accumulator(q.dtype)

    def column(n: Any, state: Any) -> Any:
        dq, dk_all, dv_all, sums = state
        keys, values = _at(k, n * bk, bk, 1), _at(v, n * bk, bk, 1)

        def visit(m: Any, running: Any, partial: bool) -> Any:
            dq, dk, dv, sums = running
            start = lists.order[n, m] * bq
            operands = share(chunk, (start, bq), (n * bk, bk))
            mine = tuple(_at(a, start, bq, 2) for a in (q, *rest))
            (dq_n, dk_n, dv_n), arrays = gradients(chunk, operands, keys, values, mine, partial)
            sums = [deposit(whole, part, {ROWS: start, KEYS: n * bk}) for whole, part in zip(sums, arrays)]
            dq = jax.lax.dynamic_update_slice_in_dim(dq, _at(dq, start, bq, 3) + dq_n, start, 3)
            return dq, dk + dk_n, dv + dv_n, sums

        running = (dq, jnp.zeros((R, bk, H), acc), jnp.zeros((R, bk, v.shape[-1]), acc), sums)
        dq, dk, dv, sums = _each(lists, n, visit, running)
        dk_all = jax.lax.dynamic_update_slice_in_dim(dk_all, dk, n * bk, 1)
        return dq, dk_all, jax.lax.dynamic_update_slice_in_dim(dv_all, dv, n * bk, 1), sums

    sums = [jnp.zeros(a.shape, acc) for a in float_arrays(chunk.operands.scores)]
    state = (jnp.zeros((R, G, H, T), acc), jnp.zeros((R, S, H), acc), jnp.zeros((R, S, v.shape[-1]), acc), sums)
    *results, sums = jax.lax.fori_loop(0, S // bk, column, state)
    return tuple(results), sums


def _lists(verdict: Verdict) -> Visits:
    return jax.tree.map(jnp.asarray, visits(together(verdict)))


def _each(lists: Visits, n: Any, visit: Any, running: Any) -> Any:
    """Visits the n-th list, first the tiles where all is allowed, which need no mask."""
    full, partial = lists.full[n], lists.partial[n]
    running = jax.lax.fori_loop(0, full, lambda m, r: visit(m, r, False), running)
    return jax.lax.fori_loop(full, full + partial, lambda m, r: visit(m, r, True), running)


def _at(a: jax.Array, start: Any, size: int, axis: int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(a, start, size, axis)
