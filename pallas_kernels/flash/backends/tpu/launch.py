"""The host's side of the kernels: a request in the layout of tiles, the lists of tiles to visit, and the launch.

q and o lie `[B, N, T, .]`, k and v `[B, K, S, .]`, in device memory; a tile of each is copied to VMEM for every step of the grid. What masks and scores
read lies as `place` made it, `[B|1, N|1, T|1, S|1, *features]`, except that an array which varies over queries alone lies as a row and is turned in the
kernel: as a column each of its elements would fill a register's row of 128 lanes. What varies over queries or over keys is lengthened to whole tiles by
repeating its last place; what varies over both is as long as the user made it, and gets a number of the tile beyond the ends: a function may divide by it.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.flash.backends.tpu.tiling import for_a_tpu, limit
from pallas_kernels.flash.functions import Index
from pallas_kernels.flash.lists import Visits
from pallas_kernels.flash.request import Dropout, Request
from pallas_kernels.flash.tiled import S_AXIS, T_AXIS, Scalars, Tiled
from pallas_kernels.flash.tiles import Operands, pad


class At(NamedTuple):
    """Which tile a step of a grid works on: batch row, query head, tile of queries, tile of keys."""

    batch: Any
    head: Any
    row: Any
    column: Any


Where = Callable[..., At]


class Launch(Tiled):
    """A request in the layout of tiles: what the kernels share."""

    def __init__(self, request: Request, tile: tuple[int, int]) -> None:
        super().__init__(request, tile)
        self.arrays = [_stored(a, tile, self.counts) for a in self.leaves]

    def found(self, lists: Visits, rows: int) -> Callable[..., tuple[Any, Any, Any]]:
        """`(scalars, batch, head, row, step) -> (tile to visit, full, count)`: count tiles are visited, the first `full` of them without a mask.

        Steps beyond the last visit stay at its tile, which then is not copied again.
        """
        columns, place = lists.order.shape[-1], self.listed(lists, rows)

        def find(scalars: Scalars, batch: Any, head: Any, row: Any, step: Any) -> tuple[Any, Any, Any]:
            at = place(batch, head, row)
            full, count = scalars.full[at], scalars.full[at] + scalars.partial[at]
            return scalars.order[at * columns + jnp.minimum(step, jnp.maximum(count - 1, 0))], full, count

        return find

    def dropout(self, scalars: Scalars) -> Dropout | None:
        """The request's, with its seed read from scalar memory."""
        dropout = self.request.dropout
        return None if dropout is None else replace(dropout, seed=jnp.zeros((1, 1), jnp.int32) + scalars.seed[0])

    def queries(self, where: Where, width: int) -> pl.BlockSpec:
        return pl.BlockSpec((None, None, self.tile[0], width), lambda *ids: (at := _at(where, ids)) and (at.batch, at.head, at.row, 0))

    def query_scalars(self, where: Where) -> pl.BlockSpec:
        """Of an array `[B, N, 1, T]`: a number to each query, lying as a row."""
        return pl.BlockSpec((None, None, 1, self.tile[0]), lambda *ids: (at := _at(where, ids)) and (at.batch, at.head, 0, at.row))

    def keys(self, where: Where, width: int) -> pl.BlockSpec:
        return pl.BlockSpec((None, None, self.tile[1], width), lambda *ids: (at := _at(where, ids)) and (at.batch, at.head // self.G, at.column, 0))

    def specs(self, where: Where) -> list[pl.BlockSpec]:
        return [_spec(np.shape(a), self.tile, where) for a in self.leaves]

    def leaf_output(self, shape: tuple[int, ...], where: Where) -> tuple[tuple[int, ...], Any, pl.BlockSpec]:
        """For a gradient in the form of a leaf: how it lies in memory, its dtype, its place."""
        lies = (*shape[:2], shape[S_AXIS], shape[T_AXIS]) if _is_row(shape) else shape
        return lies, jnp.float32, _spec(shape, self.tile, where)

    def as_placed(self, a: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """The reverse, for an array of that shape but for its lengths."""
        return jnp.swapaxes(a, T_AXIS, S_AXIS) if _is_row(shape) else a

    def operands(self, scalars: Scalars, refs: Sequence[Any], at: At) -> Operands:
        """What the functions of a tile read, `[1|bq, 1|bk, *features]`."""
        first = at.row * self.tile[0], at.column * self.tile[1]
        values = [self._value(ref, np.shape(leaf), first) for ref, leaf in zip(refs, self.leaves)]
        read = jax.tree.unflatten(self.structure, values)
        one = jnp.zeros((1, 1), jnp.int32)
        q_index = first[0] + jax.lax.broadcasted_iota(jnp.int32, (self.tile[0], 1), 0)
        k_index = first[1] + jax.lax.broadcasted_iota(jnp.int32, (1, self.tile[1]), 1)
        i = Index(
            batch=one + scalars.batches[at.batch],
            head=one + scalars.heads[at.head],
            q=jnp.minimum(q_index, self.T - 1) if read["q"] is None else read["q"],
            k=jnp.minimum(k_index, self.S - 1) if read["k"] is None else read["k"],
            q_index=q_index,
            k_index=k_index,
        )
        return Operands(i, read["mask"], read["scores"])

    def _value(self, ref: Any, shape: tuple[int, ...], first: tuple[Any, Any]) -> jax.Array:
        value, dtype = ref[...], ref.dtype
        boolean = dtype == jnp.int8
        if boolean or jnp.issubdtype(dtype, jnp.floating):  # the vector unit of older chips knows nothing shorter
            value = value.astype(jnp.int32 if boolean else jnp.float32)
        if _is_row(shape):
            value = value.T
        if shape[T_AXIS] > 1 and shape[S_AXIS] > 1 and any(self.ragged):
            places = (first[axis] + jax.lax.broadcasted_iota(jnp.int32, self.tile, axis) for axis in (0, 1))
            inside = jnp.logical_and(*(place < length for place, length in zip(places, (self.T, self.S))))
            value = jnp.where(inside.reshape(*self.tile, *(1 for _ in shape[4:])), value, value[:1, :1])
        return value != 0 if boolean else value

    def run(
        self, body: partial[None], grid: tuple[int, ...], parallel: int, lists: Visits, inputs: Sequence[tuple[Any, pl.BlockSpec]],
        outputs: Sequence[tuple[tuple[int, ...], Any, pl.BlockSpec]], where: Where, scratch: Sequence[tuple[int, ...]] = (),
    ) -> list[Any]:  # fmt: skip
        """Launches `body(scalars, inputs, leaves, outputs, scratch)`, each a sequence of references.

        Args:
            parallel: how many of the grid's leading axes may go in any order, on several cores.
            outputs: shape, dtype and place of each.
        """
        scalars, counts = self.scalars(lists), (len(inputs), len(self.arrays), len(outputs))

        def kernel(*refs: Any) -> None:
            known, rest = Scalars(*refs[: len(scalars)]), refs[len(scalars) :]
            starts = np.cumsum([0, *counts])
            body(known, *(rest[a:b] for a, b in zip(starts, [*starts[1:], None])))

        spec = pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars),
            grid=grid,
            in_specs=[*(spec for _, spec in inputs), *self.specs(where)],
            out_specs=[spec for *_, spec in outputs],
            scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch],
        )
        order: Any = ("parallel",) * parallel + ("arbitrary",) * (len(grid) - parallel)
        with jax.enable_x64(False):  # or the numbers of the grid are int64, which the compiler does not take
            return pl.pallas_call(
                kernel,
                grid_spec=spec,
                out_shape=[jax.ShapeDtypeStruct(shape, dtype) for shape, dtype, _ in outputs],
                compiler_params=pltpu.CompilerParams(dimension_semantics=order, vmem_limit_bytes=limit()),
                interpret=not for_a_tpu(),
                name=body.func.__name__,
            )(*scalars, *(a for a, _ in inputs), *self.arrays)


