"""A chunk of heads with few enough keys that its tiles can be unrolled."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.flash.backends.blockwise.plan import Chunk, deposit
from pallas_kernels.flash.backends.blockwise.tile import five_axes, gradients, normalised, share, sink_rows, weighted, weights
from pallas_kernels.flash.lists import reach
from pallas_kernels.flash.masks import Verdict
from pallas_kernels.flash.request import float_arrays
from pallas_kernels.flash.tiles import KEYS, ROWS


def forward(chunk: Chunk, q: jax.Array, k: jax.Array, v: jax.Array) -> Any:
    """o `[R, G, T, Hv]` and lse `[R, G, T]`: for each row of tiles one softmax over all keys in reach."""
    R, G, T, _ = q.shape
    (bq, bk), S = chunk.tile, k.shape[1]
    v = jnp.concatenate([v, jnp.ones_like(v[..., :1])], -1)
    os, lses = [], []
    for n, (first, last) in enumerate(reach(chunk.verdict.never)):
        rows = (n * bq, min(bq, T - n * bq))
        # Where there is nothing to see, one masked key gives the row its zeros.
        keys = (first * bk, min(last * bk, S) - first * bk) if last else (0, 1)
        partial = last == 0 or not chunk.verdict.always[..., n, first:last].all()
        operands = share(chunk, rows, keys)
        sinks = sink_rows(operands, R, G, rows[1])
        e, highest = weights(chunk, operands, q[:, :, rows[0] : sum(rows)], k[:, keys[0] : sum(keys)], sinks, partial)
        o = weighted(chunk, operands, e, v[:, keys[0] : sum(keys)], five_axes(operands, R, G, rows[1], keys[1]))
        if sinks is not None:
            o = o.at[..., -1:].add(jnp.exp(sinks - highest))
        o, lse = normalised(o, highest)
        os.append(o.reshape(R, G, rows[1], -1))
        lses.append(lse.reshape(R, G, rows[1]))
    return jnp.concatenate(os, 2), jnp.concatenate(lses, 2)


def backward(chunk: Chunk, q: jax.Array, k: jax.Array, v: jax.Array, *rest: jax.Array) -> Any:
    """dQ `[R, G, H, T]`, dK, dV `[R, S, .]`, and the gradients of the scores' arrays: for each column of tiles all rows that see it."""
    (bq, bk), T, S = chunk.tile, q.shape[2], k.shape[1]
    side = Verdict(*(np.swapaxes(x, -1, -2) for x in chunk.verdict))
    sums = [jnp.zeros(a.shape, rest[1].dtype) for a in float_arrays(chunk.operands.scores)]
    dq: Any = None
    dks, dvs = [], []
    for n, (first, last) in enumerate(reach(side.never)):
        keys = (n * bk, min(bk, S - n * bk))
        rows = (first * bq, min(last * bq, T) - first * bq)
        if last == 0:
            dks.append(jnp.zeros_like(k[:, : keys[1]], rest[1].dtype))
            dvs.append(jnp.zeros_like(v[:, : keys[1]], rest[1].dtype))
            continue
        partial = not side.always[..., n, first:last].all()
        mine = tuple(a[:, :, rows[0] : sum(rows)] for a in (q, *rest))
        columns = slice(keys[0], sum(keys))
        (dq_n, dk, dv), arrays = gradients(chunk, share(chunk, rows, keys), k[:, columns], v[:, columns], mine, partial)
        if dq is None:
            dq = dq_n if rows[1] == T else jnp.zeros((*dq_n.shape[:-1], T), dq_n.dtype).at[..., rows[0] : sum(rows)].set(dq_n)
        else:
            dq = dq.at[..., rows[0] : sum(rows)].add(dq_n)
        sums = [deposit(whole, part, {ROWS: rows[0], KEYS: keys[0]}) for whole, part in zip(sums, arrays)]
        dks.append(dk)
        dvs.append(dv)
    if dq is None:
        dq = jnp.zeros_like(jnp.swapaxes(q, 2, 3), rest[1].dtype)
    return (dq, jnp.concatenate(dks, 1), jnp.concatenate(dvs, 1)), sums
