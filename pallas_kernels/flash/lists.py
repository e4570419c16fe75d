"""Which tiles are worth a visit: a mask's verdict on each, and lists of them."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.flash.functions import Index
from pallas_kernels.flash.masks import PERHAPS, Leaf, Mask, Range, Verdict
from pallas_kernels.flash.tiles import KEYS, ROWS, Operands, cut, pad

# Elements of a mask that we look at while a program is being made; beyond, it looks itself when it runs.
KNOWN_ELEMENTS = 2**24


def judge(operands: Operands, lengths: tuple[int, int], tile: tuple[int, int], static: bool = False) -> Verdict:
    """The mask's verdict on every tile: booleans broadcastable to `[B, K, G, query tiles, key tiles]`.

    Args:
        operands: of five axes; lengths, tile: of queries and of keys.
        static: whether to say only what is known before the program runs, in numpy.
    """
    counts = -(-lengths[0] // tile[0]), -(-lengths[1] // tile[1])
    if operands.mask is None:
        return Verdict(np.zeros((1, 1, 1, *counts), bool), np.ones((1, 1, 1, *counts), bool))

    def extremes(a: Any) -> Range:
        xp: Any = np if isinstance(a, np.ndarray) else jnp
        low = high = a
        for axis, length, size in ((ROWS, lengths[0], tile[0]), (KEYS, lengths[1], tile[1])):
            if a.shape[axis] == 1:
                continue
            padded = -(-length // size) * size
            low, high = (
                xp.moveaxis(x, axis, -1).reshape(*np.delete(x.shape, axis), padded // size, size) for x in pad((low, high), axis, padded)
            )
            low, high = xp.moveaxis(low.min(-1), -1, axis), xp.moveaxis(high.max(-1), -1, axis)
        return Range(low, high)

    def judged(leaf: Leaf) -> Mask:
        if leaf.rule is None:
            return Judged(_looked_at(leaf, operands.i, lengths, tile, static))
        return jax.tree.map(extremes, leaf)

    mask = jax.tree.map(judged, operands.mask, is_leaf=lambda x: isinstance(x, Leaf))
    never, always = mask.verdict(jax.tree.map(extremes, operands.i), static)
    return Verdict(*(_five_axes(x, counts) for x in (never, always)))


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Judged(Mask):
    """A mask of which the verdict is all that is left."""

    known: Verdict

    def verdict(self, i: Any, static: bool = False) -> Verdict:
        return self.known


def _looked_at(leaf: Leaf, i: Index, lengths: tuple[int, int], tile: tuple[int, int], static: bool) -> Verdict:
    """The verdict on a function that has no rule, by calling it once for every tile."""
    everything = (i, leaf)
    heads = np.prod(np.broadcast_shapes(*(a.shape[:ROWS] for a in jax.tree.leaves(everything))))
    now = heads * lengths[0] * lengths[1] <= KNOWN_ELEMENTS and not any(isinstance(a, jax.Array) for a in jax.tree.leaves(everything))
    if static and not now:
        return PERHAPS
    counts = -(-lengths[0] // tile[0]), -(-lengths[1] // tile[1])
    everything = pad(pad(everything, ROWS, counts[0] * tile[0]), KEYS, counts[1] * tile[1])

    def look(row: Any, column: Any) -> tuple[Any, Any]:
        i, leaf = cut(cut(everything, ROWS, row * tile[0], tile[0]), KEYS, column * tile[1], tile[1])
        allowed = jnp.asarray(leaf.allowed(i))
        allowed = allowed.reshape((1,) * (5 - allowed.ndim) + allowed.shape)
        return ~allowed.any((ROWS, KEYS)), allowed.all((ROWS, KEYS))

    def every_tile() -> tuple[Any, Any]:
        rows, columns = (jnp.arange(n, dtype=jnp.int32) for n in counts)
        return jax.lax.map(lambda row: jax.lax.map(lambda column: look(row, column), columns), rows)

    if not now:
        return Verdict(*(jnp.moveaxis(a, (0, 1), (-2, -1)) for a in every_tile()))
    with jax.ensure_compile_time_eval():
        return Verdict(*(np.moveaxis(np.asarray(a), (0, 1), (-2, -1)) for a in every_tile()))


def _five_axes(x: Any, counts: tuple[int, int]) -> Any:
    xp: Any = np if isinstance(x, (np.ndarray, np.generic)) else jnp
    x = xp.reshape(x, (1,) * (5 - x.ndim) + x.shape)
    return xp.broadcast_to(x, (*x.shape[:3], *counts))


class Visits(NamedTuple):
    """For each row of tiles: which to visit, first those where all is allowed, then those where some is.

    order `[..., rows, columns]`, full `[..., rows]`, partial `[..., rows]`: int32.
    """

    order: Any
    full: Any
    partial: Any


def visits(verdict: Verdict) -> Visits:
    """The lists for verdicts `[..., rows, columns]`; numpy where they are."""
    xp: Any = np if verdict.static else jnp
    rank = xp.where(verdict.never, 2, xp.where(verdict.always, 0, 1)).astype(np.int32)
    order = xp.argsort(rank, axis=-1, stable=True).astype(np.int32)
    return Visits(order, (rank == 0).sum(-1, dtype=np.int32), (rank == 1).sum(-1, dtype=np.int32))


def together(verdict: Verdict) -> Verdict:
    """One verdict `[rows, columns]` for all heads that are taken together."""
    lead = tuple(range(verdict.never.ndim - 2))
    return Verdict(verdict.never.all(lead), verdict.always.all(lead))


def reach(never: np.ndarray) -> list[tuple[int, int]]:
    """For each row of tiles `[..., rows, columns]` the first and one past the last tile worth a visit; (0, 0) where there is none."""
    some = np.logical_not(never.reshape(-1, *never.shape[-2:])).any(axis=0, keepdims=True)[0]
    return [(int(row.argmax()), len(row) - int(row[::-1].argmax())) if row.any() else (0, 0) for row in some]
