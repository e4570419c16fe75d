"""The host's side of the kernels: what lies where in device memory, what a warpgroup reads of it, and the launch.

q, k, v, o and their gradients lie as the user has them, `[B, T, N, .]`, `[B, S, K, .]`: the copy engine takes slices of rows. What masks and scores read
lies `[B|1, N|1, *features, T, S]`, for a tile on its side with S before T, without the axes along which it does not vary; each warpgroup reads its part
straight into registers. That memory is not guarded at its ends, so the last places are repeated up to whole tiles.
"""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.flash.backends.hopper.rules import LAYOUTS, Piece, Replay, Value, loaded, of_features, of_tile
from pallas_kernels.flash.backends.hopper.tiling import CONSUMERS, ROWS, SHARED, for_a_gpu, swizzle
from pallas_kernels.flash.functions import Index
from pallas_kernels.flash.request import Dropout, Request, float_arrays, with_float_arrays
from pallas_kernels.flash.tiled import S_AXIS, T_AXIS, Scalars, Tiled
from pallas_kernels.flash.tiles import Operands, operand_shapes, pad

# More than the warpgroups of the kernels that XLA may run at a time; it has no more threads than processors unless told so.
THREADS = 8


class At(NamedTuple):
    """What a warpgroup works on: batch row, query head, and the first query and key of its tile."""

    batch: Any
    head: Any
    query: Any
    key: Any


class Launch(Tiled):
    """A request as the kernels find it.

    Args:
        tile: queries and keys to a step of a block of threads, in whose units tiles are listed.
        upright: whether a warpgroup's tile has queries down and keys across, or lies on its side.
    """

    def __init__(self, request: Request, tile: tuple[int, int], upright: bool = True) -> None:
        super().__init__(request, tile)
        self.upright = upright
        self.part = (ROWS, tile[1]) if upright else (tile[0], ROWS)
        self.arrays = [_stored(a, tile, self.counts, upright) for a in self.leaves]
        self.replay = Replay(self._turned(self.part))

    def _turned(self, sides: Any) -> Any:
        return sides if self.upright else sides[::-1]

    def operands(self, wanted: Sequence[int] = ()) -> Operands:
        """The shapes and dtypes of what the functions of a warpgroup's tile read, `[1|64, 1|bk, *features]`, or on their side.

        Args:
            wanted: the scores' float arrays that are said to vary over the rows of the tile though they may not: then their gradients are summed over the
                columns alone, and not from one warp to the other at every step.
        """

        operands = operand_shapes(replace(self.request, mask=self.mask), self.part, self.upright)
        floats = float_arrays(operands.scores)
        longer = [jax.ShapeDtypeStruct((ROWS, *a.shape[1:]), a.dtype) if n in wanted else a for n, a in enumerate(floats)]
        return operands._replace(scores=with_float_arrays(operands.scores, longer))

    def values(self, scalars: Scalars, refs: Sequence[Any], at: At) -> Operands:
        """The same tree of functions that make each value."""
        made = [self._reader(ref, leaf.shape, leaf.dtype, at) for ref, leaf in zip(refs, self.leaves)]
        read = jax.tree.unflatten(self.structure, made)
        q_axis, k_axis = self._turned((0, 1))

        def places(first: Any, size: int, axis: int, last: int | None) -> Callable[[], Value]:
            def make() -> Value:
                place = first + plgpu.broadcasted_iota(jnp.int32, (size,), 0, layout=LAYOUTS[axis,])
                return of_tile(place if last is None else jnp.minimum(place, last), (axis,))

            return make

        i = Index(
            batch=lambda: of_tile(scalars.batches[at.batch]),
            head=lambda: of_tile(scalars.heads[at.head]),
            q=read["q"] or places(at.query, self.part[0], q_axis, self.T - 1 if self.ragged[0] else None),
            k=read["k"] or places(at.key, self.part[1], k_axis, self.S - 1 if self.ragged[1] else None),
            q_index=places(at.query, self.part[0], q_axis, None),
            k_index=places(at.key, self.part[1], k_axis, None),
        )
        return Operands(i, read["mask"], read["scores"])

    def _reader(self, ref: Any, shape: tuple[int, ...], dtype: Any, at: At) -> Callable[[], Value]:
        lead = tuple(place if n > 1 else 0 for n, place in zip(shape, (at.batch, at.head)))
        axes = tuple(axis for axis, n in enumerate(self._turned(shape[2:4])) if n > 1)
        sides, first = self._turned(self.part), self._turned((at.query, at.key))
        slices = tuple(pl.ds(first[axis], sides[axis]) for axis in axes)

        def piece(features: tuple[int, ...]) -> Piece:
            place = (*lead, *features, *slices)
            value = loaded(ref.at[place], axes) if axes else ref[place]
            if jnp.issubdtype(dtype, jnp.floating):
                value = value.astype(jnp.float32)
            return Piece(value != 0 if dtype == jnp.bool_ else value, axes)

        return lambda: of_features([piece(place) for place in np.ndindex(*shape[4:])], shape[4:])

    def seeded(self, seed: Any) -> Dropout | None:
        """The request's dropout with another seed."""
        dropout = self.request.dropout
        return None if dropout is None else replace(dropout, seed=seed)

    def run(
        self, body: Callable[..., None], name: str, grid: dict[str, int], scalars: Scalars, inputs: Sequence[Any], outputs: Sequence[Any],
        smem: dict[str, Any], barriers: dict[str, Any],
    ) -> list[Any]:  # fmt: skip
        """Launches `body(scalars, inputs, leaves, outputs, smem, barriers)` on every place of the grid, by two warpgroups that compute and one that copies.

        Bodies rely on the compiler's own barriers: the threads of a warpgroup meet before and after each of its stores to shared memory and before each copy
        out of it, so that a buffer may be written again. exp2, log2, division and square roots are the chip's approximate ones, to 2 units in the last place.
        """
        counts = np.cumsum([0, len(scalars), len(inputs), len(self.arrays), len(outputs)])

        def kernel(*refs: Any) -> None:
            known, read, leaves, written = (refs[a:b] for a, b in pairwise(counts))
            shared, waited = refs[counts[-1] :][: len(smem)], refs[counts[-1] :][len(smem) :]
            body(Scalars(*known), read, leaves, written, dict(zip(smem, shared)), dict(zip(barriers, waited)))

        with jax.enable_x64(False):
            return plgpu.kernel(
                kernel,
                out_type=list(outputs),
                scratch_types=[*smem.values(), *barriers.values()],
                grid=tuple(grid.values()),
                grid_names=tuple(grid),
                num_threads=CONSUMERS + 1,
                thread_name="warpgroup",
                kernel_name=name,
                compiler_params=plgpu.CompilerParams(approx_math=True, unsafe_no_auto_barriers=False),
                interpret=None if for_a_gpu() else interpreter(),
            )(*scalars, *inputs, *self.arrays)


