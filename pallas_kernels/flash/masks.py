"""Masks: what may be attended to.

A mask is a frozen pytree: its arrays are leaves, all else is compared by value. `&`, `|` and `~` combine masks. With queries down and keys across:

    causal()          sliding_window(1)   prefix([2])       segments([0, 0, 1, 1])
    1 0 0 0           1 0 0 0             1 1 0 0           1 1 0 0
    1 1 0 0           1 1 0 0             1 1 0 0           1 1 0 0
    1 1 1 0           0 1 1 0             1 1 1 0           0 0 1 1
    1 1 1 1           0 0 1 1             1 1 1 1           0 0 1 1

`show` draws them. Besides the function of a tile's elements, a built-in has a rule that judges a whole tile by the smallest and largest position, id or
length in it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.flash.functions import Compared, Index, TileFunction, comparable, tile_function
from pallas_kernels.flash.show import Picture, draw
from pallas_kernels.flash.tables import lookup

__all__ = ["Mask", "block_sparse", "causal", "dense", "dilated", "from_function", "lengths", "prefix", "segments", "show", "sliding_window", "valid"]


class Range(NamedTuple):
    """Smallest and largest value per tile, `[B|1, ..., query tiles|1, key tiles|1]`."""

    low: Any
    high: Any


class Verdict(NamedTuple):
    """Per tile: certainly nothing allowed, certainly everything allowed. Neither means perhaps."""

    never: Any
    always: Any

    def __and__(self, other: "Verdict") -> "Verdict":
        return Verdict(self.never | other.never, self.always & other.always)

    def __or__(self, other: "Verdict") -> "Verdict":
        return Verdict(self.never & other.never, self.always | other.always)

    def __invert__(self) -> "Verdict":
        return Verdict(self.always, self.never)

    @property
    def static(self) -> bool:
        return not isinstance(self.never, jax.Array) and not isinstance(self.always, jax.Array)


_no = np.zeros((1, 1, 1, 1), bool)
PERHAPS = Verdict(_no, _no)


class Mask(Compared):
    """What may be attended to. Combine with `&`, `|`, `~`; make your own with `from_function`."""

    def allowed(self, i: Index) -> Any:
        """Boolean, broadcastable to the tile that `i` describes. The mask's arrays must be shaped to broadcast against it."""
        raise NotImplementedError

    def verdict(self, i: Index, static: bool = False) -> Verdict:
        """The same question about whole tiles: `i` and the mask's arrays are `Range`s. `static` asks what is known before the program runs."""
        raise NotImplementedError

    def functions(self) -> tuple[TileFunction, ...]:
        """Every function in the mask."""
        raise NotImplementedError

    def __and__(self, other: "Mask") -> "Mask":
        return Both(self, _as_mask(other))

    def __or__(self, other: "Mask") -> "Mask":
        return Either(self, _as_mask(other))

    def __invert__(self) -> "Mask":
        return Not(self)

    # `array & mask` asks the array first, and numpy would go through the elements.
    __array_ufunc__ = None
    __rand__, __ror__ = __and__, __or__


def _as_mask(other: Any) -> Mask:
    if not isinstance(other, Mask):
        raise TypeError(f"a mask combines with another mask, received {type(other).__name__}; wrap a boolean array in masks.dense(array)")
    return other


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Leaf(Mask):
    function: TileFunction
    rule: Callable[..., Verdict] | None = field(default=None, metadata={"static": True})

    def allowed(self, i: Index) -> Any:
        return self.function.fn(i, **self.function.named)

    def verdict(self, i: Index, static: bool = False) -> Verdict:
        if self.rule is None:
            return PERHAPS
        verdict = self.rule(i, **self.function.named)
        return PERHAPS if static and not verdict.static else verdict

    def functions(self) -> tuple[TileFunction, ...]:
        return (self.function,)

    def __repr__(self) -> str:
        return repr(self.function)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Both(Mask):
    a: Mask
    b: Mask

    def allowed(self, i: Index) -> Any:
        return self.a.allowed(i) & self.b.allowed(i)

    def verdict(self, i: Index, static: bool = False) -> Verdict:
        return self.a.verdict(i, static) & self.b.verdict(i, static)

    def functions(self) -> tuple[TileFunction, ...]:
        return self.a.functions() + self.b.functions()

    def __repr__(self) -> str:
        return f"({self.a!r} & {self.b!r})"


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Either(Mask):
    a: Mask
    b: Mask

    def allowed(self, i: Index) -> Any:
        return self.a.allowed(i) | self.b.allowed(i)

    def verdict(self, i: Index, static: bool = False) -> Verdict:
        return self.a.verdict(i, static) | self.b.verdict(i, static)

    def functions(self) -> tuple[TileFunction, ...]:
        return self.a.functions() + self.b.functions()

    def __repr__(self) -> str:
        return f"({self.a!r} | {self.b!r})"


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Not(Mask):
    a: Mask

    def allowed(self, i: Index) -> Any:
        return jnp.logical_not(self.a.allowed(i))

    def verdict(self, i: Index, static: bool = False) -> Verdict:
        return ~self.a.verdict(i, static)

    def functions(self) -> tuple[TileFunction, ...]:
        return self.a.functions()

    def __repr__(self) -> str:
        return f"~{self.a!r}"


