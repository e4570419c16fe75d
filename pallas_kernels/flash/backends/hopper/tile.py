"""What happens in a warpgroup's tile: products in the matrix unit, and the copies that feed it."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.flash.backends.hopper.launch import At, Launch
from pallas_kernels.flash.backends.hopper.rules import LAYOUTS, of_tile, spread
from pallas_kernels.flash.backends.hopper.tiling import CONSUMERS
from pallas_kernels.flash.tiled import Scalars
from pallas_kernels.flash.tiles import Operands, flow_back

LOG2E = math.log2(math.e)


def product(a: Any, b: Any, meanwhile: Callable[[], None] = lambda: None) -> jax.Array:
    """a.b in float32 registers; a `[64, c]` and b `[c, n]` lie in shared memory. `meanwhile` runs once the product is under way."""

    def compute(acc: Any) -> jax.Array:
        plgpu.wgmma(acc, a, b)
        meanwhile()
        return acc[...]

    return pl.run_scoped(compute, plgpu.ACC((a.shape[0], b.shape[1]), jnp.float32))


def accumulate(acc: jax.Array, a: jax.Array, b: Any, room: Any = None) -> jax.Array:
    """acc + a.b, where a is in registers.

    Args:
        room: shared memory for a. Where the kernel is interpreted, the first operand has to lie there: the interpreter lacks `ACC.init` and operands in
            registers (`ref = plgpu.ACC.init(acc); wgmma(ref, a, b)` under `pl.run_state` is the smallest program that fails).
    """
    if room is not None:
        room[...] = a
        plgpu.commit_smem()
        return acc + product(room, b)
    return pl.run_state(lambda ref: plgpu.wgmma(ref, a, b))(plgpu.ACC.init(acc))


def turned(ref: Any) -> Any:
    return ref.transpose((1, 0))


def zeros(rows: int, width: int) -> jax.Array:
    return plgpu.layout_cast(jnp.zeros((rows, width), jnp.float32), LAYOUTS[0, 1])


def full(rows: int, value: Any) -> jax.Array:
    """A number for each row of a tile."""
    return plgpu.layout_cast(jnp.full((rows,), value, jnp.float32), LAYOUTS[0,])


def over(row: jax.Array, shape: tuple[int, ...], axis: int = 0) -> jax.Array:
    """A vector along one axis of a tile, repeated over the other."""
    return jax.lax.broadcast_in_dim(row, shape, [axis])


def fetched(sources: dict[str, Any], smem: Any, barriers: Any, warpgroup: Any) -> list[Any]:
    """A warpgroup's own tiles, by the name of their buffer and barrier, once they are there."""
    for name, source in sources.items():
        plgpu.copy_gmem_to_smem(source, smem[name].at[warpgroup], barriers[name].at[warpgroup])
    for name in sources:
        plgpu.barrier_wait(barriers[name].at[warpgroup])
    return [smem[name].at[warpgroup] for name in sources]


def visited(launch: Launch, visit: Callable[[bool, Any, Any], Any], whole: Any, count: Any, carry: Any) -> Any:
    """`visit(masked, step, carry)` for each tile of a list: nothing is masked before `whole`."""
    carry = jax.lax.fori_loop(0, whole, partial(visit, False), carry)
    return carry if launch.mask is None else jax.lax.fori_loop(whole, count, partial(visit, True), carry)


class Stages:
    """Tiles that pass through shared memory: one warpgroup copies them, `number` of them ahead, the others use and release them.

    Args:
        names: of buffers `[number, ...]`; `barriers` has `name_ready` and `name_free` for each.
    """

    def __init__(self, number: int, names: Sequence[str], smem: Any, barriers: Any) -> None:
        self.number, self.names, self.smem, self.barriers = number, names, smem, barriers

    @staticmethod
    def made(number: int, names: Sequence[str]) -> dict[str, Any]:
        """The barriers that it takes."""
        ready = {f"{name}_ready": plgpu.Barrier(num_barriers=number) for name in names}
        return ready | {f"{name}_free": plgpu.Barrier(num_arrivals=CONSUMERS, num_barriers=number) for name in names}

    def slot(self, step: Any) -> Any:
        return jax.lax.rem(step, jnp.int32(self.number))

    def copy(self, before: Any, count: Any, sources: Sequence[Callable[[Any], Any]]) -> Any:
        """Copies `count` tiles of each source, each into its buffer as soon as that is free, after `before` others; returns how many there are now."""

        @pl.loop(0, count)
        def _copy(step: Any) -> None:
            slot = self.slot(before + step)
            for name, source in zip(self.names, sources):
                pl.when(before + step >= self.number)(partial(plgpu.barrier_wait, self.barriers[f"{name}_free"].at[slot]))
                plgpu.copy_gmem_to_smem(source(step), self.smem[name].at[slot], self.barriers[f"{name}_ready"].at[slot])

        return before + count

    def drain(self, count: Any) -> None:
        """Waits until all are used, or the copying warpgroup would be gone before the others have arrived for the last time."""

        @pl.loop(jnp.maximum(count - self.number, 0), count)
        def _wait(step: Any) -> None:
            for name in self.names:
                plgpu.barrier_wait(self.barriers[f"{name}_free"].at[self.slot(step)])

    def use(self, name: str, step: Any) -> Any:
        """The step's tile, once it is there."""
        plgpu.barrier_wait(self.barriers[f"{name}_ready"].at[self.slot(step)])
        return self.smem[name].at[self.slot(step)]

    def release(self, name: str, step: Any) -> None:
        plgpu.barrier_arrive(self.barriers[f"{name}_free"].at[self.slot(step)])


def gradients(
    launch: Launch, scalars: Scalars, leaves: Any, at: At, masked: bool, made: Sequence[str], arrays: Sequence[int], s: jax.Array,
    dp: Callable[[], jax.Array], lse: jax.Array, delta: jax.Array,
) -> tuple[list[jax.Array], list[Any]]:  # fmt: skip
    """What is wanted of dS and dropout(P), and the gradients of the scores' arrays of these numbers, summed over the tile's columns.

    Args:
        made: out of "ds" and "p". What none of it needs is not computed.
        s, dp: q.k^T and what makes dO.v^T of the tile.
        lse, delta: of the queries in it.
    """
    square = jax.ShapeDtypeStruct(s.shape, jnp.float32)
    queries = 0 if launch.upright else 1
    vector = jax.ShapeDtypeStruct((s.shape[0], 1) if launch.upright else (1, s.shape[1]), jnp.float32)
    values = [*jax.tree.leaves(launch.values(scalars, leaves, at)), lambda: of_tile(scalars.seed[0])]
    values += [lambda: of_tile(s * launch.request.scale, (0, 1)), lambda: of_tile(dp(), (0, 1))]
    values += [lambda: of_tile(lse, (queries,)), lambda: of_tile(delta, (queries,))]

    def flow(operands: Operands, seed: Any, *tiles: Any) -> Any:
        ds, p, found = flow_back(operands, launch.seeded(seed), masked, *tiles)
        return [{"ds": ds, "p": p}[name] for name in made], [found[n] for n in arrays]

    avals = launch.operands(arrays), jax.ShapeDtypeStruct((1, 1), jnp.int32), square, square, vector, vector
    found = launch.replay(flow, avals, values)
    return [spread(value.one, s.shape) for value in found[: len(made)]], found[len(made) :]
