"""Pictures of masks: in characters, and plotted."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.flash.checking import check
from pallas_kernels.flash.functions import Index, TileFunction, narrow, place

# The longest side: of characters with a space between, so that a line fits 80 columns, and of what is plotted.
CHARACTERS, PIXELS = 40, 1024
# How much of a mask is looked at in one go.
ELEMENTS = 2**22

Rows = Callable[[int, int], np.ndarray]


class Picture(str):
    """Text that at a prompt shows as it is."""

    __repr__ = str.__str__


def draw(mask: Any, T: int, S: int, batch: int, head: int, q_positions: Any, kv_positions: Any, file: Any) -> Picture:
    """See `masks.show`."""
    functions = jax.tree.leaves(mask, is_leaf=_is_function)
    positions = {"q_positions": _positions("q_positions", q_positions, T), "kv_positions": _positions("kv_positions", kv_positions, S)}
    sizes = {"B": max(_longest("B", functions), *map(len, positions.values())), "N": _longest("N", functions), "T": T, "S": S}
    for name, array in positions.items():
        if len(array) not in (1, sizes["B"]):
            raise ValueError(f"show: {name}: expected B = {sizes['B']} or 1, received {len(array)} in shape {array.shape}")
    _check_number("batch", batch, "B", sizes["B"])
    _check_number("head", head, "N", sizes["N"])

    def placed(function: TileFunction) -> TileFunction:
        function = place(function, sizes)
        check(function, kind="mask", expected=jnp.bool_)
        return function

    rows = _rows(jax.tree.map(placed, mask, is_leaf=_is_function), sizes, batch, head, **positions)
    if file is not None:
        _plot(_shares(rows, T, S, _block(T, S, PIXELS)), T, S, file)
    block = _block(T, S, CHARACTERS)
    return _text(_shares(rows, T, S, block), block)


def _is_function(node: Any) -> bool:
    return isinstance(node, TileFunction)


def _positions(name: str, positions: Any, length: int) -> Any:
    """`[B|1, length]`."""
    positions = narrow(np.arange(length) if positions is None else positions, f"show: {name}")
    if positions.dtype != jnp.int32:
        raise TypeError(f"show: {name}: expected integers, received {positions.dtype}")
    if positions.ndim not in (1, 2) or positions.shape[-1] != length:
        raise ValueError(f"show: {name}: expected shape ({length},) or (B, {length}), received {positions.shape}")
    return positions.reshape(-1, length)


def _longest(axis: str, functions: list[TileFunction]) -> int:
    pairs = [pair for function in functions for pair in zip(function.signatures, function.arrays)]
    return max([1, *(np.shape(array)[signature.index(axis)] for signature, array in pairs if axis in signature)])


def _check_number(name: str, number: Any, axis: str, count: int) -> None:
    """Below the count; any from 0 on where nothing says how many there are."""
    if not isinstance(number, (int, np.integer)) or number < 0 or number >= count > 1:
        expected = f"a number below {axis} = {count}" if count > 1 else "a number from 0 on"
        raise ValueError(f"show: {name}: expected {expected}, received {number!r}")


def _rows(mask: Any, sizes: dict[str, int], batch: int, head: int, q_positions: Any, kv_positions: Any) -> Rows:
    """`rows(start, stop)`: what those queries may attend to, booleans `[stop - start, S]`."""
    here = {axis: number if sizes[axis] > 1 else 0 for axis, number in (("B", batch), ("N", head))}
    i = Index(
        batch=np.full((1, 1, 1, 1), batch, np.int32),
        head=np.full((1, 1, 1, 1), head, np.int32),
        q=q_positions[:, None, :, None],
        k=kv_positions[:, None, None, :],
        q_index=np.arange(sizes["T"], dtype=np.int32).reshape(1, 1, -1, 1),
        k_index=np.arange(sizes["S"], dtype=np.int32).reshape(1, 1, 1, -1),
    )

    def rows(start: int, stop: int) -> np.ndarray:
        def cut(a: Any) -> Any:
            for axis, (first, last) in enumerate(((here["B"], here["B"] + 1), (here["N"], here["N"] + 1), (start, stop))):
                a = a if a.shape[axis] == 1 else a[(slice(None),) * axis + (slice(first, last),)]
            return jnp.asarray(a)

        at, cut_mask = jax.tree.map(cut, (i, mask))
        allowed = True if mask is None else cut_mask.allowed(at)
        return np.broadcast_to(np.asarray(allowed), (1, 1, stop - start, sizes["S"]))[0, 0]

    return rows


def _block(T: int, S: int, most: int) -> int:
    """The side of a block, a power of two, of which at most so many make up the longer side."""
    block = 1
    while max(T, S) > most * block:
        block *= 2
    return block


def _shares(rows: Rows, T: int, S: int, block: int) -> np.ndarray:
    """How much of each block is allowed: exactly 0 for nothing, exactly 1 for all."""
    strip = block * max(1, ELEMENTS // (block * S))

    def share(start: int) -> np.ndarray:
        stop = min(start + strip, T)
        edges = [np.arange(0, length, block) for length in (stop - start, S)]
        counts = [np.diff(edge, append=length) for edge, length in zip(edges, (stop - start, S))]
        sums = np.add.reduceat(np.add.reduceat(rows(start, stop).astype(np.int32), edges[0], 0), edges[1], 1)
        return sums / np.outer(*counts)

    return np.concatenate([share(start) for start in range(0, T, strip)])


def _text(shares: np.ndarray, block: int) -> Picture:
    nothing, some, everything = "0+1" if block == 1 else ".+#"
    lines = [" ".join(nothing if share == 0 else everything if share == 1 else some for share in row) for row in shares]
    return Picture("\n".join(lines if block == 1 else [f"{block} x {block} to a character: . nothing allowed, + some, # all", *lines]))


def _plot(shares: np.ndarray, T: int, S: int, file: Any) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("show: file: plotting needs matplotlib: pip install matplotlib; without file, show draws in characters") from None
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.add_subplot(xlabel="key", ylabel="query")
    shades = shares**0.25  # a line of one pixel in a block of many would not be seen
    axes.imshow(shades, cmap="Blues", vmin=0, vmax=1, interpolation="nearest", extent=(-0.5, S - 0.5, T - 0.5, -0.5))
    axes.locator_params(integer=True)
    figure.savefig(file, dpi=150, bbox_inches="tight")
