"""Published kinds of attention, each in at most ten lines of the public API: use them, or copy one and change it.

    attention(q, k, v, **gallery.kerple(r1, r2))

Each returns the options that `attention` takes: a mask, a score, sinks, a scale. Masks combine by `&`, `|` and `~`, several scores are a tuple, and so two of
these make a third. i and j below are the positions of a query and of a key. Learned arrays are float32 and have gradients; Python numbers are sizes.
Above each is the function of a tile's elements that it needs, if any. Numbers are bound to it by `partial`, so that the same variant made twice compiles once.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import lookup, masks, scores

__all__ = [
    "alibi", "fire", "forgetting", "gemma_2", "gpt_oss", "kerple", "longnet", "neighborhood",
    "packed", "prefix_lm", "sparse_transformer", "streaming_llm", "swin", "t5", "xlnet_segments",
]  # fmt: skip

Options = dict[str, Any]


def packed(ids: Any) -> Options:
    """Documents packed into one row do not see each other: causal within equal `ids`, integers `[B, T]`.

    Krell et al., arXiv:2107.02027, section 3.2.2, where attention is bidirectional: that is `masks.segments(ids)` alone.
    """
    return {"mask": masks.causal() & masks.segments(ids)}


def prefix_lm(lengths: Any) -> Options:
    """Bidirectional over the first `lengths` `[B]` tokens, the input, and causal after (Raffel et al., arXiv:1910.10683, section 3.2.1)."""
    return {"mask": masks.prefix(lengths)}


def sparse_transformer(stride: int) -> Options:
    """The query's own key, the `stride` before it, and every one that is a multiple of `stride` away.

    Child et al., arXiv:1904.10509, section 4.3: the strided pattern, both of its parts in one head (section 5.1).
    """
    return {"mask": masks.causal() & (masks.sliding_window(stride) | masks.dilated(stride))}


def _selected(i: Any, segment: int, rate: int) -> Any:
    q_selected, k_selected = (p % segment % rate == i.head % rate for p in (i.q, i.k))
    return (i.q // segment == i.k // segment) & q_selected & k_selected


def longnet(segment: int, rate: int) -> Options:
    """In each segment, every `rate`-th token sees every `rate`-th, head h from token h mod `rate` on; the other rows are 0, and their lse is -inf.

    Dilated attention (Ding et al., arXiv:2307.02486, section 2), which adds up several, weighted by a softmax over their lse; `& causal()` in a decoder.
    """
    return {"mask": masks.from_function(partial(_selected, segment=segment, rate=rate))}


def streaming_llm(sinks: int, window: int) -> Options:
    """The first `sinks` tokens and the last `window`, the query's own among them (Xiao et al., arXiv:2309.17453, section 3.2)."""
    return {"mask": masks.causal() & (masks.sliding_window(window - 1) | masks.lengths([sinks]))}


