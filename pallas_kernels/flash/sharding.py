"""Attention over many devices: forward and backward pass of every backend, cut along batch and heads, so that no device needs another's q, k or v.

A backend knows one device. `partitioned` hands it each device's share of a call, which carries the numbers that its batch rows and heads have in the whole;
gradients of arrays that shares have in common are summed. How arrays lie on the devices is known only when XLA has propagated shardings through the whole
program, so that is when `custom_partitioning` cuts; on a mesh of explicit axes types tell while tracing, and `shard_map` cuts. On one device, and within a
user's own `shard_map`, the program is the backend's own.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
from jax.experimental.custom_partitioning import ArrayMapping, SdyShardingRule, custom_partitioning
from jax.interpreters import ad, batching, mlir
from jax.sharding import NamedSharding, PartitionSpec

from pallas_kernels.flash.request import Request

# What each axis of an array is: "B", "N" (heads, of queries or of keys), or one that vmap added; None where all shares have the same.
Axes = tuple[str | None, ...]


def partitioned(function: Callable[..., Any], request: Request, *others: jax.Array) -> Any:
    """`function(request, *others)`, each device computing its own batch rows and heads.

    Args:
        function: a backend's `forward` or `backward`, or another function of a share; any float it returns that lacks an axis is summed over the shares.
        others: arrays like o `[B, T, N, Hv]` and lse `[B, N, T]`.

    Returns:
        What the function does: arrays like those, or a request, by which we know which axes are batch and heads.
    """
    leaves, structure = jax.tree.flatten((request, *others))
    axes = _axes((request, *others))
    running = [isinstance(a, jax.Array) for a in leaves]  # the others are known before the program runs
    moving = [runs or any(names) for runs, names in zip(running, axes)]

    def arguments(operands: Sequence[Any]) -> list[Any]:
        given = iter(operands)
        return [next(given) if moves else a for a, moves in zip(leaves, moving)]

    def whole(*operands: Any) -> Any:
        taken = [b if runs else a for a, b, runs in zip(leaves, arguments(operands), running)]
        return function(*jax.tree.unflatten(structure, taken))

    def share(*operands: Any) -> list[Any]:
        return jax.tree.leaves(function(*jax.tree.unflatten(structure, arguments(operands))))

    operands, inputs = (tuple(itertools.compress(x, moving)) for x in (leaves, axes))
    context, explicit = jax.sharding.get_abstract_mesh(), _explicit_mesh(operands)
    if context.manual_axes or context.size == 1 or (explicit is None and not any(isinstance(a, jax.core.Tracer) for a in operands)):
        return function(request, *others)
    if explicit is None:
        one, out = jax.make_jaxpr(whole, return_shape=True)(*operands)
        results = _bind(one, Shares(share, inputs, _axes(out)), operands)
    else:
        out = jax.eval_shape(whole, *(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in operands))
        results = Shares(share, inputs, _axes(out)).on_explicit_mesh(explicit, operands)
    return jax.tree.unflatten(jax.tree.structure(out), results)


_FIELDS = {"q": "B N ", "k": "B N ", "v": "B N ", "sinks": "N", "dropout": "", "q_positions": "B", "kv_positions": "B"}


def _axes(tree: Any) -> tuple[Axes, ...]:
    """The axes of each array in a tuple of requests and of arrays like o or lse."""
    if isinstance(tree, tuple):
        return tuple(axes for item in tree for axes in _axes(item))
    if not isinstance(tree, Request):
        return (_axes_of(tree, "B N " if tree.ndim == 4 else "BN"),)
    arrays = [(a, _FIELDS.get(f.name, "BN")) for f in fields(tree) for a in jax.tree.leaves(getattr(tree, f.name)) if not f.metadata.get("static")]
    return tuple(_axes_of(a, letters) for a, letters in arrays)


def _axes_of(array: Any, letters: str) -> Axes:
    """An axis of length 1 is shared by all."""
    return tuple(letter if letter != " " and n > 1 else None for letter, n in zip(letters.ljust(np.ndim(array)), np.shape(array)))


def _explicit_mesh(arrays: Sequence[Any]) -> Any:
    """The mesh that arrays' types speak of, if any."""
    meshes = (jax.typeof(a).sharding.mesh for a in arrays)
    return next((mesh for mesh in meshes if mesh.explicit_axes), None)


