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
            raise ValueError(f"{name_of(fn)}: {name}: axes {signature!r} need {len(signature)} dimensions, received shape {np.shape(array)}; each may be 1")
        values.append(narrow(array, f"{name_of(fn)}: {name}"))
        signatures.append(signature)
    return TileFunction(comparable(fn), tuple(arrays), tuple(signatures), tuple(values))


def narrow(array: Any, name: str) -> Any:
    """Integers of any width as int32; everything else as it is.

    Raises:
        ValueError: integers that int32 does not have, where they are known.
    """
    if not isinstance(array, (np.ndarray, jax.Array)):
        array = np.asarray(array) if jnp.issubdtype(np.asarray(array).dtype, jnp.integer) else jnp.asarray(array)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        return array
    if isinstance(array, np.ndarray) and array.size and not (array.min() >= -(2**31) and array.max() < 2**31):
        received = f"{array.min()} to {array.max()}"
        raise ValueError(f"{name}: expected integers that int32 has, received {received}; number them anew, by np.unique(ids, return_inverse=True)")
    return array.astype(jnp.int32)


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


def nearest_name(word: str, among: Iterable[str]) -> str:
    """` (nearest: ...)` for an error message, or nothing where no candidate is near."""
    found = difflib.get_close_matches(word, list(among), n=1)
    return f" (nearest: {found[0]})" if found else ""
