"""Sizes of tiles and chunks, and the ways between a call's arrays and those of its chunks."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.flash import masks
from pallas_kernels.flash.lists import judge
from pallas_kernels.flash.request import Dropout, Request, float_arrays
from pallas_kernels.flash.tiles import KEYS, ROWS, Operands, by_group, cut, pad

UNROLLED = 1024
SIDE = 512
SHORT_SIDE = 128
TILE_BYTES = 2**21
# Unrolled tiles live side by side: with twice as much, temporary memory at 1,024 keys passes the 32 MiB up to which malloc
# keeps what is freed, and each call pays for fresh pages.
SHORT_BYTES = 2**20


class Chunk(NamedTuple):
    """What a chunk of heads works with.

    Attributes:
        tile: queries and keys to a tile.
        operands: what masks and scores read, cut to the chunk's heads.
        verdict: of the mask, tile by tile.
        dropout: of the call.
    """

    tile: tuple[int, int]
    operands: Operands
    verdict: masks.Verdict
    dropout: Dropout | None


class Plan:
    """How a call is cut up: R = cb * ck groups of heads to a chunk, n chunks."""

    def __init__(self, request: Request) -> None:
        sizes = request.sizes
        self.B, self.T, self.S, self.N, self.K, self.G = (sizes[a] for a in "BTSNKG")
        self.request = request
        self.short = request.tile is None and max(self.T, self.S) <= UNROLLED
        self.tile = (min(self.T, SHORT_SIDE), min(self.S, SHORT_SIDE)) if self.short else request.tile or (SIDE, SIDE)
        bq, bk = self.tile
        self.padded = (self.T, self.S) if self.short else (-(-self.T // bq) * bq, -(-self.S // bk) * bk)
        size = 4 * self.G * bq * (self.S if self.short else bk)
        self.cb, self.ck = _heads_to_a_chunk(self.B, self.K, max(1, (SHORT_BYTES if self.short else TILE_BYTES) // size))
        self.operands = self._operands()
        self.verdict = judge(self.operands, self.padded, self.tile, static=self.short)

    def _operands(self) -> Operands:
        request, (T, S) = self.request, self.padded
        sinks = None if request.sinks is None else request.sinks[None, :, None, None]
        operands = by_group(Operands(request.index(), request.mask, request.score, sinks), self.K)
        operands = pad(pad(operands, ROWS, T), KEYS, S)
        if S > self.S:
            places = np.arange(S, dtype=np.int32).reshape(1, 1, 1, 1, S)
            inside = masks.first_keys(np.full((1, 1, 1, 1, 1), self.S, np.int32))
            mask = inside if operands.mask is None else operands.mask & inside
            operands = operands._replace(i=operands.i._replace(k_index=places), mask=mask)
        return operands

    def rows(self, a: jax.Array) -> jax.Array:
        """`[B, T, N, F]` to chunks `[n, R, G, T, F]`, T padded with zeros."""
        a = a.reshape(self.B, self.T, self.K, self.G, -1).transpose(0, 2, 3, 1, 4)
        return self._chunks(_zero_pad(a, 3, self.padded[0]))

    def keys(self, a: jax.Array) -> jax.Array:
        """`[B, S, K, F]` to chunks `[n, R, S, F]`, S padded with zeros."""
        return self._chunks(_zero_pad(a.transpose(0, 2, 1, 3), 2, self.padded[1]))

    def scalars(self, a: jax.Array, beyond: float = 0.0) -> jax.Array:
        """`[B, N, T]` to chunks `[n, R, G, T]`, T padded with `beyond`."""
        widths = [(0, 0)] * 3 + [(0, self.padded[0] - self.T)]
        return self._chunks(jnp.pad(a.reshape(self.B, self.K, self.G, self.T), widths, constant_values=beyond))

    def _chunks(self, a: jax.Array) -> jax.Array:
        return a.reshape(-1, self.cb * self.ck, *a.shape[2:])

    def rows_back(self, a: jax.Array) -> jax.Array:
        """The reverse of `rows`."""
        a = a.reshape(self.B, self.K, self.G, *a.shape[-2:]).transpose(0, 3, 1, 2, 4)
        return a[:, : self.T].reshape(self.B, self.T, self.N, -1)

    def keys_back(self, a: jax.Array) -> jax.Array:
        """The reverse of `keys`."""
        return a.reshape(self.B, self.K, *a.shape[-2:]).transpose(0, 2, 1, 3)[:, : self.S]

    def arrays_back(self, gradients: list[jax.Array]) -> list[jax.Array]:
        """Gradients of the scores' float arrays, in the request's own shapes and dtypes."""
        originals = float_arrays(self.request.score)
        return [cut(cut(g, ROWS, 0, self.T), KEYS, 0, self.S).reshape(a.shape).astype(a.dtype) for g, a in zip(gradients, originals)]

    def over_chunks(self, body: Callable[..., Any], *arrays: jax.Array) -> Any:
        """`body(chunk, *arrays)` for each chunk of heads, results stacked."""

        def one(c: Any, *parts: jax.Array) -> Any:
            return body(self._chunk(c), *parts)

        if arrays[0].shape[0] == 1:
            return jax.tree.map(lambda a: a[None], one(0, *(a[0] for a in arrays)))
        return jax.lax.map(lambda xs: one(*xs), (jnp.arange(arrays[0].shape[0], dtype=jnp.int32), *arrays))

    def over_chunks_summing(self, body: Callable[..., Any], *arrays: jax.Array) -> tuple[Any, list[jax.Array]]:
        """The same where `body` returns its results and the gradients of its share of the scores' arrays, which are summed where chunks share them."""
        sums = [jnp.zeros(a.shape, self.request.accumulator) for a in float_arrays(self.operands.scores)]

        def one(sums: list[jax.Array], xs: Any) -> tuple[list[jax.Array], Any]:
            c, *parts = xs
            results, mine = body(self._chunk(c), *parts)
            return [deposit(whole, part, {0: self._first(c)[0], 1: self._first(c)[1]}) for whole, part in zip(sums, mine)], results

        if arrays[0].shape[0] == 1:
            sums, results = one(sums, (0, *(a[0] for a in arrays)))
            return jax.tree.map(lambda a: a[None], results), sums
        sums, results = jax.lax.scan(one, sums, (jnp.arange(arrays[0].shape[0], dtype=jnp.int32), *arrays))
        return results, sums

    def _first(self, c: Any) -> tuple[Any, Any]:
        """The first batch row and kv head of a chunk."""
        return c * self.cb * self.ck // self.K, c * self.ck % self.K

    def _chunk(self, c: Any) -> Chunk:
        operands, verdict = self.operands, self.verdict
        for axis, start, size in zip((0, 1), self._first(c), (self.cb, self.ck)):
            operands = cut(operands, axis, start, size)
            verdict = verdict if self.short else cut(verdict, axis, start, size)
        return Chunk(self.tile, operands, verdict, self.request.dropout)


def deposit(whole: jax.Array, part: jax.Array, starts: dict[int, Any]) -> jax.Array:
    """`whole` with `part` added at `starts`, by axis; along an axis of length 1 there is one place only."""
    at = [starts.get(axis, 0) if n > 1 else 0 for axis, n in enumerate(whole.shape)]
    at = [jnp.asarray(n, jnp.int32) for n in at]
    so_far = jax.lax.dynamic_slice(whole, at, part.shape)
    return jax.lax.dynamic_update_slice(whole, so_far + part.astype(whole.dtype), at)


def _heads_to_a_chunk(B: int, K: int, most: int) -> tuple[int, int]:
    """Batch rows and kv heads to a chunk: all heads of some rows, or some heads of one row; at most `most` groups of heads."""
    if most >= K:
        return max(d for d in range(1, B + 1) if B % d == 0 and d * K <= most), K
    return 1, max(d for d in range(1, K + 1) if K % d == 0 and d <= most)


def _zero_pad(a: jax.Array, axis: int, size: int) -> jax.Array:
    widths = [(0, 0)] * a.ndim
    widths[axis] = (0, size - a.shape[axis])
    return jnp.pad(a, widths) if size > a.shape[axis] else a