def _nearest(i: Any, length: int, size: int) -> Any:
    first = jnp.clip(i.q - size // 2, 0, length - size)
    return (i.k >= first) & (i.k < first + size)


def _reach(q_low: Any, q_high: Any, size: int) -> Any:
    return q_low - size + 1, q_high + size - 1


def neighborhood(length: int, size: int) -> Options:
    """The `size` (odd) keys nearest to the query: at the ends the window is shifted, not cut (Hassani et al., arXiv:2204.07143, section 3; here 1-D)."""
    return {"mask": masks.from_function(partial(_nearest, length=length, size=size), bounds=partial(_reach, size=size))}


def gemma_2(cap: float = 50.0, window: int = 4096) -> Options:
    """Scores capped by cap * tanh(s / cap), and in every other layer a window (Gemma Team, arXiv:2408.00118, section 2)."""
    return {"score": scores.softcap(cap), "mask": masks.sliding_window(window - 1)}


def gpt_oss(sinks: Any, window: int = 128) -> Options:
    """One learned logit per head, `sinks` `[N]`, in the softmax's denominator, and in every other layer a window (OpenAI, arXiv:2508.10925, section 2)."""
    return {"sinks": sinks, "mask": masks.sliding_window(window - 1)}


def alibi(num_heads: int) -> Options:
    """s - slope * (i - j), the slopes 2**(-8 / N), 2**(-16 / N), ..., 2**-8 of the N heads (Press et al., arXiv:2108.12409, section 3).

    The authors' code has others where N is no power of two: those are in `transformer_jax.layers.Alibi`.
    """
    slopes = 2.0 ** (-8 / num_heads * np.arange(1, num_heads + 1))
    return {"score": scores.alibi(jnp.asarray(slopes, jnp.float32)), "mask": masks.causal()}


def t5(table: Any, bidirectional: bool, max_distance: int = 128) -> Options:
    """s + table[head, bucket(j - i)], `table` `[N, buckets]` (Raffel et al., arXiv:1910.10683, section 2.1, in whose code products are not scaled)."""
    score = scores.relative_bias(table, bidirectional, max_distance)
    return {"score": score, "scale": 1.0, "mask": None if bidirectional else masks.causal()}


def _log_kernel(s: Any, i: Any, r1: Any, r2: Any) -> Any:
    return s - r1 * jnp.log1p(r2 * jnp.abs(i.q - i.k))


def kerple(r1: Any, r2: Any) -> Options:
    """s - r1 * log(1 + r2 * |i - j|), `r1` and `r2` `[N]` learned and above 0: the logarithmic kernel (Chi et al., arXiv:2205.09921)."""
    return {"score": scores.from_function(_log_kernel, r1=(r1, "N"), r2=(r2, "N")), "mask": masks.causal()}


def _interpolated(s: Any, i: Any, c: Any, threshold: Any, w: Any, b: Any, u: Any) -> Any:
    x = jnp.log1p(jnp.abs(c * (i.q - i.k))) / jnp.log1p(jnp.abs(c * jnp.maximum(i.q, threshold)))
    return s + sum(u[..., n] * jax.nn.relu(w[..., n] * x + b[..., n]) for n in range(w.shape[-1]))


def fire(c: Any, threshold: Any, w: Any, b: Any, u: Any) -> Options:
    """s + u.relu(w * x + b), x = psi(i - j) / psi(max(i, threshold)), psi(d) = log(1 + c * d): an MLP of `w`, `b` `[F]` and `u` `[N, F]`, in the tile.

    Li et al., arXiv:2310.04418. `c` and `threshold` are scalars above 0, learned too.
    """
    shared = {"c": (c, ""), "threshold": (threshold, ""), "w": (w, ""), "b": (b, "")}
    return {"score": scores.from_function(_interpolated, u=(u, "N"), **shared), "mask": masks.causal()}


def _forgotten(s: Any, i: Any, until_q: Any, until_k: Any) -> Any:
    return s + (until_q - until_k)


def forgetting(log_gates: Any, ids: Any) -> Options:
    """s + the sum of `log_gates` `[B, N, T]` over (j, i], a decay learned from data, per head and token, here within packed documents `ids` `[B, T]`.

    Lin et al., arXiv:2503.02130. Gates are a sigmoid of the layer's input.
    """
    total = jnp.cumsum(log_gates, -1)
    return {"score": scores.from_function(_forgotten, until_q=(total, "BNT"), until_k=(total, "BNS")), **packed(ids)}


def _by_segment(s: Any, i: Any, same: Any, other: Any, q_ids: Any, kv_ids: Any) -> Any:
    return s + jnp.where(q_ids == kv_ids, same, other)


def xlnet_segments(q: jax.Array, offset: Any, encodings: Any, ids: Any) -> Options:
    """s + scale * (q_i + offset).encoding, one for pairs within a segment and one for others (Yang et al., arXiv:1906.08237, section 2.5).

    `q` `[B, T, N, H]`, `offset` `[N, H]`, `encodings` `[2, N, H]`, `ids` `[B, T]`.
    """
    same, other = q.shape[-1] ** -0.5 * jnp.einsum("btnh,cnh->cbnt", q + offset, encodings)
    return {"score": scores.from_function(_by_segment, same=(same, "BNT"), other=(other, "BNT"), q_ids=(ids, "BT"), kv_ids=(ids, "BS"))}


def _displaced(s: Any, i: Any, table: Any, side: int, width: int) -> Any:
    down, right = i.q // width - i.k // width, i.q % width - i.k % width
    return s + lookup(table, (down + side - 1) * (2 * side - 1) + right + side - 1)


def swin(table: Any, side: int, height: int, width: int) -> Options:
    """`side` x `side` windows of pixels, s + table[head, displacement], `table` `[N, (2 * side - 1)**2]` (Liu et al., arXiv:2103.14030, section 3.2, eq. 4)."""
    row, column = np.divmod(np.arange(height * width), width)
    score = scores.from_function(partial(_displaced, side=side, width=width), table=(table, "N"))
    return {"score": score, "mask": masks.segments((row // side * width + column // side)[None])}
