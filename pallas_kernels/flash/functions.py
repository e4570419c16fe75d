"""Functions of a tile and the arrays that they read: what masks and scores are made of.

An array is passed with the axes that it varies over, a subsequence of "BNTS" (batch, query head, query, key), followed by feature axes.
`place` brings every array of a call to one form, `[B|1, N|1, T|1, S|1, *features]`, so that whoever cuts, pads or transposes tiles treats all arrays alike.
"""

import difflib
import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np

AXES = "BNTS"


class Index(NamedTuple):
    """Where a tile's elements are: int32 arrays that broadcast against the tile.

    `batch` and `head` number the call's batch and query heads, `q` and `k` are positions, `q_index` and `k_index` places in the arrays.
    """

    batch: Any
    head: Any
    q: Any
    k: Any
    q_index: Any
    k_index: Any


@dataclass(frozen=True)
class Bound:
    """A `functools.partial` that is compared by its function and arguments, so that a built-in made twice compiles once."""

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.fn(*self.args, *args, **dict(self.kwargs), **kwargs)


def comparable(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn`, or a `Bound` where it is a partial."""
    if not isinstance(fn, functools.partial):
        return fn
    bound = Bound(fn.func, fn.args, tuple(sorted(fn.keywords.items())))
    try:
        hash(bound)
    except TypeError:
        raise TypeError(f"{name_of(fn)}: arguments bound by functools.partial must be hashable; pass arrays by name: slope=(slopes, 'N')") from None
    return bound


def name_of(fn: Callable[..., Any]) -> str:
    while isinstance(fn, (functools.partial, Bound)):
        fn = fn.func if isinstance(fn, functools.partial) else fn.fn
    name = getattr(fn, "__name__", type(fn).__name__)
    return name.lstrip("_") if getattr(fn, "__module__", "").startswith("pallas_kernels.") else name  # causal is made of _causal


class Compared:
    """Equality of frozen pytrees: the same structure, and the very same arrays."""

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        structures: list[Any] = [jax.tree.structure(self), jax.tree.structure(other)]
        return bool(structures[0] == structures[1]) and all(a is b for a, b in zip(jax.tree.leaves(self), jax.tree.leaves(other)))

    def __hash__(self) -> int:
        return hash(jax.tree.structure(self))


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class TileFunction(Compared):
    """An elementwise function of a tile and its named arrays."""

    fn: Callable[..., Any] = field(metadata={"static": True})
    names: tuple[str, ...] = field(metadata={"static": True})
    signatures: tuple[str, ...] = field(metadata={"static": True})
    arrays: tuple[Any, ...] = ()

    @property
    def name(self) -> str:
        return name_of(self.fn)

    @property
    def named(self) -> dict[str, Any]:
        return dict(zip(self.names, self.arrays))

    def __repr__(self) -> str:
        arrays = [f"{n}=({jnp.result_type(a)}{list(np.shape(a))}, {s!r})" for n, a, s in zip(self.names, self.arrays, self.signatures)]
        bound = [*map(repr, self.fn.args), *(f"{k}={v!r}" for k, v in self.fn.kwargs)] if isinstance(self.fn, Bound) else []
        return f"{self.name}({', '.join(bound + arrays)})"


def tile_function(fn: Callable[..., Any], arrays: dict[str, Any]) -> TileFunction:
    """The function with its arrays, each given as `(array, signature)`."""
    if not callable(fn):
        raise TypeError(f"fn: expected a function of a tile, received {type(fn).__name__}")
    values, signatures = [], []
    for name, given in arrays.items():
        if not (isinstance(given, tuple) and len(given) == 2 and isinstance(given[1], str)):
            raise TypeError(f"{name_of(fn)}: {name}: expected a pair of an array and its axes, such as (array, 'BT'), received {type(given).__name__}")
        array, signature = given
        if list(signature) != [a for a in AXES if a in signature]:
            raise ValueError(f"{name_of(fn)}: {name}: expected axes out of 'BNTS', in that order, each once, received {signature!r}")
        if np.ndim(array) < len(signature):
            raise ValueError(f"{name_of(fn)}: {name}: axes {signature!r} need {len(signature)} dimensions, received shape {np.shape(array)}")
        values.append(narrow(array))
        signatures.append(signature)
    return TileFunction(comparable(fn), tuple(arrays), tuple(signatures), tuple(values))


def narrow(array: Any) -> Any:
    """Integers of any width as int32; everything else as it is."""
    array = array if isinstance(array, (np.ndarray, jax.Array)) else jnp.asarray(array)
    return array.astype(jnp.int32) if jnp.issubdtype(array.dtype, jnp.integer) else array


def place(function: TileFunction, sizes: dict[str, int]) -> TileFunction:
    """The function with its arrays as `[B|1, N|1, T|1, S|1, *features]`.

    Raises:
        ValueError: an axis is neither full nor 1.
    """
    placed = []
    for name, signature, array in zip(function.names, function.signatures, function.arrays):
        for axis, length in zip(signature, np.shape(array)):
            if length not in (1, sizes[axis]):
                raise ValueError(
                    f"{function.name}: {name}: axes {signature!r} expect {axis} = {sizes[axis]} or 1, received {length} in shape {np.shape(array)}"
                )
        lengths = dict(zip(signature, np.shape(array)))
        placed.append(array.reshape([lengths.get(axis, 1) for axis in AXES] + list(np.shape(array)[len(signature) :])))
    return TileFunction(function.fn, function.names, (AXES,) * len(placed), tuple(placed))


# One element, with which any array from outside can be combined; then two shapes: what a function does with both it does with all.
_TRIED = (1, 1, 1, 1), (1, 1, 2, 3), (1, 1, 5, 7)


def check(function: TileFunction, *leading: Any, kind: str, expected: Any) -> None:
    """Traces a placed function on small tiles and refuses what not every tile could take.

    Args:
        leading: dtypes of arguments of the tile's shape, before the index.

    Raises:
        ValueError: it uses an array from outside its arguments, is not elementwise, looks at the tile's shape, or its result has another one.
        TypeError: its result has another dtype.
    """
    numbers = []
    for tile in _TRIED:
        closed = _traced(function, tile, leading)
        numbers.append(_numbers(closed.jaxpr))
        outside = [c for c in _constants(closed) if np.ndim(c) > 0 or isinstance(c, jax.core.Tracer)]
        if outside:
            what = f"{outside[0].dtype}{list(np.shape(outside[0]))}"
            raise ValueError(f'{kind} {function.name} uses {what} from outside its arguments; pass it by name with its axes: slope=(slopes, "N")')
        if moved := _moves(closed.jaxpr):
            raise ValueError(f"{kind} {function.name}: expected an elementwise function of the tile, received one with {moved} along the tile's axes")
        if len(closed.out_avals) != 1:
            raise ValueError(f"{kind} {function.name}: expected one array, received {len(closed.out_avals)}")
        out = closed.out_avals[0]
        if len(out.shape) > len(AXES) or any(n not in (1, m) for n, m in zip(out.shape[::-1], tile[::-1])):
            raise ValueError(f"{kind} {function.name}: expected a result of the tile's shape, received {out.shape} for a tile {tile}")
        if out.dtype != expected:
            raise TypeError(f"{kind} {function.name}: expected a result of {np.dtype(expected)}, received {out.dtype}")
    if numbers[-1] != numbers[-2]:
        raise ValueError(
            f"{kind} {function.name}: expected an elementwise function of the tile, received one that looks at the tile's shape; "
            "i.q_index and i.k_index say where an element is"
        )


def _traced(function: TileFunction, tile: tuple[int, ...], leading: tuple[Any, ...]) -> Any:
    def aval(shape: tuple[int, ...], dtype: Any) -> Any:
        return jax.ShapeDtypeStruct(tuple(m if n > 1 else 1 for n, m in zip(shape, tile)) + tuple(shape[len(AXES) :]), dtype)

    arrays = {name: aval(np.shape(a), jnp.result_type(a)) for name, a in function.named.items()}
    shapes = (1, 1, 1, 1), (1, 1, 1, 1), (1, 1, 2, 1), (1, 1, 1, 2), (1, 1, 2, 1), (1, 1, 1, 2)
    i = Index(*(aval(shape, jnp.int32) for shape in shapes))
    return jax.make_jaxpr(lambda *args: function.fn(*args[:-1], **args[-1]))(*(jax.ShapeDtypeStruct(tile, dtype) for dtype in leading), i, arrays)


def _numbers(jaxpr: Any) -> list[Any]:
    """What a program knows without being told: its literals, and the shapes of what it counts up."""
    found: list[Any] = []
    for eqn in jaxpr.eqns:
        found += [str(v.val) for v in eqn.invars if isinstance(v, jax.extend.core.Literal)]  # as words: NaN is not equal to itself
        found += [eqn.params["shape"]] if eqn.primitive.name == "iota" else []
        for inner in jax.tree.leaves(eqn.params, is_leaf=lambda x: isinstance(x, (jax.extend.core.ClosedJaxpr, jax.extend.core.Jaxpr))):
            inner = getattr(inner, "jaxpr", inner)
            found += _numbers(inner) if isinstance(inner, jax.extend.core.Jaxpr) else []
    return found


def _moves(jaxpr: Any) -> str | None:
    """The name of a primitive that mixes or moves elements along the four axes of a tile; along feature axes it may."""
    for eqn in jaxpr.eqns:
        name, params = eqn.primitive.name, eqn.params
        if name.startswith(("reduce_", "arg", "cum")) or name in ("rev", "sort"):
            axes = params.get("axes", params.get("dimensions", (params.get("axis", params.get("dimension")),)))
            if any(axis is not None and axis < len(AXES) <= eqn.invars[0].aval.ndim for axis in axes):
                return str(name)
        for inner in jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, (jax.extend.core.ClosedJaxpr, jax.extend.core.Jaxpr))):
            inner = getattr(inner, "jaxpr", inner)
            if isinstance(inner, jax.extend.core.Jaxpr) and (found := _moves(inner)):
                return found
    return None


def _constants(closed: Any) -> list[Any]:
    """The constants of a closed jaxpr and of those inside it: a jitted function keeps its own."""
    inner = jax.tree.leaves([eqn.params for eqn in closed.jaxpr.eqns], is_leaf=lambda x: isinstance(x, jax.extend.core.ClosedJaxpr))
    return [*closed.consts, *(c for x in inner if isinstance(x, jax.extend.core.ClosedJaxpr) for c in _constants(x))]


def nearest_name(word: str, among: Iterable[str]) -> str:
    """` (nearest: ...)` for an error message, or nothing where no candidate is near."""
    found = difflib.get_close_matches(word, list(among), n=1)
    return f" (nearest: {found[0]})" if found else ""
