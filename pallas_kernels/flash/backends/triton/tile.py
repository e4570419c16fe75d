"""What happens in a tile, in Triton. Imported only where Triton is.

A tile is `[queries, keys]` or lies on its side, `[keys, queries]`: places and positions of queries and keys come shaped to broadcast against it.

    reads   the arrays of a tile: those of `tiled.Scalars`, positions where given, those of the mask and of the scores, as they lie in memory
    C       `Constants`
"""

import triton
import triton.language as tl

from pallas_kernels.flash.backends.triton.constants import Spot

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
# The interpreter multiplies bfloat16's bits as though they were integers.
WIDEN = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def product(a, b):
    """a.b in float32, of float32 in full."""
    if WIDEN:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def load_rows(start, places, length, STRIDE: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr, RAGGED: tl.constexpr):
    """Rows `[places, PADDED]` of an array whose rows are STRIDE apart: zeros beyond its width, the last row again beyond its length."""
    if RAGGED:
        places = tl.minimum(places, length - 1)
    across = tl.arange(0, PADDED)
    at = start + places.to(tl.int64)[:, None] * STRIDE + across[None, :]
    if WIDTH < PADDED:
        return tl.load(at, mask=(across < WIDTH)[None, :], other=0.0)
    else:
        return tl.load(at)


