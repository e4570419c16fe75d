"""Products of rows with one matrix per group of rows.

R rows in G groups, which lie one after the other; K inputs and N outputs of a row.
"""

import functools

import jax
import jax.numpy as jnp

from pallas_kernels.flash.platform import made_for
from transformer_jax.precision import wide


def grouped_product(rows: jax.Array, kernel: jax.Array, sizes: jax.Array, *, reference: bool = False) -> jax.Array:
    """rows[r].kernel[group of r], of rows that lie in the order of their groups.

    On CPU a loop over tiles of rows, each of one group, so that time follows R and not R * G, and nothing is read of a group without rows; it has first
    derivatives in reverse mode. Elsewhere, and as `reference`, `jax.lax.ragged_dot`, which jax's CPU backend computes as all R x G products.

    Args:
        rows: `[R, K]`.
        kernel: `[G, K, N]`, cast to the rows' dtype.
        sizes: rows of each group, integers `[G]`, of which the sum is at most R.

    Returns:
        `[R, N]` in the rows' dtype, 0 in rows beyond the last group.
    """
    kernel = kernel.astype(rows.dtype)
    if reference or made_for() != "cpu":
        return jax.lax.ragged_dot(rows, kernel, sizes)
    return _in_tiles(rows, kernel, sizes)


@jax.custom_vjp
def _in_tiles(rows: jax.Array, kernel: jax.Array, sizes: jax.Array) -> jax.Array:
    return _product(rows, kernel, sizes, contracting=0)


def _in_tiles_forward(rows: jax.Array, kernel: jax.Array, sizes: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    return _in_tiles(rows, kernel, sizes), (rows, kernel, sizes)


def _in_tiles_backward(kept: tuple[jax.Array, ...], dy: jax.Array) -> tuple[jax.Array, jax.Array, None]:
    rows, kernel, sizes = kept
    return _product(dy, kernel, sizes, contracting=1), _outer(rows, dy, sizes), None


_in_tiles.defvjp(_in_tiles_forward, _in_tiles_backward)


class _Tiles:
    """Tiles of `size` rows, each of one group. The last of a group reaches into the next group, or at the end of the rows back into what is before it."""

    def __init__(self, rows: int, sizes: jax.Array) -> None:
        groups = sizes.shape[0]
        # About half the rows of a group, so that a last tile wastes little; a product of fewer than 16 rows is no faster.
        self.size = min(rows, max(16, min(128, 1 << max(rows // (2 * groups), 1).bit_length() - 1)))
        self.rows, self.ends = rows, jnp.cumsum(sizes)
        self.starts = self.ends - sizes
        each = -(-sizes // self.size)
        self.last = jnp.cumsum(each)
        self.first, self.count = self.last - each, self.last[-1]

    def at(self, tile: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Of a tile its group, its first row, and which of its rows are its own, `[size, 1]`."""
        group = jnp.searchsorted(self.last, tile, side="right", method="compare_all").astype(self.ends.dtype)
        wanted = self.starts[group] + (tile - self.first[group]) * self.size
        start = jnp.minimum(wanted, self.rows - self.size)
        row = start + jnp.arange(self.size, dtype=start.dtype)[:, None]
        return group, start, (row >= wanted) & (row < self.ends[group])


def _product(rows: jax.Array, kernel: jax.Array, sizes: jax.Array, *, contracting: int) -> jax.Array:
    """`[R, N]` of rows `[R, K]` and kernels `[G, K, N]`, or `[G, N, K]` where axis 1 is contracted."""
    tiles = _Tiles(rows.shape[0], sizes)

    def one(tile: jax.Array, y: jax.Array) -> jax.Array:
        group, start, own = tiles.at(tile)
        x = jax.lax.dynamic_slice_in_dim(rows, start, tiles.size)
        new = jax.lax.dot_general(x, jax.lax.dynamic_index_in_dim(kernel, group, keepdims=False), (((1,), (contracting,)), ((), ())))
        new = jnp.where(own, new, jax.lax.dynamic_slice_in_dim(y, start, tiles.size))
        return jax.lax.dynamic_update_slice_in_dim(y, new, start, 0)

    return jax.lax.fori_loop(0, tiles.count, one, jnp.zeros((rows.shape[0], kernel.shape[2 - contracting]), rows.dtype))


def _outer(rows: jax.Array, dy: jax.Array, sizes: jax.Array) -> jax.Array:
    """The sum of rows[r] dy[r]^T over the rows of each group, `[G, K, N]`: it accumulates in float32 (float64) and is cast to the rows' dtype."""
    tiles, exact = _Tiles(rows.shape[0], sizes), wide(rows.dtype)
    cut = functools.partial(jax.lax.dynamic_slice_in_dim, slice_size=tiles.size)

    def one(tile: jax.Array, so_far: jax.Array) -> jax.Array:
        group, start, own = tiles.at(tile)
        new = jnp.matmul(jnp.where(own, cut(rows, start), 0).T, cut(dy, start), preferred_element_type=exact)
        return jax.lax.dynamic_update_index_in_dim(so_far, so_far[group] + new, group, 0)

    zeros = jnp.zeros((sizes.shape[0], rows.shape[1], dy.shape[1]), exact)
    return jax.lax.fori_loop(0, tiles.count, one, zeros).astype(rows.dtype)
