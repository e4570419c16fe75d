"""What a function of a tile may do: the same to every element, whatever the tile's shape."""

from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np

from pallas_kernels.flash.functions import AXES, Index, TileFunction
from pallas_kernels.flash.tables import deposit_p, lookup_p

# One element, with which any array from outside can be combined; then two shapes: what a function does with both it does with all.
_TRIED = (1, 1, 1, 1), (2, 3, 5, 7), (3, 2, 7, 5)
# How names begin of what may work along feature axes, and of what moves elements even where shapes stay as they are.
_ALONG_AXES = ("reduce_", "arg", "cum", "rev", "sort")
_MOVERS = ("gather", "scatter", "dynamic_update_slice", "fft", "conv_", "reduce_window", "select_and_", "top_k", "dot_general", "transpose")
_PROGRAMS = jax.extend.core.ClosedJaxpr, jax.extend.core.Jaxpr


def check(function: TileFunction, *leading: Any, kind: str, expected: Any) -> None:
    """Traces a placed function on small tiles and refuses what not every tile could take.

    Args:
        leading: dtypes of arguments of the tile's shape, before the index.

    Raises:
        ValueError: it uses an array from outside its arguments, is not elementwise, looks at the tile's shape, or its result has another one.
        TypeError: its result has another dtype, or it fails.
    """
    who, numbers = f"{kind} {function.name}", []
    for tile in _TRIED:
        closed = _traced(function, tile, leading, who)
        outside = [c for c in _constants(closed) if np.ndim(c) > 0 or isinstance(c, jax.core.Tracer)]
        if outside:
            what = f"{outside[0].dtype}{list(np.shape(outside[0]))}"
            raise ValueError(f'{who} uses {what} from outside its arguments; pass it by name with its axes: slope=(slopes, "N")')
        if moved := _moves(closed.jaxpr):
            raise ValueError(f"{who}: expected an elementwise function of the tile, received one with {moved} along the tile's axes")
        if len(closed.out_avals) != 1:
            raise ValueError(f"{who}: expected one array, received {len(closed.out_avals)}")
        out = closed.out_avals[0]
        if len(out.shape) > len(AXES) or any(n not in (1, m) for n, m in zip(out.shape[::-1], tile[::-1])):
            raise ValueError(f"{who}: expected a result of the tile's shape, received {out.shape} for a tile {tile}")
        if out.dtype != expected:
            raise TypeError(f"{who}: expected a result of {np.dtype(expected)}, received {out.dtype}; are all its arrays of that dtype?")
        numbers.append(_numbers(closed.jaxpr))
    if numbers[-1] != numbers[-2]:
        raise ValueError(
            f"{who}: expected an elementwise function of the tile, received one that looks at the tile's shape; i.q_index and i.k_index say where an element is"
        )


def _traced(function: TileFunction, tile: tuple[int, ...], leading: tuple[Any, ...], who: str) -> Any:
    def aval(shape: tuple[int, ...], dtype: Any) -> Any:
        return jax.ShapeDtypeStruct(tuple(1 if isinstance(n, int) and n < 2 else m for n, m in zip(shape, tile)) + tuple(shape[len(AXES) :]), dtype)

    arrays = {name: aval(np.shape(a), jnp.result_type(a)) for name, a in function.named.items()}
    shapes = (2, 1, 1, 1), (1, 2, 1, 1), (1, 1, 2, 1), (1, 1, 1, 2), (1, 1, 2, 1), (1, 1, 1, 2)
    i = Index(*(aval(shape, jnp.int32) for shape in shapes))
    try:
        return jax.make_jaxpr(lambda *args: function.fn(*args[:-1], **args[-1]))(*(jax.ShapeDtypeStruct(tile, dtype) for dtype in leading), i, arrays)
    except Exception as error:  # whatever a user's function may raise
        called = ", ".join(["s"] * len(leading) + ["i", *arrays])
        raise TypeError(f"{who}, called as {function.name}({called}) with traced arrays of a tile {tile}: {str(error).partition(chr(10))[0]}") from error


def _numbers(jaxpr: Any) -> list[Any]:
    """What a program knows without being told: its literals, and the shapes of what it counts up or draws."""
    found: list[Any] = []
    for eqn in jaxpr.eqns:
        found += [str(v.val) for v in eqn.invars if isinstance(v, jax.extend.core.Literal)]  # as words: NaN is not equal to itself
        if eqn.primitive.name == "iota" or eqn.primitive.name.startswith("random_"):
            found.append(eqn.params.get("shape"))
        for inner in _inside(eqn):
            found += _numbers(inner)
    return found


def _moves(jaxpr: Any) -> str | None:
    """The name of a primitive that mixes or moves elements along the four axes of a tile; along feature axes it may."""
    for eqn in jaxpr.eqns:
        if (inner := next(filter(None, map(_moves, _inside(eqn))), None)) or _moves_itself(eqn):
            return inner or str(eqn.primitive.name)
    return None


def _moves_itself(eqn: Any) -> bool:
    name, params, axes = eqn.primitive.name, eqn.params, len(AXES)
    shapes = [v.aval.shape for v in (*eqn.invars, *eqn.outvars) if hasattr(v.aval, "shape")]
    tiles = [shape for shape in shapes if len(shape) >= axes]
    before = [v.aval.shape[:axes] for v in eqn.invars if hasattr(v.aval, "shape") and len(v.aval.shape) >= axes]
    if name == "scan":  # goes along the first axis of what its body sees without it
        inner = next(_inside(eqn)).invars
        return any(len(whole.aval.shape) >= axes and len(whole.aval.shape) > len(part.aval.shape) for whole, part in zip(eqn.invars, inner))
    if name.startswith(_MOVERS) and len(eqn.invars[0].aval.shape) == axes:  # there are no feature axes to move along
        return True
    if eqn.primitive in (lookup_p, deposit_p) or name == "broadcast_in_dim" or not tiles or next(_inside(eqn), None):
        return False
    if name.startswith(_ALONG_AXES) and name != "reduce_precision":
        along = params.get("axes", params.get("dimensions", (params.get("axis", params.get("dimension")),)))
        return any(axis is not None and axis < axes for axis in along)
    # What has a tile's axes keeps them, as they were but for broadcasting.
    return bool(before) and any(v.aval.shape[:axes] != np.broadcast_shapes(*before) for v in eqn.outvars)


def _inside(eqn: Any) -> Any:
    """The programs within an equation."""
    for inner in jax.tree.leaves(eqn.params, is_leaf=lambda x: isinstance(x, _PROGRAMS)):
        if isinstance(inner, _PROGRAMS):
            yield getattr(inner, "jaxpr", inner)


def _constants(closed: Any) -> list[Any]:
    """The constants of a closed jaxpr and of those inside it: a jitted function keeps its own."""
    inner = jax.tree.leaves([eqn.params for eqn in closed.jaxpr.eqns], is_leaf=lambda x: isinstance(x, jax.extend.core.ClosedJaxpr))
    return [*closed.consts, *(c for x in inner if isinstance(x, jax.extend.core.ClosedJaxpr) for c in _constants(x))]