@triton.jit
def store_rows(start, places, length, value, STRIDE: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    across = tl.arange(0, PADDED)
    at = start + places.to(tl.int64)[:, None] * STRIDE + across[None, :]
    tl.store(at, value.to(start.dtype.element_ty), mask=(places < length)[:, None] & (across < WIDTH)[None, :])


@triton.jit
def whole(length, STEP: tl.constexpr):
    """The same number, of which the compiler knows that it is a multiple of STEP: it then loads several numbers at once."""
    return length // STEP * STEP


@triton.jit
def make_spot(b, n, q_index, k_index, reads, T, S, C: tl.constexpr, MASKED: tl.constexpr):
    """A tile that needs no mask has all of its keys."""
    q, k = q_index, k_index
    if C.ragged[0]:
        q = tl.minimum(q_index, T - 1)
    if C.ragged[1] and MASKED:
        k = tl.minimum(k_index, S - 1)
    spot = Spot(b, n, q, k, q, k, k_index, T, S)
    q_position, k_position = q, k
    if C.positions[0] is not None:
        q_position = value(reads, C.positions[0], spot, C)
    if C.positions[1] is not None:
        k_position = value(reads, C.positions[1], spot, C)
    return Spot(b, n, q, k, q_position, k_position, k_index, T, S)


@triton.jit
def value(reads, READ: tl.constexpr, spot, C: tl.constexpr):
    """The part of an array that a tile reads."""
    at = spot.b * 0
    if READ.axes[0]:
        at = spot.b
    if READ.axes[1]:
        at = at * C.N + spot.n
    if READ.axes[2]:
        at = at * spot.T + spot.q
    if READ.axes[2] and READ.axes[3]:
        return load_tile(reads[READ.number] + at * spot.S, spot, C.ragged[1])
    elif READ.axes[3]:
        return tl.load(reads[READ.number] + at * spot.S + spot.k)
    else:
        return tl.load(reads[READ.number] + at)


@triton.jit
def load_tile(start, spot, RAGGED: tl.constexpr):
    """Of an array over queries and keys. A mask leaves neighbours neighbours, so that several are loaded at once; places held back do not."""
    if RAGGED:
        return tl.load(start + spot.k_index, mask=(spot.k_index < spot.S) & (spot.q >= 0), other=0)
    else:
        return tl.load(start + spot.k_index)


@triton.jit
def allowed(reads, spot, C: tl.constexpr):
    """The conjunction of masks."""
    ok = spot.k_index == spot.k_index
    for i in tl.static_range(len(C.masks)):
        ok &= allowed_by(C.masks[i], reads, spot, C)
    return ok


@triton.jit
def allowed_by(MASK: tl.constexpr, reads, spot, C: tl.constexpr):
    if MASK[0] == "causal":
        return spot.k_position <= spot.q_position
    elif MASK[0] == "sliding_window":
        return (spot.q_position - spot.k_position <= MASK[1]) & (spot.k_position - spot.q_position <= MASK[2])
    elif MASK[0] == "segments":
        return value(reads, MASK[1], spot, C) == value(reads, MASK[2], spot, C)
    elif MASK[0] == "lengths":
        return spot.k_index < value(reads, MASK[1], spot, C)
    elif MASK[0] == "valid":
        return value(reads, MASK[1], spot, C) != 0
    else:
        tl.static_assert(MASK[0] == "prefix")
        return (spot.k_position <= spot.q_position) | (spot.k_position < value(reads, MASK[1], spot, C))


@triton.jit
def tanh(x):
    """By exp where that loses no digits, by its series to x**9 where x is small."""
    y = x * x
    series = x * (1 + y * (-1 / 3 + y * (2 / 15 + y * (-17 / 315 + y * (62 / 2835)))))
    return tl.where(y < 0.09, series, 1 - 2 / (tl.exp2(x * (2 * LOG2E)) + 1))


@triton.jit
def distance(spot):
    return tl.abs(spot.q_position - spot.k_position).to(tl.float32)


@triton.jit
def scored(s, reads, spot, C: tl.constexpr, COUNT: tl.constexpr):
    """The first COUNT scores."""
    for i in tl.static_range(COUNT):
        s = scored_by(C.scores[i], s, reads, spot, C)
    return s


@triton.jit
def scored_by(SCORE: tl.constexpr, s, reads, spot, C: tl.constexpr):
    if SCORE[0] == "softcap":
        return SCORE[1] * tanh(s / SCORE[1])
    elif SCORE[0] == "alibi":
        return s - value(reads, SCORE[1], spot, C).to(tl.float32) * distance(spot)
    else:
        tl.static_assert(SCORE[0] == "bias")
        return s + value(reads, SCORE[1], spot, C).to(tl.float32)


@triton.jit
def logits(products, reads, spot, C: tl.constexpr):
    """Scores in base 2."""
    if len(C.scores) == 0:
        return products * (C.scale * LOG2E)
    return scored(products * C.scale, reads, spot, C, len(C.scores)) * LOG2E


@triton.jit
def keep(reads, spot, C: tl.constexpr):
    """Where dropout keeps, by the hash of `request.Dropout`."""
    batch = tl.load(reads[3] + spot.b).to(tl.uint32)
    head = tl.load(reads[4] + spot.n).to(tl.uint32)
    seed = tl.load(reads[5]).to(tl.uint32)
    x = seed ^ (batch * C.dropout.heads + head) * 0xC2B2AE35
    x = mix(x ^ spot.q_position.to(tl.uint32) * 0x9E3779B1)
    x = mix(x ^ spot.k_position.to(tl.uint32) * 0x85EBCA77)
    return x >= tl.full((), C.dropout.least, tl.uint32)


@triton.jit
def mix(x):
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def flow_back(products, dp, lse, delta, reads, spot, C: tl.constexpr, MASKED: tl.constexpr, WANTED: tl.constexpr):
    """dS, dropout(P) and the gradient of the array of the score numbered WANTED (dS itself where there is none), each as large as the tile.

        p = exp(score(s) - lse)    dscore = p * (dropout(dp) - delta)

    Args:
        lse: in base 2, +inf where nothing is allowed.
    """
    p = tl.exp2(logits(products, reads, spot, C) - lse)
    if MASKED:
        p = tl.where(allowed(reads, spot, C), p, 0.0)
    kept = p
    if C.dropout is not None:
        keeps = keep(reads, spot, C)
        kept = tl.where(keeps, p * C.dropout.factor, 0.0)
        dp = tl.where(keeps, dp * C.dropout.factor, 0.0)
    ds = p * (dp - delta)
    wanted = ds
    for i in tl.static_range(len(C.scores)):
        if len(C.scores) - 1 - i == WANTED:
            wanted = by_array(C.scores[len(C.scores) - 1 - i], ds, spot)
        ds = by_score(C.scores[len(C.scores) - 1 - i], ds, products * C.scale, reads, spot, C, len(C.scores) - 1 - i)
    return ds, kept, wanted


@triton.jit
def by_array(SCORE: tl.constexpr, ds, spot):
    """From the gradient of what a score gives to that of its array."""
    if SCORE[0] == "alibi":
        return -ds * distance(spot)
    else:
        return ds


@triton.jit
def by_score(SCORE: tl.constexpr, ds, s, reads, spot, C: tl.constexpr, BEFORE: tl.constexpr):
    """From the gradient of what a score gives to that of what it is given: s after the BEFORE scores that come first."""
    if SCORE[0] == "softcap":
        t = tanh(scored(s, reads, spot, C, BEFORE) / SCORE[1])
        return ds * (1 - t * t)
    else:
        return ds