def interpreter() -> Any:
    """How kernels run where there is no GPU. Two warpgroups that touch the same memory without a barrier between them are found.

    Its callbacks are ordered, which neither `jax.checkpoint` nor `custom_partitioning` takes (`jax.grad(jax.checkpoint(attention))` is the smallest program
    that fails): interpreted kernels run outside of both, the chip's own have no callbacks.

    Raises:
        RuntimeError: a warpgroup would wait forever for another that no thread of XLA's is left to run.
    """
    threads = int(os.environ.get("NPROC", 0)) or len(os.sched_getaffinity(0))
    if threads < THREADS:
        raise RuntimeError(f"interpreting kernels for GPUs takes {THREADS} threads of XLA's, which has {threads} here: set NPROC={THREADS} before jax starts")
    # By name, as the versions of jax on older Pythons lack it.
    return getattr(plgpu, "InterpretGPUParams")(detect_races=True)  # noqa: B009


def whole_tiles(launch: "Launch", a: jax.Array, beyond: float) -> jax.Array:
    """A number for each query, `[B, N, T]`, lengthened to whole tiles."""
    length = launch.counts[0] * launch.tile[0]
    return jnp.pad(a, [(0, 0), (0, 0), (0, length - launch.T)], constant_values=beyond)


def buffer(count: int, rows: int, width: int, dtype: Any, along: int = ROWS) -> Any:
    """Shared memory for so many matrices, laid out for the copy engine and the matrix unit.

    Args:
        along: the fewest rows of any matrix in a product with these: both are laid out alike, and rows may be what the product sums over.
    """
    bytes_ = swizzle(along, width)
    transforms = (plgpu.TilingTransform((8, bytes_ // 2)), plgpu.SwizzleTransform(bytes_))
    return plgpu.SMEM((count, rows, width), dtype, transforms=transforms)


def padded(a: Any) -> Any:
    """`[B, length, heads, width]` with a length that is a multiple of 8 and a width of 16, as the copy engine wants."""
    widths = [(0, 0), (0, -a.shape[1] % 8), (0, 0), (0, -a.shape[3] % 16)]
    return jnp.pad(a, widths) if any(b for _, b in widths) else a


def _stored(a: Any, tile: tuple[int, int], counts: tuple[int, int], upright: bool) -> jax.Array:
    a = jnp.asarray(a)
    if a.dtype == jnp.bool_:
        a = a.astype(jnp.int32)
    elif jnp.issubdtype(a.dtype, jnp.floating):
        a = a.astype(jnp.float32)
    lengths = [count * size for count, size in zip(counts, tile)]
    a = pad(pad(a, T_AXIS, lengths[0]), S_AXIS, lengths[1])
    a = jnp.moveaxis(a, (T_AXIS, S_AXIS), (-2, -1) if upright else (-1, -2))
    return a.reshape(*a.shape[:-2], *(n for n in a.shape[-2:] if n > 1))


def staged(memory: Callable[[int], dict[str, Any]]) -> tuple[int, dict[str, Any]]:
    """The most stages, up to four, whose shared memory a block of threads may have, and that memory; one where none fits."""
    return next(((n, memory(n)) for n in (4, 3, 2) if bytes_of(memory(n)) <= SHARED), (1, memory(1)))


def bytes_of(smem: dict[str, Any]) -> int:
    """Shared memory that these buffers take, each from a multiple of 1,024 bytes on, as swizzled ones must be."""
    return sum(-(-math.prod(ref.shape) * jnp.dtype(ref.dtype).itemsize // 1024) * 1024 for ref in smem.values())