def from_function(fn: Callable[..., Any], bounds: Callable[[Any, Any], tuple[Any, Any]] | None = None, **arrays: tuple[Any, str]) -> Mask:
    """A mask from an elementwise function `fn(i, **arrays) -> bool`.

    Args:
        fn: True where allowed. `i` is an `Index`; `i` and the arrays arrive shaped to broadcast against a tile.
        bounds: `bounds(q_low, q_high) -> (k_low, k_high)`, the key positions that a run of query positions can reach; key tiles outside are skipped,
            so bounds that are too narrow lose what `fn` allows: `masks.show` goes by `fn` alone, and backend="reference" too.
        arrays: each `(array, axes)`, axes out of "BNTS" in that order, feature axes after. They are constants: no gradient flows to them.

    Raises:
        TypeError, ValueError: a malformed pair of array and axes.
    """
    rule = None if bounds is None else comparable(partial(_bounded, comparable(bounds)))
    return Leaf(tile_function(fn, arrays), rule)


def causal() -> Mask:
    """k <= q."""
    return Leaf(tile_function(_causal, {}), _causal_rule)


def sliding_window(left: int, right: int = 0) -> Mask:
    """q - left <= k <= q + right; `left` and `right` count positions, the query's own not included."""
    left, right = _count("sliding_window: left", left, 0), _count("sliding_window: right", right, 0)
    rule = comparable(partial(_sliding_window_rule, left=left, right=right))
    return Leaf(tile_function(partial(_sliding_window, left=left, right=right), {}), rule)


def prefix(lengths: Any) -> Mask:
    """k <= q, or k < length: bidirectional within a prefix. `lengths` is integer `[B]`."""
    return causal() | Leaf(tile_function(_prefix, {"lengths": (_integers("prefix: lengths", lengths), "B")}), _prefix_rule)


def segments(q_ids: Any, kv_ids: Any = None) -> Mask:
    """The ids are equal. Integer `[B, T]` and `[B, S]`; one array serves both sides of self-attention."""
    a = _integers("segments: q_ids", q_ids)
    b = a if kv_ids is None else _integers("segments: kv_ids", kv_ids)
    return Leaf(tile_function(_segments, {"q_ids": (a, "BT"), "kv_ids": (b, "BS")}), _segments_rule)


def lengths(kv_lengths: Any) -> Mask:
    """k_index < length: the first keys of each row count. Integer `[B]`."""
    return Leaf(tile_function(_lengths, {"kv_lengths": (_integers("lengths: kv_lengths", kv_lengths), "B")}), _lengths_rule)


def valid(kv_valid: Any) -> Mask:
    """The flag is set. Boolean `[B, S]`, False at padding on either side."""
    return Leaf(tile_function(_valid, {"kv_valid": (_booleans("valid: kv_valid", kv_valid), "BS")}), _valid_rule)


def dense(array: Any) -> Mask:
    """Boolean, broadcastable to `[B, N, T, S]`."""
    return Leaf(tile_function(_dense, {"array": (_four_axes(_booleans("dense: array", array)), "BNTS")}), _dense_rule)


def block_sparse(layout: Any, block: int) -> Mask:
    """Blocks of `block` x `block` places are on or off: `layout[q_index // block, k_index // block]`; those beyond the layout are off.

    Args:
        layout: concrete booleans `[query blocks, key blocks]`.
        block: places to a block's side.
    """
    layout = np.asarray(_booleans("block_sparse: layout", layout))
    if layout.ndim != 2:
        raise ValueError(f"block_sparse: layout: expected two dimensions [query blocks, key blocks], received shape {layout.shape}")
    flat = {"layout": (layout.reshape(-1), "")}
    return Leaf(tile_function(partial(_block_sparse, columns=layout.shape[1], block=_count("block_sparse: block", block, 1)), flat))


def dilated(step: int) -> Mask:
    """q - k is a multiple of `step`."""
    return Leaf(tile_function(partial(_dilated, step=_count("dilated: step", step, 1)), {}))


def as_mask(mask: Any) -> Mask | None:
    """A mask from a mask, a boolean array or a function: what `attention` takes."""
    if mask is None or isinstance(mask, Mask):
        return mask
    if isinstance(mask, (np.ndarray, jax.Array)):
        return dense(mask)
    if callable(mask):
        return from_function(mask)
    raise TypeError(f"mask: expected a mask, a boolean array, a function or None, received {type(mask).__name__}")