@dataclass(frozen=True, eq=False)
class Shares:
    """A function of arrays that computes a share from shares, and the axes along which its operands and results may be cut."""

    function: Callable[..., list[Any]]
    inputs: tuple[Axes, ...]
    outputs: tuple[Axes, ...]

    def by_compiler(self, *operands: Any, out: Sequence[Any]) -> list[Any]:
        """The results, cut as XLA finds the operands to lie."""

        def partition(mesh: Any, operands: Any, results: Any) -> Any:
            local, *sides = self._cut(mesh, operands, [_mesh_axes(mesh, a) for a in operands])
            inputs, outputs = ([NamedSharding(mesh, spec) for spec in side] for side in sides)
            return mesh, local, outputs, tuple(inputs)

        # Only the shapes of this function count; it runs nowhere.
        call = custom_partitioning(lambda *operands: [jnp.zeros(a.shape, a.dtype) for a in out])
        call.def_partition(partition, sharding_rule=self._rule(operands, out), decode_shardings=False)
        return call(*operands)

    def on_explicit_mesh(self, mesh: Any, operands: Sequence[Any]) -> list[Any]:
        """The results, cut as the operands' types say."""
        lie = [[ms if isinstance(ms, tuple) else (ms,) * (ms is not None) for ms in jax.typeof(a).sharding.spec] for a in operands]
        local, inputs, outputs = self._cut(mesh, operands, lie)

        @jax.jit  # so that operands of numpy go to the devices of the others
        def cut(*operands: Any) -> Any:
            operands = tuple(jax.sharding.reshard(a, NamedSharding(mesh, spec)) for a, spec in zip(operands, inputs))
            return jax.shard_map(local, mesh=mesh, in_specs=tuple(inputs), out_specs=outputs, check_vma=False)(*operands)

        return list(cut(*operands))

    def _cut(self, mesh: Any, operands: Sequence[Any], lie: Sequence[Any]) -> tuple[Callable[..., list[Any]], list[PartitionSpec], list[PartitionSpec]]:
        """What each device computes, and the layout of operands and results; `lie` has the mesh axes over which each axis of each operand would lie cut.

        An axis is cut as in the first operand in which it is, q before all, as far as that divides it evenly: heads by the number of key heads.
        """
        over: dict[str, tuple[str, ...]] = {}
        for name, wanted in (pair for axes, each in zip(self.inputs, lie) for pair in zip(axes, each)):
            if name and name not in over and wanted:
                lengths = [n for axes, a in zip(self.inputs, operands) for other, n in zip(axes, a.shape) if other == name]
                free = tuple(m for m in wanted if not any(m in ms for ms in over.values()))
                fits = (free[:n] for n in range(len(free), -1, -1))
                over[name] = next(ms for ms in fits if math.gcd(*lengths) % math.prod(mesh.shape[m] for m in ms) == 0)

        def local(*shares: Any) -> list[Any]:
            results = self.function(*shares)
            lacking = [tuple(m for name, ms in over.items() if name not in axes for m in ms) for axes in self.outputs]
            return [jax.lax.psum(a, ms) if ms else a for a, ms in zip(results, lacking)]

        def specs(side: tuple[Axes, ...]) -> list[PartitionSpec]:
            return [PartitionSpec(*(over.get(name or "") or None for name in axes)) for axes in side]

        return local, specs(self.inputs), specs(self.outputs)

    def _rule(self, operands: Sequence[Any], results: Sequence[Any]) -> SdyShardingRule:
        """What of layouts spreads through the call: axes of one name and length lie alike. (Key heads are no multiple of a mesh axis that query heads are.)"""
        others = itertools.count()

        def mappings(side: tuple[Axes, ...], arrays: Sequence[Any]) -> tuple[ArrayMapping, ...]:
            return tuple(ArrayMapping(*(f"{name}{n}" if name else f"other{next(others)}" for name, n in zip(axes, a.shape))) for axes, a in zip(side, arrays))

        return SdyShardingRule(mappings(self.inputs, operands), mappings(self.outputs, results))

    def mapped(self, dims: Sequence[int | None]) -> "Shares":
        """The same under vmap: results have the new axis in front."""
        name = f"V{len(self.outputs[0])}"
        inputs = tuple(axes if d is None else (*axes[:d], name, *axes[d:]) for axes, d in zip(self.inputs, dims))
        return Shares(jax.vmap(self.function, tuple(dims)), inputs, tuple((name, *axes) for axes in self.outputs))


