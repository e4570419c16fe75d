"""`lookup`, the one way to index inside a mask or score: a primitive, so that each backend can do it in its own way.

Both primitives are linear in what they move, and each is the other's transpose:

    lookup(table, index)[t] = table[t, index[t]]        deposit(g, index)[t, f] = sum of g where index = f, over the axes that the table lacks

XLA gets a gather and a scatter, the defaults below. A backend whose compiler has neither replays a function with rules of its own.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir


def lookup(array: jax.Array, index: jax.Array) -> jax.Array:
    """`array[..., index]` inside a mask or score: picks along the last feature axis.

    Args:
        array: `[..., F]`, one of the function's arrays, its leading axes shaped to broadcast against the tile.
        index: int32, broadcastable against the tile; values outside [0, F) pick the nearest end.

    Returns:
        The picked elements, in the tile's shape. Differentiable in `array`.

    Raises:
        TypeError, ValueError: the index is not of integers, or there is nothing to pick from.
    """
    array, index = jnp.asarray(array), jnp.asarray(index)
    if not array.shape or array.shape[-1] == 0:
        raise ValueError(f"lookup: expected an array with features to pick from along its last axis, received shape {array.shape}")
    if not jnp.issubdtype(index.dtype, jnp.integer):
        raise TypeError(f"lookup: expected an integer index, received {index.dtype}")
    index = jnp.clip(index, 0, array.shape[-1] - 1)
    rank = max(array.ndim - 1, index.ndim)
    array = array.reshape((1,) * (rank + 1 - array.ndim) + array.shape)
    return lookup_p.bind(array, index.reshape((1,) * (rank - index.ndim) + index.shape))


def gather(table: jax.Array, index: jax.Array) -> jax.Array:
    """What `lookup` means, for XLA: table `[*L, F]` and index `[*M]`, of which L and M broadcast."""
    shape = jnp.broadcast_shapes(table.shape[:-1], index.shape)
    # Axes on which the table does not vary are folded away, so that the gather reads the table and not a broadcast copy of it.
    varies = [axis for axis, n in enumerate(table.shape[:-1]) if n > 1]
    where = [jax.lax.broadcasted_iota(jnp.int32, shape, axis) for axis in varies]
    small = table.reshape([table.shape[axis] for axis in varies] + [table.shape[-1]])
    return small.at[(*where, jnp.broadcast_to(index, shape))].get(mode="promise_in_bounds")


def scatter(g: jax.Array, index: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """What `deposit` means, for XLA: g and index of the tile's axes, the result of the table's shape."""
    zeros = jnp.zeros(shape, g.dtype)
    varies = [axis for axis, n in enumerate(shape[:-1]) if n > 1]
    where = [jax.lax.broadcasted_iota(jnp.int32, g.shape, axis) for axis in varies]
    small = zeros.reshape([shape[axis] for axis in varies] + [shape[-1]])
    return small.at[(*where, jnp.broadcast_to(index, g.shape))].add(g, mode="promise_in_bounds").reshape(shape)


lookup_p = Primitive("lookup")
lookup_p.def_impl(jax.jit(gather))
lookup_p.def_abstract_eval(lambda table, index: jax.core.ShapedArray(jnp.broadcast_shapes(table.shape[:-1], index.shape), table.dtype))
mlir.register_lowering(lookup_p, mlir.lower_fun(gather, multiple_results=False))

deposit_p = Primitive("deposit")
deposit_p.def_impl(jax.jit(scatter, static_argnames="shape"))
deposit_p.def_abstract_eval(lambda g, index, shape: jax.core.ShapedArray(shape, g.dtype))
mlir.register_lowering(deposit_p, mlir.lower_fun(scatter, multiple_results=False))


def _lookup_transpose(g: Any, table: Any, index: Any) -> tuple[Any, None]:
    g = ad.instantiate_zeros(g)
    return deposit_p.bind(g, index, shape=table.aval.shape), None


def _deposit_transpose(t: Any, g: Any, index: Any, shape: tuple[int, ...]) -> tuple[Any, None]:
    out = lookup_p.bind(ad.instantiate_zeros(t), index)
    return jnp.broadcast_to(out, g.aval.shape), None


def _with_batch_in_front(array: Any, dim: int | None) -> Any:
    return array[None] if dim is None else jnp.moveaxis(array, dim, 0)


def _lookup_batched(args: Sequence[Any], dims: Sequence[int | None]) -> tuple[Any, int]:
    return lookup_p.bind(*map(_with_batch_in_front, args, dims)), 0


def _deposit_batched(args: Sequence[Any], dims: Sequence[int | None], shape: tuple[int, ...]) -> tuple[Any, int]:
    g, index = map(_with_batch_in_front, args, dims)
    count = max(g.shape[0], index.shape[0])
    return deposit_p.bind(jnp.broadcast_to(g, (count, *g.shape[1:])), index, shape=(count, *shape)), 0


ad.defjvp(lookup_p, lambda t, table, index: lookup_p.bind(t, index), None)
ad.defjvp(deposit_p, lambda t, g, index, shape: deposit_p.bind(t, index, shape=shape), None)
ad.primitive_transposes[lookup_p] = _lookup_transpose
ad.primitive_transposes[deposit_p] = _deposit_transpose
batching.primitive_batchers[lookup_p] = _lookup_batched
batching.primitive_batchers[deposit_p] = _deposit_batched


Rules = Mapping[Primitive, Callable[..., Any]]


def replayed(fn: Callable[..., Any], rules: Rules) -> Callable[..., Any]:
    """`fn` with the given rules in place of those primitives, inside its own calls of jitted functions too."""

    def run(*args: Any) -> Any:
        leaves, structure = jax.tree.flatten(args)
        closed, out = jax.make_jaxpr(lambda *a: fn(*jax.tree.unflatten(structure, a)), return_shape=True)(*leaves)
        return jax.tree.unflatten(jax.tree.structure(out), _evaluate(closed.jaxpr, closed.consts, leaves, rules))

    return run


def _evaluate(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any], rules: Rules) -> list[Any]:
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args]))

    def read(v: Any) -> Any:
        return v.val if isinstance(v, jax.extend.core.Literal) else values[v]

    for eqn in needed(jaxpr):
        inputs = [read(v) for v in eqn.invars]
        if eqn.primitive in rules:
            outputs = rules[eqn.primitive](*inputs, **eqn.params)
        elif inner := body(eqn):
            outputs = _evaluate(inner.jaxpr, inner.consts, inputs, rules)
        else:
            outputs = eqn.primitive.bind(*inputs, **eqn.primitive.get_bind_params(eqn.params))
        values.update(zip(eqn.outvars, outputs if isinstance(outputs, (list, tuple)) else [outputs]))
    return [read(v) for v in jaxpr.outvars]


def needed(jaxpr: Any) -> list[Any]:
    """The equations that the results depend on: a kernel's compiler would build the others too."""
    wanted, kept = {v for v in jaxpr.outvars if not isinstance(v, jax.extend.core.Literal)}, []
    for eqn in reversed(jaxpr.eqns):
        if eqn.effects or not wanted.isdisjoint(eqn.outvars):
            wanted.update(v for v in eqn.invars if not isinstance(v, jax.extend.core.Literal))
            kept.append(eqn)
    return kept[::-1]


def body(eqn: Any) -> Any:
    """The program that an equation calls just once, if it is such a call; by then its own derivative rules have done their work."""
    if eqn.primitive.name not in ("jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call", "remat2", "checkpoint"):
        return None
    inner = next(eqn.params[name] for name in ("jaxpr", "call_jaxpr", "fun_jaxpr") if name in eqn.params)
    return inner if isinstance(inner, jax.extend.core.ClosedJaxpr) else jax.extend.core.ClosedJaxpr(inner, [])