def show(
    mask: Any, T: int, S: int | None = None, *, batch: int = 0, head: int = 0, q_positions: Any = None, kv_positions: Any = None, file: Any = None
) -> Picture:
    """Draws what the mask allows in one batch row and head: 1 and 0, or where that is too long for a terminal a character to a block.

    Args:
        mask: what `attention` takes.
        T, S: queries and keys; as many keys as queries unless given.
        batch, head: their numbers; any, where none of the mask's arrays varies over them.
        q_positions, kv_positions: integers `[T]` or `[B, T]`, `[S]` or `[B, S]`; 0, 1, 2, ... unless given.
        file: plots the mask there as well, by matplotlib; the name's ending, such as .png, says how.

    Returns:
        A string that at a prompt shows as the picture. Elsewhere print it.
    """
    T, S = _count("show: T", T, 1), _count("show: S", T if S is None else S, 1)
    return draw(as_mask(mask), T, S, batch, head, q_positions, kv_positions, file)


def _count(name: str, value: Any, least: int) -> int:
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name}: expected an integer of at least {least}, received {value!r}")
    return min(int(value), np.iinfo(np.int32).max)  # no position is further


def _integers(name: str, array: Any) -> Any:
    array = array if isinstance(array, (np.ndarray, jax.Array)) else np.asarray(array)
    if not jnp.issubdtype(jnp.result_type(array), jnp.integer):
        raise TypeError(f"{name}: expected integers, received {jnp.result_type(array)}")
    return array


def _booleans(name: str, array: Any) -> Any:
    array = array if isinstance(array, (np.ndarray, jax.Array)) else np.asarray(array)
    if jnp.result_type(array) != jnp.bool_:
        raise TypeError(f"{name}: expected booleans, received {jnp.result_type(array)}; compare first: array != 0")
    return array


def _four_axes(array: Any) -> Any:
    if np.ndim(array) > 4:
        raise ValueError(f"expected an array broadcastable to [B, N, T, S] with B all of q's leading dimensions together, received shape {np.shape(array)}")
    return array.reshape((1,) * (4 - np.ndim(array)) + np.shape(array))


def _bounded(bounds: Callable[[Any, Any], tuple[Any, Any]], i: Index, **_: Any) -> Verdict:
    low, high = bounds(i.q.low, i.q.high)
    return Verdict((i.k.high < low) | (i.k.low > high), _no)


def _causal(i: Index) -> Any:
    return i.k <= i.q


def _causal_rule(i: Index) -> Verdict:
    return Verdict(i.k.low > i.q.high, i.k.high <= i.q.low)


def _sliding_window(i: Index, left: int, right: int) -> Any:
    return (i.q - i.k <= left) & (i.k - i.q <= right)


def _sliding_window_rule(i: Index, left: int, right: int) -> Verdict:
    never = (i.q.low - i.k.high > left) | (i.k.low - i.q.high > right)
    return Verdict(never, (i.q.high - i.k.low <= left) & (i.k.high - i.q.low <= right))


def _prefix(i: Index, lengths: Any) -> Any:
    return i.k < lengths


def _prefix_rule(i: Index, lengths: Range) -> Verdict:
    return Verdict(i.k.low >= lengths.high, i.k.high < lengths.low)


def first_keys(length: Any) -> Mask:
    """`lengths` of an array that is in the form of tiles already."""
    return Leaf(TileFunction(comparable(_lengths), ("kv_lengths",), ("BNTS",), (length,)), _lengths_rule)


def _lengths(i: Index, kv_lengths: Any) -> Any:
    return i.k_index < kv_lengths


def _lengths_rule(i: Index, kv_lengths: Range) -> Verdict:
    return Verdict(i.k_index.low >= kv_lengths.high, i.k_index.high < kv_lengths.low)


def _segments(i: Index, q_ids: Any, kv_ids: Any) -> Any:
    return q_ids == kv_ids


def _segments_rule(i: Index, q_ids: Range, kv_ids: Range) -> Verdict:
    a, b = q_ids, kv_ids
    never = (a.high < b.low) | (b.high < a.low)
    return Verdict(never, (a.low == a.high) & (b.low == b.high) & (a.low == b.low))


def _valid(i: Index, kv_valid: Any) -> Any:
    return kv_valid


def _valid_rule(i: Index, kv_valid: Range) -> Verdict:
    return Verdict(~kv_valid.high, kv_valid.low)


def _dense(i: Index, array: Any) -> Any:
    return array


def _dense_rule(i: Index, array: Range) -> Verdict:
    return Verdict(~array.high, array.low)


def _block_sparse(i: Index, layout: Any, columns: int, block: int) -> Any:
    row, column = i.q_index // block, i.k_index // block
    return lookup(layout, row * columns + column) & (column < columns) & (row * columns < layout.shape[-1])


def _dilated(i: Index, step: int) -> Any:
    return (i.q - i.k) % step == 0