def _mesh_axes(mesh: Any, array: Any) -> list[tuple[str, ...]]:
    """The mesh axes over which each axis of an array is cut; none where it is cut over a part of one, of which XLA can think and a `PartitionSpec` not."""

    def starts(sharding: Any, ndim: int) -> np.ndarray:
        """Where each device's part would start if every axis were as long as there are devices, `[*mesh, ndim]`."""
        parts = sharding.devices_indices_map((mesh.size,) * ndim)
        return np.array([[part.start or 0 for part in parts[d]] for d in mesh.devices.flat], int).reshape(*mesh.devices.shape, ndim)

    found = []
    for at in np.moveaxis(starts(array.sharding, len(array.shape)), -1, 0):
        steps = {m: np.diff(at, axis=n).max(initial=0) for n, m in enumerate(mesh.axis_names)}
        ms = tuple(sorted((m for m in steps if steps[m]), key=lambda m: -steps[m]))
        found.append(ms if np.array_equal(at, starts(NamedSharding(mesh, PartitionSpec(ms or None)), 1)[..., 0]) else ())
    return found


# One program for a single device, traced already, and one for several.
_partitioned = jax.extend.core.Primitive("attention")
_partitioned.multiple_results = True


def _bind(one: Any, shares: Shares, operands: Sequence[Any]) -> list[Any]:
    # That it has a jaxpr of custom_partitioning among its parameters tells jit to name the devices before lowering.
    several = jax.make_jaxpr(lambda *operands: shares.by_compiler(*operands, out=one.out_avals))(*operands)
    return _partitioned.bind(*operands, one=one, several=several, shares=shares)


def _evaluate(*operands: Any, one: Any, **_: Any) -> list[Any]:
    return jax.extend.core.jaxpr_as_fun(one)(*operands)


def _lower(context: Any, *operands: Any, one: Any, several: Any, **_: Any) -> Any:
    where = context.module_context.axis_context
    cut = getattr(where, "num_devices", 1) > 1 and where.abstract_mesh is not None  # within a shard_map there is no such number
    return mlir.lower_fun(jax.extend.core.jaxpr_as_fun(several if cut else one), multiple_results=True)(context, *operands)


def _map(operands: Sequence[Any], dims: Sequence[int | None], *, one: Any, shares: Shares, **_: Any) -> tuple[list[Any], list[int]]:
    if not any(isinstance(a, jax.core.Tracer) for a in operands):
        results = jax.vmap(jax.extend.core.jaxpr_as_fun(one), tuple(dims))(*operands)
    else:
        one = jax.make_jaxpr(jax.vmap(jax.extend.core.jaxpr_as_fun(one), tuple(dims)))(*operands)
        results = _bind(one, shares.mapped(dims), operands)
    return results, [0] * len(results)


def _differentiate(primals: Sequence[Any], tangents: Sequence[Any], *, one: Any, **_: Any) -> Any:
    return jax.jvp(jax.extend.core.jaxpr_as_fun(one), tuple(primals), tuple(map(ad.instantiate_zeros, tangents)))


_partitioned.def_impl(_evaluate)
# An interpreted kernel may have effects.
_partitioned.def_effectful_abstract_eval(lambda *_, one, **__: (one.out_avals, one.effects))
mlir.register_lowering(_partitioned, _lower)
batching.primitive_batchers[_partitioned] = _map
ad.primitive_jvps[_partitioned] = _differentiate
