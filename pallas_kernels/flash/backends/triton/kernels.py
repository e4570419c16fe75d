"""The kernels, in Triton. Imported only where Triton is.

    kernel          a program for each             loops over
    forward         B, N, tile of queries          tiles of keys
    dq              B, N, tile of queries          tiles of keys
    dkv             B, K, tile of keys             query heads of the group, tiles of queries

q, o lie `[B, T, N, .]`, k, v `[B, S, K, .]`, lse and delta `[B, N, T]`. Each loop goes through the list of a row of tiles (of a column, in dkv): first those
where all is allowed, without mask arithmetic, then those where some is. Sums stay in the program and their order is fixed. C is `Constants`.
"""

import triton
import triton.language as tl

from pallas_kernels.flash.backends.triton.tile import LN2, LOG2E, allowed, flow_back, keep, load_rows, logits, make_spot, product, store_rows, whole


@triton.jit
def place_of(b, n, row, rows, C: tl.constexpr):
    """Of a row of tiles among all that the lists have."""
    at = row.to(tl.int64)
    if C.listed[1]:
        at += n * rows
    if C.listed[0]:
        if C.listed[1]:
            at += b * C.N * rows
        else:
            at += b * rows
    return at


@triton.jit
def listed(reads, b, n, row, rows, columns, C: tl.constexpr):
    """The list of a row of tiles, how many of them are full, and how many there are."""
    at = place_of(b, n, row, rows, C)
    full = tl.load(reads[1] + at)
    return reads[0] + at * columns, full, full + tl.load(reads[2] + at)


@triton.jit
def load_queries(q, do, lse, delta, b, n, places, T, C: tl.constexpr):
    """Rows of q and of dO, their lse and delta; beyond the end they have no part in anything."""
    queries = load_rows(q + (b * T * C.N + n) * C.H, places, T, C.N * C.H, C.H, C.HP, C.ragged[0])
    above = load_rows(do + (b * T * C.N + n) * C.V, places, T, C.N * C.V, C.V, C.VP, C.ragged[0])
    row_lse = tl.load(lse + (b * C.N + n) * T + places, mask=places < T, other=float("inf"))
    row_delta = tl.load(delta + (b * C.N + n) * T + places, mask=places < T, other=0.0)
    return queries, above, row_lse, row_delta


@triton.jit
def attend(acc, l, m, column, queries, q_index, k, v, reads, b, n, T, S, C: tl.constexpr, MASKED: tl.constexpr):
    """One step of the running softmax: m the largest score in base 2, l the sum, acc the weighted values."""
    places = column * C.BK + tl.arange(0, C.BK)
    keys = load_rows(k, places, S, C.K * C.H, C.H, C.HP, C.ragged[1] and MASKED)
    values = load_rows(v, places, S, C.K * C.V, C.V, C.VP, C.ragged[1] and MASKED)
    spot = make_spot(b, n, q_index[:, None], places[None, :], reads, T, S, C, MASKED)
    s = logits(product(queries, tl.trans(keys)), reads, spot, C)
    if MASKED:
        s = tl.where(allowed(reads, spot, C), s, float("-inf"))
    highest = tl.maximum(m, tl.max(s, 1))
    base = highest
    if MASKED:  # a row that has seen nothing yet has no highest score: any number will do
        base = tl.where(highest == float("-inf"), 0.0, highest)
    p = tl.exp2(s - base[:, None])
    shrink = tl.exp2(m - base)
    l = l * shrink + tl.sum(p, 1)
    if C.dropout is not None:
        p = tl.where(keep(reads, spot, C), p * C.dropout.factor, 0.0)
    acc = acc * shrink[:, None] + product(p.to(values.dtype), values)
    return acc, l, highest


