"""Scores: what becomes of s = scale * q.k before the softmax.

A score is a frozen pytree: its arrays are leaves and have gradients, all else is compared by value. Several are given as a tuple and applied in order.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.flash.functions import Compared, Index, TileFunction, tile_function
from pallas_kernels.flash.masks import _four_axes
from pallas_kernels.flash.tables import lookup

__all__ = ["Score", "alibi", "bias", "from_function", "relative_bias", "softcap"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Score(Compared):
    """A change of the scores. Make your own with `from_function`."""

    function: TileFunction

    def __call__(self, s: Any, i: Index) -> Any:
        """The changed scores of a tile; the score's arrays must be shaped to broadcast against it."""
        # In numpy, int32 * 0.5 would be float64, and so would s be under x64.
        i, named = jax.tree.map(jnp.asarray, (i, self.function.named))
        named = {name: a.astype(s.dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a for name, a in named.items()}
        return self.function.fn(s, i, **named)

    def __repr__(self) -> str:
        return repr(self.function)


def from_function(fn: Callable[..., Any], **arrays: tuple[Any, str]) -> Score:
    """A score from an elementwise function `fn(s, i, **arrays)`.

    Args:
        fn: the new score, float32 (float64 where the inputs are). `i` is an `Index`; `i` and the arrays arrive shaped to broadcast against `s`.
            It must be finite at every pair of positions in range, allowed or not.
        arrays: each `(array, axes)`, axes out of "BNTS" in that order, feature axes after. Float arrays have gradients, and arrive in the dtype of s.

    Raises:
        TypeError, ValueError: a malformed pair of array and axes.
    """
    return Score(tile_function(fn, arrays))


def softcap(cap: float) -> Score:
    """cap * tanh(s / cap) (Gemma 2, arXiv:2408.00118, section 2)."""
    if not isinstance(cap, (int, float, np.number)) or not 0 < cap < np.inf:
        raise ValueError(f"softcap: cap: expected a number above 0, received {cap!r}")
    return Score(tile_function(partial(_softcap, cap=float(cap)), {}))


def alibi(slopes: Any) -> Score:
    """s - slope * abs(q - k), `slopes` `[N]` (Press et al., arXiv:2108.12409, section 3)."""
    return Score(tile_function(_alibi, {"slope": (slopes, "N")}))


def relative_bias(table: Any, bidirectional: bool, max_distance: int) -> Score:
    """s + table[head, bucket(k - q)] with T5's buckets (Raffel et al., arXiv:1910.10683, section 2.1).

    Half of a direction's buckets hold one distance each, the others grow logarithmically up to `max_distance`; all beyond share the last.

    Args:
        table: `[N, buckets]`.
        bidirectional: whether keys after the query have buckets of their own; otherwise they share that of distance 0.
        max_distance: positions.
    """
    if np.ndim(table) != 2:
        raise ValueError(f"relative_bias: table: expected shape [N, buckets], received {np.shape(table)}")
    thresholds = bucket_thresholds(np.shape(table)[1], bidirectional, max_distance)
    return Score(tile_function(partial(_relative_bias, thresholds=thresholds, bidirectional=bool(bidirectional)), {"table": (table, "N")}))


def bias(array: Any) -> Score:
    """s + array, broadcastable to `[B, N, T, S]`."""
    array = array if isinstance(array, (np.ndarray, jax.Array)) else jnp.asarray(array)
    return Score(tile_function(_bias, {"array": (_four_axes(array), "BNTS")}))


def bucket_thresholds(buckets: int, bidirectional: bool, max_distance: int) -> tuple[int, ...]:
    """The distances at which T5's bucket number rises by one: bucket(d) = number of thresholds <= d.

    Computed once on the host from the published float32 formula, so that a tile needs no logarithm.

    Raises:
        ValueError: fewer than two buckets a direction, or a max_distance not beyond the exact ones.
    """
    count = buckets // 2 if bidirectional else buckets
    exact = count // 2
    if max_distance > 2**24:
        raise ValueError(f"relative_bias: max_distance: expected at most 2**24, received {max_distance}")
    if exact < 1 or max_distance <= exact:
        raise ValueError(
            f"relative_bias: expected at least 2 buckets in each direction and max_distance above {max(exact, 1)}, "
            f"received {buckets} buckets, bidirectional={bidirectional}, max_distance={max_distance}"
        )
    distance = np.arange(exact, max_distance + 1)
    ratio = np.log(distance.astype(np.float32) / np.float32(exact)) / np.float32(np.log(max_distance / exact))
    bucket = np.minimum(exact + (ratio * np.float32(count - exact)).astype(np.int32), count - 1)
    first = [int(distance[np.argmax(bucket >= b)]) for b in range(exact, count) if (bucket >= b).any()]
    return tuple(range(1, exact)) + tuple(first)


def _softcap(s: Any, i: Index, cap: float) -> Any:
    return cap * jnp.tanh(s / cap)


def _alibi(s: Any, i: Index, slope: Any) -> Any:
    return s - slope * jnp.abs(i.q - i.k)


def _relative_bias(s: Any, i: Index, table: Any, thresholds: tuple[int, ...], bidirectional: bool) -> Any:
    ahead = i.k - i.q
    distance = jnp.abs(ahead) if bidirectional else jnp.maximum(-ahead, 0)
    bucket = jnp.zeros_like(distance)
    for threshold in thresholds:
        bucket = bucket + (distance >= threshold)
    if bidirectional:
        bucket = bucket + jnp.where(ahead > 0, table.shape[-1] // 2, 0)
    return s + lookup(table, bucket)


def _bias(s: Any, i: Index, array: Any) -> Any:
    return s + array
