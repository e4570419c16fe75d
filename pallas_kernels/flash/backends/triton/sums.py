"""Gradients of the scores' arrays, in Triton: a kernel for each way to lie over T and S. Imported only where Triton is.

    kernel      for an array            a program for each                loops over                  gives
    drows       without S               B, N, tile of queries             tiles of keys               [B, N, T]
    dcolumns    with S, without T       B, N, tile of keys                tiles of queries            [B, N, S]
    dtiles      with both               B|1, N|1, tile of the array       the rest of B and N         [B|1, N|1, T, S]

So nothing is made over T and S but the gradient of an array that is. XLA leaves a kernel out whose gradient nobody wants. WANTED is the number of
the score, C is `Constants`.
"""

import triton
import triton.language as tl

from pallas_kernels.flash.backends.triton.kernels import listed, load_queries, on_its_side, place_of, upright
from pallas_kernels.flash.backends.triton.tile import load_rows, whole


@triton.jit
def attention_drows(q, k, v, do, lse, delta, reads, T, S, out, C: tl.constexpr, WANTED: tl.constexpr):
    T, S = whole(T, C.steps[0]), whole(S, C.steps[1])
    rows, columns = tl.cdiv(T, C.BQ), tl.cdiv(S, C.BK)
    row = tl.program_id(0) % rows
    b = (tl.program_id(0) // rows // C.N).to(tl.int64)
    n = tl.program_id(0) // rows % C.N
    q_index = row * C.BQ + tl.arange(0, C.BQ)
    queries, above, row_lse, row_delta = load_queries(q, do, lse, delta, b, n, q_index, T, C)
    k += (b * S * C.K + n // C.G) * C.H
    v += (b * S * C.K + n // C.G) * C.V
    acc = tl.zeros((C.BQ,), tl.float32)
    order, _full, count = listed(reads, b, n, row, rows, columns, C)
    for step in range(0, count):
        column = tl.load(order + step)
        _ds, wanted, _keys = upright(column, queries, above, row_lse, row_delta, q_index, k, v, reads, b, n, T, S, C, True, WANTED)
        acc += tl.sum(wanted, 1)
    tl.store(out + (b * C.N + n) * T + q_index, acc, mask=q_index < T)


@triton.jit
def attention_dcolumns(q, k, v, do, lse, delta, reads, T, S, out, C: tl.constexpr, WANTED: tl.constexpr):
    T, S = whole(T, C.steps[0]), whole(S, C.steps[1])
    rows, columns = tl.cdiv(T, C.BQ), tl.cdiv(S, C.BK)
    column = tl.program_id(0) % columns
    b = (tl.program_id(0) // columns // C.N).to(tl.int64)
    n = tl.program_id(0) // columns % C.N
    k_index = column * C.BK + tl.arange(0, C.BK)
    keys = load_rows(k + (b * S * C.K + n // C.G) * C.H, k_index, S, C.K * C.H, C.H, C.HP, C.ragged[1])
    values = load_rows(v + (b * S * C.K + n // C.G) * C.V, k_index, S, C.K * C.V, C.V, C.VP, C.ragged[1])
    acc = tl.zeros((C.BK,), tl.float32)
    order, _full, count = listed(reads, b, n, column, columns, rows, C)
    for step in range(0, count):
        row = tl.load(order + step)
        _ds, _p, wanted, _queries, _above = on_its_side(row, keys, values, k_index, q, do, lse, delta, reads, b, n, T, S, C, True, WANTED)
        acc += tl.sum(wanted, 1)
    tl.store(out + (b * C.N + n) * S + k_index, acc, mask=k_index < S)


@triton.jit
def attention_dtiles(q, k, v, do, lse, delta, reads, T, S, B, out, C: tl.constexpr, WANTED: tl.constexpr, AXES: tl.constexpr):
    """`reads` has no list but each tile's verdict: 0 where all is allowed, 1 where some is, 2 where nothing is. AXES: whether the array varies over B and N."""
    T, S = whole(T, C.steps[0]), whole(S, C.steps[1])
    rows, columns = tl.cdiv(T, C.BQ), tl.cdiv(S, C.BK)
    column = tl.program_id(0) % columns
    row = tl.program_id(0) // columns % rows
    place = tl.program_id(0) // columns // rows
    q_index = row * C.BQ + tl.arange(0, C.BQ)
    acc = tl.zeros((C.BQ, C.BK), tl.float32)
    first_b, first_n, batches, heads = place.to(tl.int64) * 0, place * 0, B, C.N
    if AXES[0]:
        first_b = place.to(tl.int64)
        batches = 1
    if AXES[1]:
        first_b, first_n = first_b // C.N, place % C.N
        heads = 1
    for other in range(0, batches * heads):
        b, n = first_b + other // heads, first_n + other % heads
        if tl.load(reads[0] + place_of(b, n, row, rows, C) * columns + column) < 2:
            queries, above, row_lse, row_delta = load_queries(q, do, lse, delta, b, n, q_index, T, C)
            k_head = k + (b * S * C.K + n // C.G) * C.H
            v_head = v + (b * S * C.K + n // C.G) * C.V
            _ds, wanted, _keys = upright(column, queries, above, row_lse, row_delta, q_index, k_head, v_head, reads, b, n, T, S, C, True, WANTED)
            acc += wanted
    k_index = column * C.BK + tl.arange(0, C.BK)
    at = (place.to(tl.int64) * T + q_index[:, None]) * S + k_index[None, :]
    tl.store(out + at, acc, mask=(q_index < T)[:, None] & (k_index < S)[None, :])