@triton.jit
def attention_forward(q, k, v, reads, sinks, T, S, o, lse, C: tl.constexpr, SINKS: tl.constexpr):
    """s = score(scale * q.k^T)    o = softmax(s).v    lse = log sum exp s"""
    T, S = whole(T, C.steps[0]), whole(S, C.steps[1])
    rows, columns = tl.cdiv(T, C.BQ), tl.cdiv(S, C.BK)
    row = rows - 1 - tl.program_id(0) % rows  # under a causal mask the last take longest, and go first
    b = (tl.program_id(0) // rows // C.N).to(tl.int64)
    n = tl.program_id(0) // rows % C.N
    q_index = row * C.BQ + tl.arange(0, C.BQ)
    queries = load_rows(q + (b * T * C.N + n) * C.H, q_index, T, C.N * C.H, C.H, C.HP, C.ragged[0])
    k += (b * S * C.K + n // C.G) * C.H
    v += (b * S * C.K + n // C.G) * C.V
    acc = tl.zeros((C.BQ, C.VP), tl.float32)
    l = tl.zeros((C.BQ,), tl.float32)
    m = tl.full((C.BQ,), float("-inf"), tl.float32)
    if SINKS:
        l += 1.0
        m = tl.zeros((C.BQ,), tl.float32) + tl.load(sinks + n) * LOG2E
    order, full, count = listed(reads, b, n, row, rows, columns, C)
    for step in range(0, full):
        column = tl.load(order + step)
        acc, l, m = attend(acc, l, m, column, queries, q_index, k, v, reads, b, n, T, S, C, False)
    if len(C.masks) > 0:
        for step in range(full, count):
            column = tl.load(order + step)
            acc, l, m = attend(acc, l, m, column, queries, q_index, k, v, reads, b, n, T, S, C, True)
    total = tl.where(l > 0, l, 1.0)
    store_rows(o + (b * T * C.N + n) * C.V, q_index, T, acc / total[:, None], C.N * C.V, C.V, C.VP)
    tl.store(lse + (b * C.N + n) * T + q_index, tl.where(l > 0, (m + tl.log2(total)) * LN2, float("-inf")), mask=q_index < T)


@triton.jit
def upright(column, queries, above, row_lse, row_delta, q_index, k, v, reads, b, n, T, S, C: tl.constexpr, MASKED: tl.constexpr, WANTED: tl.constexpr):
    """dS and the gradient that is wanted, `[queries, keys]`, and the keys."""
    places = column * C.BK + tl.arange(0, C.BK)
    keys = load_rows(k, places, S, C.K * C.H, C.H, C.HP, C.ragged[1] and MASKED)
    values = load_rows(v, places, S, C.K * C.V, C.V, C.VP, C.ragged[1] and MASKED)
    spot = make_spot(b, n, q_index[:, None], places[None, :], reads, T, S, C, MASKED)
    s, dp = product(queries, tl.trans(keys)), product(above, tl.trans(values))
    ds, _p, wanted = flow_back(s, dp, row_lse[:, None], row_delta[:, None], reads, spot, C, MASKED, WANTED)
    return ds, wanted, keys


@triton.jit
def attention_dq(q, k, v, do, lse, delta, reads, T, S, dq, C: tl.constexpr):
    """dQ = scale * dS.K"""
    T, S = whole(T, C.steps[0]), whole(S, C.steps[1])
    rows, columns = tl.cdiv(T, C.BQ), tl.cdiv(S, C.BK)
    row = rows - 1 - tl.program_id(0) % rows
    b = (tl.program_id(0) // rows // C.N).to(tl.int64)
    n = tl.program_id(0) // rows % C.N
    q_index = row * C.BQ + tl.arange(0, C.BQ)
    queries, above, row_lse, row_delta = load_queries(q, do, lse, delta, b, n, q_index, T, C)
    k += (b * S * C.K + n // C.G) * C.H
    v += (b * S * C.K + n // C.G) * C.V
    acc = tl.zeros((C.BQ, C.HP), tl.float32)
    order, full, count = listed(reads, b, n, row, rows, columns, C)
    for step in range(0, full):
        column = tl.load(order + step)
        ds, _wanted, keys = upright(column, queries, above, row_lse, row_delta, q_index, k, v, reads, b, n, T, S, C, False, -1)
        acc += product(ds.to(keys.dtype), keys)
    if len(C.masks) > 0:
        for step in range(full, count):
            column = tl.load(order + step)
            ds, _wanted, keys = upright(column, queries, above, row_lse, row_delta, q_index, k, v, reads, b, n, T, S, C, True, -1)
            acc += product(ds.to(keys.dtype), keys)
    store_rows(dq + (b * T * C.N + n) * C.H, q_index, T, acc * C.scale, C.N * C.H, C.H, C.HP)


@triton.jit
def on_its_side(row, keys, values, k_index, q, do, lse, delta, reads, b, n, T, S, C: tl.constexpr, MASKED: tl.constexpr, WANTED: tl.constexpr):
    """dS, dropout(P) and the gradient that is wanted, `[keys, queries]`, the queries and dO."""
    places = row * C.BQ + tl.arange(0, C.BQ)
    queries, above, row_lse, row_delta = load_queries(q, do, lse, delta, b, n, places, T, C)
    spot = make_spot(b, n, places[None, :], k_index[:, None], reads, T, S, C, MASKED)
    s, dp = product(keys, tl.trans(queries)), product(values, tl.trans(above))
    ds, p, wanted = flow_back(s, dp, row_lse[None, :], row_delta[None, :], reads, spot, C, MASKED, WANTED)
    return ds, p, wanted, queries, above


@triton.jit
def attention_dkv(q, k, v, do, lse, delta, reads, T, S, dk, dv, C: tl.constexpr):
    """dK = scale * dS^T.Q    dV = dropout(P)^T.dO"""
    T, S = whole(T, C.steps[0]), whole(S, C.steps[1])
    rows, columns = tl.cdiv(T, C.BQ), tl.cdiv(S, C.BK)
    column = tl.program_id(0) % columns
    b = (tl.program_id(0) // columns // C.K).to(tl.int64)
    group = tl.program_id(0) // columns % C.K
    k_index = column * C.BK + tl.arange(0, C.BK)
    keys = load_rows(k + (b * S * C.K + group) * C.H, k_index, S, C.K * C.H, C.H, C.HP, C.ragged[1])
    values = load_rows(v + (b * S * C.K + group) * C.V, k_index, S, C.K * C.V, C.V, C.VP, C.ragged[1])
    sum_k = tl.zeros((C.BK, C.HP), tl.float32)
    sum_v = tl.zeros((C.BK, C.VP), tl.float32)
    for n in range(group * C.G, group * C.G + C.G):
        order, full, count = listed(reads, b, n, column, columns, rows, C)
        for step in range(0, full):
            row = tl.load(order + step)
            ds, p, _wanted, queries, above = on_its_side(row, keys, values, k_index, q, do, lse, delta, reads, b, n, T, S, C, False, -1)
            sum_v += product(p.to(above.dtype), above)
            sum_k += product(ds.to(queries.dtype), queries)
        if len(C.masks) > 0:
            for step in range(full, count):
                row = tl.load(order + step)
                ds, p, _wanted, queries, above = on_its_side(row, keys, values, k_index, q, do, lse, delta, reads, b, n, T, S, C, True, -1)
                sum_v += product(p.to(above.dtype), above)
                sum_k += product(ds.to(queries.dtype), queries)
    store_rows(dk + (b * S * C.K + group) * C.H, k_index, S, sum_k * C.scale, C.K * C.H, C.H, C.HP)
    store_rows(dv + (b * S * C.K + group) * C.V, k_index, S, sum_v, C.K * C.V, C.V, C.VP)