def _at(where: Where, ids: Sequence[Any]) -> At:
    """A grid's numbers, followed by the scalars, as the tile they mean."""
    count = len(Scalars._fields)
    return where(Scalars(*ids[-count:]), *ids[:-count])


def _is_row(shape: tuple[int, ...]) -> bool:
    return len(shape) == 4 and shape[T_AXIS] > 1 and shape[S_AXIS] == 1


def _stored(a: Any, tile: tuple[int, int], counts: tuple[int, int]) -> jax.Array:
    """A leaf as it lies in device memory."""
    a = jnp.asarray(a)
    both = a.shape[T_AXIS] > 1 and a.shape[S_AXIS] > 1
    if a.dtype == jnp.bool_:
        a = a.astype(jnp.int8)
    elif jnp.issubdtype(a.dtype, jnp.floating) and a.dtype != jnp.bfloat16:
        a = a.astype(jnp.float32)
    if not both:
        a = pad(pad(a, T_AXIS, tile[0] * counts[0]), S_AXIS, tile[1] * counts[1])
    return jnp.swapaxes(a, T_AXIS, S_AXIS) if _is_row(a.shape) else a


def _spec(shape: tuple[int, ...], tile: tuple[int, int], where: Where) -> pl.BlockSpec:
    b, n, t, s, *features = shape
    sides = [size if length > 1 else 1 for size, length in zip(tile, (t, s))]

    def place(*ids: Any) -> tuple[Any, ...]:
        at = _at(where, ids)
        places = [at.row if t > 1 else 0, at.column if s > 1 else 0]
        if _is_row(shape):
            places.reverse()
        return (at.batch if b > 1 else 0, at.head if n > 1 else 0, *places, *(0 for _ in features))

    if _is_row(shape):
        sides.reverse()
    return pl.BlockSpec((None, None, *sides, *features), place)
